-- What the reconciler and the worker ask, for all projects.

-- name: leases :many
-- Operator: every lease that is out, with how far it is in the ledger and what its sale wants.
SELECT l.project_id, l.id AS lease_id, l.tag, l.voucher_id, l.sale_id, l.state, l.size, l.open_to, l.backlog_max,
       l.run_id, l.judged, l.armed_at, p.last_id, p.accounted, s.starts_at, s.ends_at,
       s.status = 'paused' OR v.status <> 'active' OR coalesce(c.status <> 'active', false) AS is_paused,
       clock_timestamp() AS now
  FROM vf.leases l
  JOIN vf.vouchers v ON v.project_id = l.project_id AND v.id = l.voucher_id
  LEFT JOIN vf.campaigns c ON c.project_id = l.project_id AND c.id = l.campaign_id
  JOIN vf.lease_progress p ON p.lease_id = l.id AND p.project_id = l.project_id
  JOIN vf.flash_sales s ON s.project_id = l.project_id AND s.id = l.sale_id
 WHERE l.state <> 'settled';

-- name: settle_wins :one
-- Writes a run of wins and the stream offset they reach, in one commit.
SELECT outcome, inserted, replayed, same_key, quarantined, accounted
  FROM vf.settle_wins(@project_id, @lease_id, @run_id, @judged, @from_id, @to_id, @seqs, @ids, @keys, @fingerprints,
       @customers, @order_values, @discounts, @order_ids, @metadata, @remaining, @at_ms, @poison,
       @poison_raw);

-- name: settle_plain :one
-- The same for wins that were all readable: each column is an array literal.
SELECT outcome, inserted, replayed, same_key, quarantined, accounted
  FROM vf.settle_wins(@project_id, @lease_id, @run_id, @judged, @from_id, @to_id, @seqs::text::bigint[],
       @ids::text::uuid[], @keys::text::text[], @fingerprints::text::bytea[], @customers::text::text[], @order_values::text::bigint[],
       @discounts::text::bigint[], @order_ids::text::text[], @metadata::text::text[], @remaining::text::bigint[],
       @at_ms::text::bigint[], '{}', '{}');

-- name: settle_lease :one
-- Ends a lease whose stream is in the ledger up to an entry; nothing where the ledger is elsewhere: another PostgreSQL
-- may have been promoted since, which lacks what this one had.
SELECT d.outcome, d.open_to, d.returned, d.burned
  FROM vf.lease_progress p
 CROSS JOIN LATERAL vf.settle_lease(@project_id, @lease_id, @state, @run_id, @open_to) d
 WHERE p.lease_id = @lease_id AND p.last_id = @last_id;

-- name: progress :one
-- Operator: where a lease's stream is in the ledger now.
SELECT p.last_id, p.accounted FROM vf.lease_progress p WHERE p.lease_id = @lease_id;

-- name: seals :one
-- Operator: after a fence, what the workers of a lease have told: how many are still to tell, how many are silent,
-- and the highest mark.
SELECT count(*) FILTER (WHERE w.sealed_run_id IS NULL AND w.seen_at > clock_timestamp() - @silent_after::interval) AS waiting,
       count(*) FILTER (WHERE w.sealed_run_id IS NULL AND w.seen_at <= clock_timestamp() - @silent_after::interval
                           OR w.sealed_run_id IS NOT NULL AND w.mark IS NULL) AS silent,
       coalesce(max(w.mark), 0)::bigint AS mark
  FROM vf.lease_workers w WHERE w.lease_id = @lease_id;

-- name: fence :exec
-- Operator: stops a lease that Redis can no longer keep the promise of.
UPDATE vf.leases l SET state = 'fenced', fence_reason = @reason, judged = l.judged + 1
 WHERE l.id = @lease_id AND l.state IN ('open', 'draining');

-- name: rolled_back :many
-- Operator: redemptions of a lease's voucher that were rolled back since an instant, and whose customers: Redis has to
-- release them. What was rolled back before the lease was loaded is not in Redis's counts.
SELECT r.id, r.customer_id, r.rolled_back_at
  FROM vf.leases l JOIN vf.redemptions r ON r.voucher_id = l.voucher_id AND r.project_id = l.project_id
 WHERE l.id = @lease_id AND r.status = 'rolled_back' AND r.rolled_back_at > @since AND r.customer_id IS NOT NULL
   AND (r.lease_id = l.id OR r.rolled_back_at > l.opened_at)
 ORDER BY r.rolled_back_at
 LIMIT @limit;

-- name: drop_workers :exec
-- Operator: forgets who served a lease that is settled.
DELETE FROM vf.lease_workers w WHERE w.lease_id = @lease_id;

-- name: due_sales :many
-- Operator: sales whose start is near, whose end has passed, or which are open without a lease.
SELECT s.project_id, s.id AS sale_id, s.durability, s.status,
       s.ends_at IS NOT NULL AND s.ends_at <= clock_timestamp() AS is_over,
       l.id AS lease_id, l.state AS lease_state,
       s.stock - s.sold_count - s.leased_count AS free_units
  FROM vf.flash_sales s
  LEFT JOIN vf.leases l ON l.project_id = s.project_id AND l.sale_id = s.id AND l.state <> 'settled'
  JOIN vf.vouchers v ON v.project_id = s.project_id AND v.id = s.voucher_id
 WHERE s.status IN ('scheduled', 'open', 'paused', 'fenced')
   AND (s.ends_at <= clock_timestamp()
        OR (s.status = 'scheduled' AND s.starts_at <= clock_timestamp() + @arm_before::interval
            AND (s.starts_at <= clock_timestamp()
                 OR (s.durability = 'fast' AND l.id IS NULL)
                 OR (s.durability = 'strict' AND v.flash_sale_id IS NULL)))
        OR (s.status = 'open' AND s.durability = 'fast' AND s.stock > s.leased_count
            AND (l.id IS NULL OR l.state = 'open')))
 LIMIT 1000;

-- name: forget_idempotency_keys :exec
-- Operator: deletes answers that are older than they are kept, a bounded number at a time.
DELETE FROM vf.idempotency_keys k
 WHERE ctid = ANY (ARRAY(SELECT x.ctid FROM vf.idempotency_keys x
                          WHERE x.created_at < clock_timestamp() - @keep::interval LIMIT 10000));

-- name: forget_workers :exec
-- Operator: deletes API workers that have been silent for a day.
DELETE FROM vf.api_workers w WHERE w.beat_at < clock_timestamp() - interval '1 day';
