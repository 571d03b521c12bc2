-- What a sale depends on before it opens, and what the ledger says of it afterwards.

-- name: gate :one
-- Whether this database may redeem, whether it keeps what it answers, and how many API workers are alive.
SELECT vf.is_accepted() AS is_accepted, current_setting('fsync') AS fsync,
       current_setting('synchronous_commit') AS synchronous_commit, clock_timestamp() AS now,
       (SELECT count(*) FROM vf.api_workers w WHERE w.beat_at > clock_timestamp() - @alive_within::interval)
           AS worker_count;

-- name: ledger :one
-- A sale's redemptions, added up row by row.
WITH won AS MATERIALIZED (
    SELECT r.status, coalesce(r.sale_seq, r.seq) AS number, r.customer_id, r.order_value_minor, r.redeemed_at,
           r.discount_minor - coalesce(r.returned_minor, 0) AS discount_minor
      FROM vf.redemptions r
     WHERE r.voucher_id = @voucher_id AND r.project_id = @project_id AND r.sale_id = @sale_id
       AND r.redeemed_at > '-infinity'
), live AS (
    SELECT k.customer_id, count(*) AS n FROM won k
     WHERE k.status = 'redeemed' AND k.customer_id IS NOT NULL GROUP BY 1
)
SELECT count(*) AS row_count, count(*) FILTER (WHERE k.status = 'redeemed') AS live_count,
       count(DISTINCT k.number) AS number_count,
       (SELECT count(*) FROM live) AS customer_count,
       coalesce((SELECT max(l.n) FROM live l), 0) AS most_of_one,
       coalesce(sum(k.discount_minor) FILTER (WHERE k.status = 'redeemed'), 0)::bigint AS discount_minor,
       coalesce(sum(k.order_value_minor) FILTER (WHERE k.status = 'redeemed'), 0)::bigint AS order_value_minor,
       min(k.redeemed_at) AS first_at, max(k.redeemed_at) AS last_at
  FROM won k;
