-- Reads repeat their columns: each statement stands alone and is held against the struct it fills.

-- name: create :exec
-- Stores a new voucher; a code that is taken fails on vouchers_code_key.
WITH made AS (
    INSERT INTO vf.vouchers (
        project_id, id, code, code_norm, campaign_id, discount_type, discount_bp, discount_minor,
        min_order_minor, max_redemptions, per_customer_limit, starts_at, expires_at, metadata, promotion, holder)
    VALUES (
        @project_id, @id, @code, @code_norm, @campaign_id, @discount_type, @discount_bp,
        @discount_minor, @min_order_minor, @max_redemptions, @per_customer_limit, @starts_at,
        @expires_at, @metadata, @promotion, @holder)
    RETURNING project_id, id, code, campaign_id
)
INSERT INTO vf.outbox (project_id, event, subject, data)
SELECT m.project_id, 'voucher.created', m.id, jsonb_build_object('code', m.code, 'campaign_id', m.campaign_id) FROM made m;

-- name: by_id :one
-- One voucher with its campaign's terms, by id.
SELECT v.id, v.code, v.campaign_id, v.status, v.discount_type, v.discount_bp, v.discount_minor,
       v.min_order_minor, v.max_redemptions, v.per_customer_limit, v.starts_at, v.expires_at,
       v.metadata, v.promotion, v.holder, v.direct_count, v.held_count, v.leased_count,
       coalesce(l.size - p.accounted, 0) AS unsold_count,
       v.authority, v.flash_sale_id, v.sale_only, v.terms_version, v.created_at, v.updated_at,
       c.status AS campaign_status, c.terms_version AS campaign_terms_version,
       c.discount_type AS campaign_discount_type, c.discount_bp AS campaign_discount_bp,
       c.discount_minor AS campaign_discount_minor,
       c.min_order_minor AS campaign_min_order_minor,
       c.max_redemptions - c.direct_count - c.leased_count AS campaign_rest,
       c.per_customer_limit AS campaign_per_customer_limit,
       c.starts_at AS campaign_starts_at, c.expires_at AS campaign_expires_at,
       c.promotion AS campaign_promotion
  FROM vf.vouchers v
  LEFT JOIN vf.campaigns c ON c.project_id = v.project_id AND c.id = v.campaign_id
  LEFT JOIN vf.leases l ON l.project_id = v.project_id AND l.voucher_id = v.id
        AND l.state <> 'settled'
  LEFT JOIN vf.lease_progress p ON p.lease_id = l.id AND p.project_id = l.project_id
 WHERE v.project_id = @project_id AND v.id = @id;

-- name: by_code :one
-- One voucher with its campaign's terms, by normalised code.
SELECT v.id, v.code, v.campaign_id, v.status, v.discount_type, v.discount_bp, v.discount_minor,
       v.min_order_minor, v.max_redemptions, v.per_customer_limit, v.starts_at, v.expires_at,
       v.metadata, v.promotion, v.holder, v.direct_count, v.held_count, v.leased_count,
       coalesce(l.size - p.accounted, 0) AS unsold_count,
       v.authority, v.flash_sale_id, v.sale_only, v.terms_version, v.created_at, v.updated_at,
       c.status AS campaign_status, c.terms_version AS campaign_terms_version,
       c.discount_type AS campaign_discount_type, c.discount_bp AS campaign_discount_bp,
       c.discount_minor AS campaign_discount_minor,
       c.min_order_minor AS campaign_min_order_minor,
       c.max_redemptions - c.direct_count - c.leased_count AS campaign_rest,
       c.per_customer_limit AS campaign_per_customer_limit,
       c.starts_at AS campaign_starts_at, c.expires_at AS campaign_expires_at,
       c.promotion AS campaign_promotion
  FROM vf.vouchers v
  LEFT JOIN vf.campaigns c ON c.project_id = v.project_id AND c.id = v.campaign_id
  LEFT JOIN vf.leases l ON l.project_id = v.project_id AND l.voucher_id = v.id
        AND l.state <> 'settled'
  LEFT JOIN vf.lease_progress p ON p.lease_id = l.id AND p.project_id = l.project_id
 WHERE v.project_id = @project_id AND v.code_norm = @code_norm;

-- name: in_order :exec
-- Before a page, in its transaction: walk the list's own index. Without statistics of a project (a new one, an import)
-- the planner takes it for small, gathers it whole and sorts it.
SELECT set_config('enable_bitmapscan', 'off', true), set_config('enable_seqscan', 'off', true);

-- name: page :many
-- Vouchers of the project, newest first, below a cursor, of one campaign and one shown status. The page is found
-- first and then joined, so that no statistics can make it a join of everything. Of the expired, `only` says which.
WITH page AS MATERIALIZED (
    SELECT k.id
      FROM vf.vouchers k
     WHERE k.project_id = @project_id
       AND (@after::uuid IS NULL OR k.id < @after)
       AND (@campaign_id::uuid IS NULL OR k.campaign_id = @campaign_id)
       AND (@only::uuid[] IS NULL OR k.id = ANY(@only))
       AND (@status::text IS DISTINCT FROM 'disabled' OR k.status = 'disabled')
       AND (@status IS DISTINCT FROM 'active' OR k.status = 'active'
            AND (k.expires_at IS NULL OR k.expires_at > now())
            AND NOT EXISTS (SELECT 1 FROM vf.campaigns g
                             WHERE g.project_id = k.project_id AND g.id = k.campaign_id
                               AND g.expires_at <= now()))
     ORDER BY k.id DESC
     LIMIT @limit::bigint)
SELECT v.id, v.code, v.campaign_id, v.status, v.discount_type, v.discount_bp, v.discount_minor,
       v.min_order_minor, v.max_redemptions, v.per_customer_limit, v.starts_at, v.expires_at,
       v.metadata, v.promotion, v.holder, v.direct_count, v.held_count, v.leased_count,
       coalesce(l.size - p.accounted, 0) AS unsold_count,
       v.authority, v.flash_sale_id, v.sale_only, v.terms_version, v.created_at, v.updated_at,
       c.status AS campaign_status, c.terms_version AS campaign_terms_version,
       c.discount_type AS campaign_discount_type, c.discount_bp AS campaign_discount_bp,
       c.discount_minor AS campaign_discount_minor,
       c.min_order_minor AS campaign_min_order_minor,
       c.max_redemptions - c.direct_count - c.leased_count AS campaign_rest,
       c.per_customer_limit AS campaign_per_customer_limit,
       c.starts_at AS campaign_starts_at, c.expires_at AS campaign_expires_at,
       c.promotion AS campaign_promotion
  FROM page
 CROSS JOIN LATERAL (SELECT * FROM vf.vouchers k
                      WHERE k.project_id = @project_id AND k.id = page.id OFFSET 0) v
  LEFT JOIN vf.campaigns c ON c.project_id = v.project_id AND c.id = v.campaign_id
  LEFT JOIN vf.leases l ON l.project_id = v.project_id AND l.voucher_id = v.id
        AND l.state <> 'settled'
  LEFT JOIN vf.lease_progress p ON p.lease_id = l.id AND p.project_id = l.project_id
 ORDER BY v.id DESC;

-- name: wallet :many
-- A customer's own vouchers, newest first, below a cursor. Found first and then joined, as a page is.
WITH page AS MATERIALIZED (
    SELECT k.id FROM vf.vouchers k
     WHERE k.holder = @holder AND k.project_id = @project_id AND (@after::uuid IS NULL OR k.id < @after)
     ORDER BY k.id DESC LIMIT @limit::bigint)
SELECT v.id, v.code, v.campaign_id, v.status, v.discount_type, v.discount_bp, v.discount_minor,
       v.min_order_minor, v.max_redemptions, v.per_customer_limit, v.starts_at, v.expires_at,
       v.metadata, v.promotion, v.holder, v.direct_count, v.held_count, v.leased_count,
       coalesce(l.size - p.accounted, 0) AS unsold_count,
       v.authority, v.flash_sale_id, v.sale_only, v.terms_version, v.created_at, v.updated_at,
       c.status AS campaign_status, c.terms_version AS campaign_terms_version,
       c.discount_type AS campaign_discount_type, c.discount_bp AS campaign_discount_bp,
       c.discount_minor AS campaign_discount_minor,
       c.min_order_minor AS campaign_min_order_minor,
       c.max_redemptions - c.direct_count - c.leased_count AS campaign_rest,
       c.per_customer_limit AS campaign_per_customer_limit,
       c.starts_at AS campaign_starts_at, c.expires_at AS campaign_expires_at,
       c.promotion AS campaign_promotion
  FROM page
 CROSS JOIN LATERAL (SELECT * FROM vf.vouchers k
                      WHERE k.project_id = @project_id AND k.id = page.id OFFSET 0) v
  LEFT JOIN vf.campaigns c ON c.project_id = v.project_id AND c.id = v.campaign_id
  LEFT JOIN vf.leases l ON l.project_id = v.project_id AND l.voucher_id = v.id
        AND l.state <> 'settled'
  LEFT JOIN vf.lease_progress p ON p.lease_id = l.id AND p.project_id = l.project_id
 ORDER BY v.id DESC;

-- name: expired_ids :many
-- The page of the expired: those whose own time is over, and those of campaigns whose time is.
(SELECT v.id
   FROM vf.vouchers v
  WHERE v.project_id = @project_id AND v.status = 'active' AND v.expires_at <= now()
    AND (@after::uuid IS NULL OR v.id < @after)
    AND (@campaign_id::uuid IS NULL OR v.campaign_id = @campaign_id)
  ORDER BY v.id DESC
  LIMIT @limit::bigint)
UNION
(SELECT m.id
   FROM vf.campaigns c
  CROSS JOIN LATERAL (
        SELECT v.id FROM vf.vouchers v
         WHERE v.project_id = c.project_id AND v.campaign_id = c.id AND v.status = 'active'
           AND (@after IS NULL OR v.id < @after)
         ORDER BY v.id DESC
         LIMIT @limit) m
  WHERE c.project_id = @project_id AND c.expires_at <= now()
    AND (@campaign_id IS NULL OR c.id = @campaign_id))
 ORDER BY id DESC
 LIMIT @limit;

-- name: edit :exec
-- Changes dates and metadata; dates stay while a flash sale holds the voucher.
WITH changed AS (
    UPDATE vf.vouchers
       SET starts_at = CASE WHEN @sets_starts THEN @starts_at::timestamptz ELSE starts_at END,
           expires_at = CASE WHEN @sets_expires THEN @expires_at::timestamptz ELSE expires_at END,
           metadata = coalesce(@metadata::jsonb, metadata),
           terms_version = terms_version + (@sets_starts::boolean OR @sets_expires::boolean)::integer,
           updated_at = clock_timestamp()
     WHERE project_id = @project_id AND id = @id
       AND (authority = 'pg' AND flash_sale_id IS NULL OR NOT (@sets_starts OR @sets_expires))
    RETURNING project_id, id, code, campaign_id
)
INSERT INTO vf.outbox (project_id, event, subject, data)
SELECT c.project_id, 'voucher.updated', c.id, jsonb_build_object('code', c.code, 'campaign_id', c.campaign_id) FROM changed c;

-- name: switch :exec
-- Disables or enables a voucher, unless it is so already or a fast sale sells it.
WITH changed AS (
    UPDATE vf.vouchers
       SET status = @status, terms_version = terms_version + 1, updated_at = clock_timestamp()
     WHERE project_id = @project_id AND id = @id AND status <> @status AND authority = 'pg'
    RETURNING project_id, id, code, campaign_id, status
)
INSERT INTO vf.outbox (project_id, event, subject, data)
SELECT c.project_id, CASE c.status WHEN 'active' THEN 'voucher.enabled' ELSE 'voucher.disabled' END, c.id,
       jsonb_build_object('code', c.code, 'campaign_id', c.campaign_id)
  FROM changed c;

-- name: sale_state :one
-- The flash sale that holds a voucher, and its rest: a strict sale's exactly, a fast one's as far as the ledger knows.
SELECT s.status, s.starts_at, s.ends_at,
       CASE WHEN l.id IS NOT NULL THEN l.size - p.accounted
            ELSE s.stock - s.sold_count - s.leased_count END AS rest
  FROM vf.flash_sales s
  LEFT JOIN vf.leases l ON l.project_id = s.project_id AND l.voucher_id = s.voucher_id
        AND l.sale_id = s.id AND l.state <> 'settled'
  LEFT JOIN vf.lease_progress p ON p.lease_id = l.id AND p.project_id = l.project_id
 WHERE s.project_id = @project_id AND s.voucher_id = @id
   AND s.status IN ('scheduled', 'open', 'paused', 'closed', 'fenced');

-- name: customer_used_up :one
-- Whether a customer has reached the voucher's or the campaign's limit.
SELECT EXISTS (
    SELECT 1 FROM vf.customer_counts k
     WHERE k.customer_id = @customer_id AND k.project_id = @project_id
       AND k.live_count >= CASE k.scope_id
               WHEN @voucher_id::uuid THEN @per_voucher::bigint
               WHEN @campaign_id::uuid THEN @per_campaign::bigint END);

-- name: tell_validated :exec
-- Tells that a voucher was validated, where a webhook names that type; most do not, and then nothing is written.
INSERT INTO vf.outbox (project_id, event, subject, data)
SELECT @project_id, 'voucher.validated', @id, @data
 WHERE EXISTS (SELECT 1 FROM vf.webhooks w WHERE w.project_id = @project_id AND w.status = 'active'
                  AND 'voucher.validated' = ANY (w.events));
