-- Whether this database holds what Redis was told it holds.

-- name: read :one
-- Operator: the accepted history, the one this database continues, and since when it has been up.
SELECT h.lineage AS accepted, vf.lineage() AS current, h.held_for, h.changed_at,
       pg_postmaster_start_time() AS started_at
  FROM vf.history h;

-- name: leases :many
-- Operator: how far these leases are in the ledger; one it does not know has no row.
SELECT l.id, l.state, l.size, p.accounted
  FROM vf.leases l JOIN vf.lease_progress p ON p.lease_id = l.id AND p.project_id = l.project_id
 WHERE l.id = ANY (@leases::uuid[]);

-- name: accept :exec
-- Operator: from here on this database redeems; nothing when somebody else has decided since it was read.
WITH accepted AS (
    UPDATE vf.history h SET lineage = @current, held_for = NULL, changed_at = clock_timestamp()
     WHERE h.lineage = @accepted AND h.held_for IS NOT DISTINCT FROM @held_for
    RETURNING h.lineage
)
UPDATE vf.leases l SET pg_lineage = accepted.lineage FROM accepted WHERE l.state <> 'settled';

-- name: hold :exec
-- Operator: stops redeeming until `recover`, and says why. The first reason stays.
UPDATE vf.history h SET held_for = @reason, changed_at = clock_timestamp() WHERE h.held_for IS NULL;

-- name: recover_lease :one
-- Operator: gives the ledger back a lease that Redis knows more of, fenced.
SELECT outcome, size FROM vf.recover_lease(@project_id, @lease_id, @tag, @sale_id, @seq_base, @issued, @backlog_max,
       @run_id, @redis_state, @reason);

-- name: distrust :exec
-- Operator: fences every lease that is out, and says that a mark is unknown: Redis's data is not what was answered.
WITH fenced AS (
    UPDATE vf.leases l SET state = 'fenced', fence_reason = @reason WHERE l.state = 'open' RETURNING l.id
)
INSERT INTO vf.lease_workers (lease_id, worker_id, node_id, sealed_run_id)
SELECT f.id, 'recover', 'recover', 'recover' FROM fenced f
    ON CONFLICT (lease_id, worker_id) DO NOTHING;

-- name: unsettled :many
-- Operator: fenced leases that are still to be settled.
SELECT l.id FROM vf.leases l WHERE l.state = 'fenced' ORDER BY l.armed_at;

-- name: losses :many
-- Operator: what leases that were fenced have lost since an instant: numbers of the sale that are no redemption and are
-- sold to nobody else, as ranges.
SELECT l.sale_id, s.name, l.settled_at, l.fence_reason, l.burned,
       coalesce((SELECT string_agg(CASE WHEN g.first = g.last THEN g.first::text
                                        ELSE g.first || '-' || g.last END, ', ' ORDER BY g.first)
                   FROM (SELECT l.seq_base + k.seq + 1 AS first, l.seq_base + k.next - 1 AS last
                           FROM (SELECT x.seq, lead(x.seq, 1, l.open_to + 1) OVER (ORDER BY x.seq) AS next
                                   FROM (SELECT 0::bigint AS seq UNION ALL
                                         SELECT r.seq FROM vf.redemptions r WHERE r.lease_id = l.id UNION ALL
                                         SELECT r.seq FROM vf.released_numbers r WHERE r.lease_id = l.id) x) k
                          WHERE k.next > k.seq + 1) g), '') AS numbers
  FROM vf.leases l JOIN vf.flash_sales s ON s.project_id = l.project_id AND s.id = l.sale_id
 WHERE l.state = 'settled' AND l.fence_reason IS NOT NULL AND l.settled_at > @since
 ORDER BY l.settled_at;

-- name: fenced :many
-- Operator: leases that are fenced now and why.
SELECT l.sale_id, s.name, l.fence_reason
  FROM vf.leases l JOIN vf.flash_sales s ON s.project_id = l.project_id AND s.id = l.sale_id
 WHERE l.state = 'fenced' ORDER BY l.armed_at;
