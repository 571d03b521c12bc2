-- Redeeming, reading and reversing. The hot functions are in schema.sql; these are their calls.

-- name: terms :many
-- What prices of several codes are computed from and where they redeem now; unknown codes have no row.
SELECT project_id, voucher_id, code, code_norm, terms_version, campaign_id, campaign_version, sale_id, authority,
       sale_only, discount_type, discount_bp, discount_minor, min_order_minor, needs_customer, crowd_version,
       owns_discount, promotion, campaign_promotion
  FROM vf.terms_of(@project_id, @codes);

-- name: redeem_many :many
-- Decides an array of requests for one voucher in one commit.
SELECT ord, outcome, id, seq, remaining, redeemed_at, order_value_minor, discount_minor, existing, sale
  FROM vf.redeem_many(@project_id, @voucher_id, @version, @campaign_id, @campaign_version, @sale_id, @ids, @keys,
       @fingerprints, @customers, @order_values, @discounts, @order_ids, @metadata);

-- name: redeem_plain :many
-- The same for plain requests: each column is an array literal, and none has metadata.
SELECT ord, outcome, id, seq, remaining, redeemed_at, order_value_minor, discount_minor, existing, sale
  FROM vf.redeem_many(@project_id, @voucher_id, @version, NULL, NULL, @sale_id, @ids::text::uuid[], @keys::text::text[],
       @fingerprints::text::bytea[], @customers::text::text[], @order_values::text::bigint[],
       @discounts::text::bigint[], @order_ids::text::text[], NULL);

-- name: redeem_lots :many
-- Decides requests for several vouchers without a campaign in one commit.
SELECT lot, ord, outcome, id, seq, remaining, redeemed_at, order_value_minor, discount_minor, existing, sale
  FROM vf.redeem_lots(@project_id, @vouchers, @versions, @sales, @starts, @ids, @keys, @fingerprints, @customers,
       @order_values, @discounts, @order_ids, @metadata);

-- name: redeem_plain_lots :many
-- The same for plain requests: each column is an array literal, and none has metadata.
SELECT lot, ord, outcome, id, seq, remaining, redeemed_at, order_value_minor, discount_minor, existing, sale
  FROM vf.redeem_lots(@project_id, @vouchers, @versions, @sales, @starts, @ids::text::uuid[], @keys::text::text[],
       @fingerprints::text::bytea[], @customers::text::text[], @order_values::text::bigint[],
       @discounts::text::bigint[], @order_ids::text::text[], NULL);

-- name: redeem_campaign :many
-- Decides requests for several vouchers of one campaign in one commit.
SELECT ord, outcome, id, seq, remaining, redeemed_at, order_value_minor, discount_minor, existing, sale
  FROM vf.redeem_campaign(@project_id, @campaign_id, @campaign_version, @vouchers, @versions, @sales, @starts, @ids, @keys,
       @fingerprints, @customers, @order_values, @discounts, @order_ids, @metadata);

-- name: redeem_order :many
-- Decides one or several codes for one order, all or nothing, in one commit.
SELECT ord, outcome, id, seq, remaining, redeemed_at, order_value_minor, discount_minor, detail, existing, label, used
  FROM vf.redeem_order(@project_id, @customer_id, @order_id, @order_value, @metadata, @fingerprint, @vouchers, @versions,
       @campaigns, @campaign_versions, @ids, @keys, @discounts, @details, @takings, @holds, @hold_s);

-- name: read :one
-- One redemption by its id.
SELECT r.id, v.code, r.voucher_id, r.campaign_id, r.sale_id, r.customer_id, r.order_id, r.order_value_minor,
       r.discount_minor, r.remaining, coalesce(r.sale_seq, r.seq) AS seq, r.status, r.redeemed_at, r.rolled_back_at,
       r.rollback_reason, r.returned_minor, r.metadata, r.detail
  FROM vf.redemptions r JOIN vf.vouchers v ON v.project_id = r.project_id AND v.id = r.voucher_id
 WHERE r.project_id = @project_id AND r.id = @id AND r.redeemed_at > '-infinity';

-- name: in_order :exec
-- Before a page, in its transaction: walk the list's own index. Without statistics of a project (a new one, an import)
-- the planner takes it for small, gathers it whole and sorts it.
SELECT set_config('enable_bitmapscan', 'off', true), set_config('enable_seqscan', 'off', true);

-- name: list :many
-- A page of redemptions, newest first, below the cursor, narrowed by whatever is not null. The page is found first and
-- then joined, so that no statistics can make it a join of everything; a sale's are found by its voucher. Days are found
-- by id: a direct redemption's begins with the milliseconds of its making, a win's with those of its lease's arming, so
-- nothing of before `to` has a later id, and nothing of after `from` an earlier one than the leases that were out then.
-- Five minutes are what clocks may differ by.
WITH page AS MATERIALIZED (
    SELECT r.id, r.voucher_id, r.campaign_id, r.sale_id, r.customer_id, r.order_id, r.order_value_minor,
           r.discount_minor, r.remaining, r.sale_seq, r.seq, r.status, r.redeemed_at, r.rolled_back_at,
           r.rollback_reason, r.returned_minor, r.metadata, r.detail
      FROM vf.redemptions r
     WHERE r.project_id = @project_id AND r.redeemed_at > '-infinity'
       AND (@before::uuid IS NULL OR r.id < @before)
       AND (@voucher_id::uuid IS NULL OR r.voucher_id = @voucher_id)
       AND (@campaign_id::uuid IS NULL OR r.campaign_id = @campaign_id)
       AND (@sale_id::uuid IS NULL OR r.sale_id = @sale_id
            AND r.voucher_id = (SELECT s.voucher_id FROM vf.flash_sales s
                                 WHERE s.project_id = @project_id AND s.id = @sale_id))
       AND (@customer_id::text IS NULL OR r.customer_id = @customer_id)
       AND (@order_id::text IS NULL OR r.order_id = @order_id)
       AND (@status::text IS NULL OR r.status = @status)
       AND (@from_at::timestamptz IS NULL OR r.redeemed_at >= @from_at AND r.id >= (
            SELECT rpad(lpad(to_hex((extract(epoch FROM least(@from_at, min(l.armed_at)) - interval '5 minutes')
                                     * 1000)::bigint), 12, '0'), 32, '0')::uuid
              FROM vf.leases l
             WHERE l.project_id = @project_id AND l.armed_at < @from_at
               AND (l.settled_at IS NULL OR l.settled_at >= @from_at)))
       AND (@to_at::timestamptz IS NULL OR r.redeemed_at < @to_at AND r.id < (
            SELECT rpad(lpad(to_hex((extract(epoch FROM @to_at + interval '5 minutes') * 1000)::bigint), 12, '0'),
                        32, '0')::uuid))
     ORDER BY r.id DESC
     LIMIT @limit)
SELECT r.id, v.code, r.voucher_id, r.campaign_id, r.sale_id, r.customer_id, r.order_id, r.order_value_minor,
       r.discount_minor, r.remaining, coalesce(r.sale_seq, r.seq) AS seq, r.status, r.redeemed_at, r.rolled_back_at,
       r.rollback_reason, r.returned_minor, r.metadata, r.detail
  FROM page r
 CROSS JOIN LATERAL (SELECT k.code FROM vf.vouchers k
                      WHERE k.project_id = @project_id AND k.id = r.voucher_id OFFSET 0) v
 ORDER BY r.id DESC;

-- name: voucher_id_of_code :one
-- Which voucher a code in a filter means.
SELECT v.id FROM vf.vouchers v WHERE v.project_id = @project_id AND v.code_norm = @code_norm;

-- name: roll_back :one
-- Gives a redemption's unit back, once.
SELECT outcome, voucher_id, lease_id, lease_state, customer_id
  FROM vf.roll_back(@project_id, @id, @reason,
                    (SELECT make_interval(secs => p.rollback_window_s) FROM vf.projects p WHERE p.id = @project_id));

-- name: roll_back_part :one
-- Gives a part of a redemption's discount back.
SELECT vf.roll_back_part(
    @project_id, @id, @amount, @reason,
    (SELECT make_interval(secs => p.rollback_window_s) FROM vf.projects p WHERE p.id = @project_id)) AS outcome;

-- name: rollback_window_s :one
-- For how long the project's redemptions can be rolled back.
SELECT p.rollback_window_s FROM vf.projects p WHERE p.id = @project_id;

-- name: lease_of_tag :one
-- The lease a win's id was drawn from, to tell "not settled yet" from "never existed".
SELECT l.id AS lease_id, l.state, l.open_to FROM vf.leases l WHERE l.project_id = @project_id AND l.tag = @tag;

-- name: records :many
-- A page of a voucher's redemptions as idempotency records, for arming a lease or telling Redis a sold-out crowd.
SELECT r.id, r.idempotency_key AS key, r.fingerprint, r.redeemed_at, r.remaining, coalesce(r.sale_seq, r.seq) AS seq,
       r.order_value_minor, r.discount_minor, r.sale_id
  FROM vf.redemptions r
 WHERE r.project_id = @project_id AND r.voucher_id = @voucher_id AND r.redeemed_at > '-infinity'
   AND (@after::uuid IS NULL OR r.id > @after)
 ORDER BY r.id
 LIMIT @limit;

-- name: customers :many
-- A page of a voucher's customers with what they hold, for the same two purposes.
SELECT k.customer_id, k.live_count, k.last_redemption_id
  FROM vf.customer_counts k
 WHERE k.project_id = @project_id AND k.scope_id = @voucher_id AND k.live_count > 0
   AND (@after::text IS NULL OR k.customer_id > @after)
 ORDER BY k.customer_id
 LIMIT @limit;

-- name: crowd_facts :one
-- Whether a voucher is sold out, at which version, in which lineage: what the crowd may be told.
SELECT v.crowd_version, vf.lineage() AS lineage, v.per_customer_limit,
       v.authority = 'pg' AND v.status = 'active' AND v.flash_sale_id IS NOT DISTINCT FROM @sale_id
       AND (s.status IS NULL OR s.status = 'open')
       AND (s.ends_at IS NULL OR s.ends_at > clock_timestamp())
       AND (v.expires_at IS NULL OR v.expires_at > clock_timestamp())
       AND coalesce(least(v.max_redemptions - v.direct_count - v.leased_count, s.stock - s.sold_count) = 0, false)
       AS is_sold_out
  FROM vf.vouchers v
  LEFT JOIN vf.flash_sales s ON s.project_id = v.project_id AND s.id = v.flash_sale_id
 WHERE v.project_id = @project_id AND v.id = @voucher_id;

-- name: by_key :one
-- The redemption an idempotency key has, for a retry that comes after the sale.
SELECT r.id, v.code, r.voucher_id, r.campaign_id, r.sale_id, r.customer_id, r.order_id, r.order_value_minor,
       r.discount_minor, r.remaining, coalesce(r.sale_seq, r.seq) AS seq, r.status, r.redeemed_at, r.rolled_back_at,
       r.rollback_reason, r.returned_minor, r.metadata, r.detail, r.fingerprint
  FROM vf.redemptions r JOIN vf.vouchers v ON v.project_id = r.project_id AND v.id = r.voucher_id
 WHERE r.idempotency_key = @key AND r.voucher_id = @voucher_id AND r.project_id = @project_id;

-- name: crowd_version :one
-- The version under which a voucher's crowd may be told anything now.
SELECT v.crowd_version FROM vf.vouchers v WHERE v.project_id = @project_id AND v.id = @voucher_id;

-- name: is_decided :one
-- Whether a redemption of a code, or of a sale's voucher, is in the ledger under an idempotency key.
SELECT EXISTS (SELECT 1 FROM vf.redemptions r
                WHERE r.idempotency_key = @key AND r.project_id = @project_id
                  AND r.voucher_id = (SELECT v.id FROM vf.vouchers v
                                       WHERE v.project_id = @project_id AND v.code_norm = @code_norm
                                       UNION ALL
                                      SELECT s.voucher_id FROM vf.flash_sales s
                                       WHERE s.project_id = @project_id AND s.id = @sale_id LIMIT 1)) AS is_decided;
