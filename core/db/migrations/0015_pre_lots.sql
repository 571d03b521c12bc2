-- Several vouchers in one read and in one commit.

-- What prices are computed from and where vouchers redeem now, with the versions that a redeem must state.
CREATE FUNCTION vf.terms_of(p_project uuid, p_codes text[])
RETURNS TABLE (project_id uuid, voucher_id uuid, code text, code_norm text, terms_version bigint, campaign_id uuid,
               campaign_version bigint, sale_id uuid, authority text, sale_only boolean, discount_type text,
               discount_bp integer, discount_minor bigint, min_order_minor bigint, needs_customer boolean,
               crowd_version bigint, owns_discount boolean, promotion jsonb, campaign_promotion jsonb)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    RETURN QUERY
    SELECT v.project_id, v.id, v.code, v.code_norm, v.terms_version, v.campaign_id, c.terms_version, v.flash_sale_id,
           v.authority, v.sale_only, coalesce(v.discount_type, c.discount_type),
           CASE WHEN v.discount_type IS NULL THEN c.discount_bp ELSE v.discount_bp END,
           CASE WHEN v.discount_type IS NULL THEN c.discount_minor ELSE v.discount_minor END,
           greatest(v.min_order_minor, c.min_order_minor),
           v.per_customer_limit IS NOT NULL OR c.per_customer_limit IS NOT NULL,
           v.crowd_version, v.discount_type IS NOT NULL, v.promotion, c.promotion
      FROM unnest(p_codes) AS q (code)
     CROSS JOIN LATERAL (
           SELECT k.* FROM vf.vouchers k WHERE k.project_id = p_project AND k.code_norm = q.code LIMIT 1) v
      LEFT JOIN LATERAL (
           SELECT k.* FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = v.campaign_id LIMIT 1) c ON true;
END $$;

-- redeem_many for several vouchers, none of them under a campaign, in one commit: each is decided for itself. Vouchers
-- come in id order, so that nobody waits for each other in a circle. p_starts cuts the arrays: lot i is voucher
-- p_vouchers[i], items p_starts[i] .. p_starts[i + 1] - 1; ord counts in the lot.
CREATE FUNCTION vf.redeem_lots(
    p_project uuid, p_vouchers uuid[], p_versions bigint[], p_sales uuid[], p_starts integer[],
    p_ids uuid[], p_keys text[], p_fingerprints bytea[], p_customers text[],
    p_order_values bigint[], p_discounts bigint[], p_order_ids text[], p_metadata text[])
RETURNS TABLE (lot integer, ord bigint, outcome text, id uuid, seq bigint, remaining bigint, redeemed_at timestamptz,
               order_value_minor bigint, discount_minor bigint, existing uuid, sale uuid)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    i integer;
    a integer;
    z integer;
BEGIN
    FOR i IN 1 .. cardinality(p_vouchers) LOOP
        a := p_starts[i];
        z := coalesce(p_starts[i + 1], cardinality(p_ids) + 1) - 1;
        RETURN QUERY SELECT i, r.ord, r.outcome, r.id, r.seq, r.remaining, r.redeemed_at, r.order_value_minor,
                            r.discount_minor, r.existing, r.sale
          FROM vf.redeem_many(p_project, p_vouchers[i], p_versions[i], NULL, NULL, p_sales[i],
                   p_ids[a:z], p_keys[a:z], p_fingerprints[a:z], p_customers[a:z], p_order_values[a:z],
                   p_discounts[a:z], p_order_ids[a:z], p_metadata[a:z]) r;
    END LOOP;
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
