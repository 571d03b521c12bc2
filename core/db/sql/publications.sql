-- Codes of campaigns that are given to customers one by one.

-- name: add :exec
-- Adds one voucher of a campaign; a code that is taken is left out, and the caller draws another.
WITH made AS (
    INSERT INTO vf.vouchers (project_id, id, code, code_norm, campaign_id, max_redemptions, expires_at, holder)
    VALUES (@project_id, @id, @code, @code_norm, @campaign_id, @max_redemptions, @expires_at, @holder)
        ON CONFLICT (project_id, code_norm) DO NOTHING
    RETURNING project_id, id, code, campaign_id
)
INSERT INTO vf.outbox (project_id, event, subject, data)
SELECT m.project_id, 'voucher.issued', m.id, jsonb_build_object('code', m.code, 'campaign_id', m.campaign_id) FROM made m;

-- name: add_pooled :exec
-- Adds vouchers to a campaign's pool; codes that are taken are left out.
INSERT INTO vf.vouchers (project_id, id, code, code_norm, campaign_id, max_redemptions, is_pooled)
SELECT @project_id, q.id, q.code, q.norm, @campaign_id, @max_redemptions, true
  FROM unnest(@ids::uuid[], @codes::text[], @norms::text[]) AS q (id, code, norm)
    ON CONFLICT (project_id, code_norm) DO NOTHING;

-- name: take_pooled :one
-- Gives the oldest voucher of a pool that nobody else is taking to a customer; no row where the pool is empty.
WITH taken AS (
    UPDATE vf.vouchers v SET is_pooled = false, holder = @holder, expires_at = @expires_at, updated_at = clock_timestamp()
     WHERE v.project_id = @project_id AND v.id = (
           SELECT k.id FROM vf.vouchers k
            WHERE k.campaign_id = @campaign_id AND k.project_id = @project_id AND k.is_pooled
            ORDER BY k.id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED)
    RETURNING v.project_id, v.id, v.code, v.campaign_id
), told AS (
    INSERT INTO vf.outbox (project_id, event, subject, data)
    SELECT t.project_id, 'voucher.issued', t.id, jsonb_build_object('code', t.code, 'campaign_id', t.campaign_id) FROM taken t
)
SELECT t.id FROM taken t;

-- name: join :exec
-- Writes down that a customer has a code of a campaign; who has one already stays, after waiting for them.
INSERT INTO vf.campaign_members (project_id, campaign_id, customer_id, voucher_id)
VALUES (@project_id, @campaign_id, @customer_id, @voucher_id)
    ON CONFLICT (customer_id, campaign_id, project_id) DO NOTHING;

-- name: joined :one
-- The code that a customer has of a campaign.
SELECT v.code FROM vf.campaign_members m
  JOIN vf.vouchers v ON v.project_id = m.project_id AND v.id = m.voucher_id
 WHERE m.customer_id = @customer_id AND m.campaign_id = @campaign_id AND m.project_id = @project_id;

-- name: pools :many
-- Operator: campaigns whose pool lacks codes.
SELECT c.project_id, c.id
  FROM vf.campaigns c
 WHERE c.kind = 'auto_refill' AND c.status = 'active' AND coalesce(c.expires_at > now(), true)
   AND (SELECT count(*) FROM (SELECT 1 FROM vf.vouchers v
                               WHERE v.campaign_id = c.id AND v.project_id = c.project_id AND v.is_pooled
                               LIMIT (c.issuing ->> 'pool_size')::bigint) p) < (c.issuing ->> 'pool_size')::bigint
 ORDER BY c.id LIMIT 100;

-- name: lock_pool :one
-- How many codes a pool lacks, with its campaign locked; no row where somebody else is filling it.
SELECT c.issuing,
       (c.issuing ->> 'pool_size')::bigint - (
           SELECT count(*) FROM vf.vouchers v
            WHERE v.campaign_id = c.id AND v.project_id = c.project_id AND v.is_pooled) AS missing
  FROM vf.campaigns c
 WHERE c.project_id = @project_id AND c.id = @id AND c.status = 'active'
   FOR NO KEY UPDATE SKIP LOCKED;
