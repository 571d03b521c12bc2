-- Burned numbers, and the units that are given back for them.

-- name: release :many
-- Releases burned numbers of a sale, all or none, and answers each.
SELECT number, outcome FROM vf.release_numbers(@project_id, @sale_id, @numbers);

-- name: live :one
-- The voucher of a sale, and the lease that is out on it now.
SELECT s.voucher_id, l.id AS lease_id
  FROM vf.flash_sales s
  LEFT JOIN vf.leases l ON l.project_id = s.project_id AND l.sale_id = s.id AND l.state <> 'settled'
 WHERE s.project_id = @project_id AND s.id = @sale_id;

-- name: page :many
-- Numbers of a sale that a loss of Redis's data took, above a cursor, and when they were released.
SELECT l.seq_base + n.seq AS number, l.settled_at AS written_off_at, l.fence_reason AS reason, x.released_at
  FROM vf.leases l
 CROSS JOIN LATERAL generate_series(greatest(1, coalesce(@after::bigint, 0) - l.seq_base + 1), l.open_to) AS n (seq)
  LEFT JOIN vf.released_numbers x ON x.lease_id = l.id AND x.seq = n.seq AND x.project_id = l.project_id
 WHERE l.project_id = @project_id AND l.sale_id = @sale_id AND l.state = 'settled' AND l.burned + l.released > 0
   AND NOT EXISTS (SELECT 1 FROM vf.redemptions r WHERE r.lease_id = l.id AND r.seq = n.seq)
 ORDER BY 1
 LIMIT @limit::bigint;
