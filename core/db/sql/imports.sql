-- Vouchers from elsewhere.

-- name: store :many
-- Stores rows given as columns of vf.vouchers and returns the codes that were not there.
INSERT INTO vf.vouchers (
    project_id, id, code, code_norm, status, campaign_id, discount_type, discount_bp, discount_minor,
    min_order_minor, max_redemptions, per_customer_limit, starts_at, expires_at, metadata, promotion,
    holder)
SELECT t.project_id, t.id, t.code, t.code_norm, t.status, t.campaign_id, t.discount_type, t.discount_bp,
       t.discount_minor, t.min_order_minor, t.max_redemptions, t.per_customer_limit, t.starts_at, t.expires_at,
       t.metadata, t.promotion, t.holder
  FROM jsonb_populate_recordset(NULL::vf.vouchers, @rows) t
    ON CONFLICT (project_id, code_norm) DO NOTHING
RETURNING code_norm;
