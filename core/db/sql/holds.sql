-- Uses of codes that are kept for a checkout. Taking one is vf.redeem_order's.

-- name: by_id :one
-- One hold; its time decides, whether it was swept or not.
SELECT h.id, CASE WHEN h.status = 'held' AND h.expires_at <= clock_timestamp() THEN 'expired' ELSE h.status END AS status,
       v.code, h.customer_id, h.discount_minor, h.detail, h.created_at, h.expires_at, h.ended_at
  FROM vf.holds h JOIN vf.vouchers v ON v.project_id = h.project_id AND v.id = h.voucher_id
 WHERE h.project_id = @project_id AND h.id = @id;

-- name: extend :exec
-- Moves the end of a live hold to so many seconds from now.
UPDATE vf.holds SET expires_at = clock_timestamp() + make_interval(secs => @ttl_s::bigint)
 WHERE project_id = @project_id AND id = @id AND status = 'held' AND expires_at > clock_timestamp();

-- name: end :one
-- Ends a live hold and gives back what it took.
SELECT vf.end_hold(@project_id, @id, @status) AS is_ended;

-- name: due :many
-- Operator: holds that have run out and still keep their use.
SELECT h.project_id, h.id FROM vf.holds h
 WHERE h.status = 'held' AND h.expires_at <= clock_timestamp() ORDER BY h.expires_at LIMIT @limit::bigint;
