-- Who and what may not redeem. Whether a redeem is blocked is asked in vf.redeem_many and vf.redeem_order.

-- name: add :exec
-- Blocks, unless it is blocked already or the list is full; a block that is over makes room.
INSERT INTO vf.blocks AS k (project_id, id, kind, value, reason, alert_id, created_by, expires_at)
SELECT @project_id::uuid, @id::uuid, @kind::text, @value::text, @reason::text, @alert_id::uuid, @created_by::text,
       @expires_at::timestamptz
 WHERE (SELECT count(*) FROM vf.blocks b WHERE b.project_id = @project_id) < @blocks_max::bigint
    ON CONFLICT (project_id, kind, value) DO UPDATE
       SET id = excluded.id, reason = excluded.reason, alert_id = excluded.alert_id, created_by = excluded.created_by,
           created_at = clock_timestamp(), expires_at = excluded.expires_at
     WHERE k.expires_at <= clock_timestamp();

-- name: count :one
-- How many there are in the project.
SELECT count(*) FROM vf.blocks k WHERE k.project_id = @project_id;

-- name: by_id :one
-- One block that stands.
SELECT k.id, k.kind, k.value, k.reason, k.alert_id, k.created_by, k.created_at, k.expires_at
  FROM vf.blocks k
 WHERE k.project_id = @project_id AND k.id = @id AND (k.expires_at IS NULL OR k.expires_at > now());

-- name: page :many
-- Blocks that stand, newest first, below a cursor.
SELECT k.id, k.kind, k.value, k.reason, k.alert_id, k.created_by, k.created_at, k.expires_at
  FROM vf.blocks k
 WHERE k.project_id = @project_id AND (k.expires_at IS NULL OR k.expires_at > now())
   AND (@kind::text IS NULL OR k.kind = @kind) AND (@after::uuid IS NULL OR k.id < @after)
 ORDER BY k.id DESC LIMIT @limit::bigint;

-- name: remove :exec
-- Takes one off the list.
DELETE FROM vf.blocks WHERE project_id = @project_id AND id = @id;

-- name: remove_of_alert :exec
-- Takes off the list what an alert put there.
DELETE FROM vf.blocks WHERE project_id = @project_id AND alert_id = @alert_id;

-- name: erase :exec
-- Forgets a customer who is blocked.
DELETE FROM vf.blocks WHERE project_id = @project_id AND kind = 'customer' AND value = @customer_id;

-- name: forget :exec
-- Operator: deletes blocks whose time is over, a bounded number at a time.
DELETE FROM vf.blocks b
 WHERE b.ctid = ANY (ARRAY(SELECT k.ctid FROM vf.blocks k WHERE k.expires_at <= clock_timestamp() LIMIT 10000));

-- name: of_lease :many
-- What a lease's claims are held against: customers, addresses, devices, and its own code.
SELECT k.kind, k.value, coalesce(floor(extract(epoch FROM k.expires_at) * 1000)::bigint, 0) AS until_ms
  FROM vf.leases l
  JOIN vf.vouchers v ON v.project_id = l.project_id AND v.id = l.voucher_id
  JOIN vf.blocks k ON k.project_id = l.project_id AND (k.kind <> 'code' OR k.value = v.code_norm)
 WHERE l.project_id = @project_id AND l.id = @lease_id AND (k.expires_at IS NULL OR k.expires_at > now())
 ORDER BY k.kind, k.value;

-- name: live_leases :many
-- Operator: leases that are out, and which list of blocks they should have been told.
WITH live AS MATERIALIZED (
    SELECT l.project_id, l.id FROM vf.leases l WHERE l.state = 'open'
)
SELECT l.project_id, l.id AS lease_id, coalesce(b.version, '') AS version
  FROM live l
  LEFT JOIN (SELECT k.project_id, md5(string_agg(k.id::text, ' ' ORDER BY k.id)) AS version FROM vf.blocks k
              WHERE k.project_id IN (SELECT x.project_id FROM live x) AND (k.expires_at IS NULL OR k.expires_at > now())
              GROUP BY k.project_id) b ON b.project_id = l.project_id;
