-- How a big ledger is made, past the API and as the database's owner; bench/pages.py fills the names in braces.

-- name: helpers
-- Ids sort as time does: 48 bits of milliseconds, as in every id of the product.
CREATE FUNCTION vf.bench_at(n bigint) RETURNS timestamptz LANGUAGE sql IMMUTABLE
    AS $$ SELECT to_timestamp({FIRST_AT_S} + n * {APART_S}) $$;
CREATE FUNCTION vf.bench_id(n bigint) RETURNS uuid LANGUAGE sql IMMUTABLE
    AS $$ SELECT encode(substring(int8send(({FIRST_AT_S} + n * {APART_S}) * 1000) FROM 3)
                        || decode('70008000000000000000', 'hex'), 'hex')::uuid $$;

-- name: vouchers
-- Vouchers $2 + 1 to $3, some of them in the campaigns $4.
INSERT INTO vf.vouchers (project_id, id, code, code_norm, campaign_id, status, discount_type,
       discount_bp, max_redemptions, expires_at, direct_count, next_number, created_at)
SELECT $1, vf.bench_id(n), 'FILL' || n, 'FILL' || n,
       CASE WHEN n % {IN_CAMPAIGN} = 0 THEN ($4::uuid[])[n / {IN_CAMPAIGN} % {CAMPAIGNS} + 1] END,
       CASE WHEN n % {RARE} = 7 AND n < {RARE} * {EXCEPTIONS} THEN 'disabled' ELSE 'active' END, 'PERCENT', 1000, 1000,
       CASE WHEN n % {RARE} = 9 AND n < {RARE} * {EXCEPTIONS} THEN now() - interval '1 day' END, 0, 1, vf.bench_at(n)
  FROM generate_series($2::bigint + 1, $3::bigint) n

-- name: redemptions
-- Redemptions $2 + 1 to $3, in turn over the vouchers $5 + 1 to $6.
INSERT INTO vf.redemptions (project_id, lease_id, seq, id, voucher_id, campaign_id,
       idempotency_key, fingerprint, customer_id, order_id, order_value_minor, discount_minor,
       remaining, status, redeemed_at, rolled_back_at)
SELECT $1, vf.bench_id(v), (n - $2 - 1) / ($6 - $5) + 1, vf.bench_id(n), vf.bench_id(v),
       CASE WHEN v % {IN_CAMPAIGN} = 0 THEN ($4::uuid[])[v / {IN_CAMPAIGN} % {CAMPAIGNS} + 1] END,
       'fill-' || lpad(n::text, 9, '0'), decode(md5(n::text), 'hex'),
       'fill-' || n * 7919 % ($3 / {A_CUSTOMER}), 'order-' || n, 8999, 900, 0,
       CASE WHEN n % {RARE} = 3 AND n < {RARE} * {EXCEPTIONS} THEN 'rolled_back' ELSE 'redeemed' END, vf.bench_at(n),
       CASE WHEN n % {RARE} = 3 AND n < {RARE} * {EXCEPTIONS} THEN vf.bench_at(n) END
  FROM generate_series($2::bigint + 1, $3::bigint) n
 CROSS JOIN LATERAL (VALUES ($5::bigint + (n - $2 - 1) % ($6::bigint - $5) + 1)) k (v)

-- name: counts
-- Each voucher's counts, from its redemptions after the $2-th.
UPDATE vf.vouchers v SET direct_count = c.live, next_number = c.top + 1
  FROM (SELECT voucher_id, count(*) FILTER (WHERE status = 'redeemed') AS live, max(seq) AS top
          FROM vf.redemptions WHERE project_id = $1 AND redeemed_at > vf.bench_at($2)
         GROUP BY 1) c
 WHERE v.project_id = $1 AND v.id = c.voucher_id

-- name: campaign_counts
-- Each campaign's count, from all of its redemptions.
UPDATE vf.campaigns k SET direct_count = c.live
  FROM (SELECT campaign_id, count(*) AS live FROM vf.redemptions
         WHERE project_id = $1 AND status = 'redeemed' AND campaign_id IS NOT NULL GROUP BY 1) c
 WHERE k.project_id = $1 AND k.id = c.campaign_id

-- name: indexes
-- Indexes of the two tables that no constraint needs, as they are made.
SELECT i.indexrelid::regclass::text AS name, pg_get_indexdef(i.indexrelid) AS definition
  FROM pg_index i
 WHERE i.indrelid = ANY(ARRAY['vf.redemptions', 'vf.vouchers']::regclass[])
   AND NOT EXISTS (SELECT 1 FROM pg_constraint c WHERE c.conindid = i.indexrelid)

-- name: drop
-- One of them; its name is put in.
DROP INDEX $1
