-- Customers who are all new to a voucher are counted by a plain insert.

CREATE OR REPLACE FUNCTION vf.redeem_many(
    p_project uuid, p_voucher uuid, p_version bigint, p_campaign uuid, p_campaign_version bigint, p_sale uuid,
    p_ids uuid[], p_keys text[], p_fingerprints bytea[], p_customers text[],
    p_order_values bigint[], p_discounts bigint[], p_order_ids text[], p_metadata text[])
RETURNS TABLE (ord bigint, outcome text, id uuid, seq bigint, remaining bigint, redeemed_at timestamptz,
               order_value_minor bigint, discount_minor bigint, existing uuid, sale uuid)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v vf.vouchers;
    c vf.campaigns;
    s vf.flash_sales;
    v_at timestamptz;
    v_verdict text;
    v_rest bigint;
    v_over text := 'limit_reached';
    v_n bigint := cardinality(p_ids);
    v_is_mixed boolean := false;
    v_known bigint := 0;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    IF p_campaign IS NOT NULL THEN
        SELECT * INTO c FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = p_campaign FOR NO KEY UPDATE;
    END IF;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = p_voucher FOR NO KEY UPDATE;
    IF p_sale IS NOT NULL THEN
        SELECT * INTO s FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = p_sale FOR NO KEY UPDATE;
        v_over := 'sold_out';
    END IF;
    v_at := clock_timestamp();
    v_verdict := CASE
        WHEN v.id IS NULL THEN 'not_found'
        WHEN v.authority <> 'pg' THEN 'rerouted'
        WHEN v.terms_version <> p_version OR v.campaign_id IS DISTINCT FROM p_campaign
          OR c.terms_version <> p_campaign_version OR v.flash_sale_id IS DISTINCT FROM p_sale THEN 'repriced'
        WHEN v.status <> 'active' THEN 'voucher_inactive'
        WHEN c.status = 'ended' THEN 'ended'
        WHEN c.status = 'draft' THEN 'not_started'
        WHEN c.status = 'paused' OR s.status = 'paused' THEN 'paused'
        WHEN s.status = 'closed' OR s.status = 'settled' OR v_at >= s.ends_at THEN 'ended'
        WHEN v_at < s.starts_at OR v_at < v.starts_at OR v_at < c.starts_at THEN 'not_started'
        WHEN v_at >= v.expires_at OR v_at >= c.expires_at THEN 'voucher_expired'
        WHEN v.sale_only AND p_sale IS NULL THEN 'no_sale'
    END;
    v_rest := least(v.max_redemptions - v.direct_count - v.leased_count,
                    c.max_redemptions - c.direct_count - c.leased_count,
                    s.stock - s.sold_count - s.leased_count);
    -- The common case in a few plain statements: there is enough for all, nobody asked before, and every customer is
    -- a different one below the limit. One row answers all; whatever is mixed takes the general way below.
    IF v_verdict IS NULL AND p_campaign IS NULL AND (v_rest IS NULL OR v_rest >= v_n)
       AND NOT EXISTS (SELECT 1 FROM unnest(p_keys) AS q (key) CROSS JOIN LATERAL (
               SELECT 1 FROM vf.redemptions k WHERE k.idempotency_key = q.key AND k.voucher_id = p_voucher
                  AND k.project_id = p_project LIMIT 1) r) THEN
        IF v.per_customer_limit IS NOT NULL THEN
            SELECT count(DISTINCT q.customer) < v_n OR coalesce(max(r.live_count) >= v.per_customer_limit, false),
                   count(r.live_count)
              INTO v_is_mixed, v_known
              FROM unnest(p_customers) AS q (customer) LEFT JOIN LATERAL (
                   SELECT k.live_count FROM vf.customer_counts k WHERE k.customer_id = q.customer
                      AND k.scope_id = p_voucher AND k.project_id = p_project LIMIT 1) r ON true;
        END IF;
        IF NOT v_is_mixed THEN
            INSERT INTO vf.redemptions (project_id, lease_id, seq, id, voucher_id, sale_id, sale_seq, idempotency_key,
                   fingerprint, customer_id, order_id, order_value_minor, discount_minor, remaining, metadata,
                   redeemed_at)
            SELECT p_project, p_voucher, v.next_number + q.ord - 1, q.id, p_voucher, p_sale,
                   CASE WHEN p_sale IS NOT NULL THEN v.next_number + q.ord - 1 - s.seq_base END,
                   q.key, q.fingerprint, q.customer, q.order_id, q.order_value, q.discount, v_rest - q.ord,
                   q.metadata::jsonb, v_at
              FROM unnest(p_ids, p_keys, p_fingerprints, p_customers, p_order_values, p_discounts, p_order_ids,
                          p_metadata) WITH ORDINALITY
                AS q (id, key, fingerprint, customer, order_value, discount, order_id, metadata, ord);
            IF v.per_customer_limit IS NOT NULL AND v_known = 0 THEN
                -- Who came meanwhile makes this fail, and each be asked again alone.
                INSERT INTO vf.customer_counts
                       (project_id, scope_id, customer_id, live_count, limit_max, last_redemption_id)
                SELECT p_project, p_voucher, q.customer, 1, v.per_customer_limit, q.id
                  FROM unnest(p_customers, p_ids) AS q (customer, id) ORDER BY q.customer;
            ELSIF v.per_customer_limit IS NOT NULL THEN
                INSERT INTO vf.customer_counts AS k
                       (project_id, scope_id, customer_id, live_count, limit_max, last_redemption_id)
                SELECT p_project, p_voucher, q.customer, 1, v.per_customer_limit, q.id
                  FROM unnest(p_customers, p_ids) AS q (customer, id) ORDER BY q.customer
                    ON CONFLICT (customer_id, scope_id, project_id) DO UPDATE
                       SET live_count = k.live_count + 1, limit_max = excluded.limit_max,
                           last_redemption_id = excluded.last_redemption_id;
            END IF;
            UPDATE vf.vouchers k SET direct_count = k.direct_count + v_n, next_number = k.next_number + v_n
             WHERE k.project_id = p_project AND k.id = p_voucher;
            IF p_sale IS NOT NULL THEN
                UPDATE vf.flash_sales k SET sold_count = k.sold_count + v_n
                 WHERE k.project_id = p_project AND k.id = p_sale;
            END IF;
            INSERT INTO vf.outbox (project_id, event, subject, data)
            VALUES (p_project, 'voucher.redeemed', p_voucher,
                    jsonb_build_object('first', v.next_number, 'count', v_n));
            RETURN QUERY SELECT 0::bigint, 'redeemed', NULL::uuid, v.next_number - coalesce(s.seq_base, 0), v_rest - 1,
                                v_at, NULL::bigint, NULL::bigint, NULL::uuid, p_sale;
            RETURN;
        END IF;
    END IF;
    RETURN QUERY
    WITH req AS MATERIALIZED (
        SELECT q.* FROM unnest(p_ids, p_keys, p_fingerprints, p_customers, p_order_values, p_discounts,
                               p_order_ids, p_metadata) WITH ORDINALITY
            AS q (id, key, fingerprint, customer, order_value, discount, order_id, metadata, ord)
    ), seen AS MATERIALIZED (
        SELECT q.ord, q.fingerprint = r.fingerprint AS same, r.id, coalesce(r.sale_seq, r.seq) AS seq, r.remaining,
               r.redeemed_at, r.order_value_minor, r.discount_minor, r.sale_id
          FROM req q CROSS JOIN LATERAL (
               SELECT k.* FROM vf.redemptions k
                WHERE k.idempotency_key = q.key AND k.voucher_id = p_voucher AND k.project_id = p_project
                LIMIT 1) r
    ), fresh AS MATERIALIZED (
        SELECT q.*, CASE
                   WHEN v_verdict IS NOT NULL THEN v_verdict
                   WHEN q.customer IS NULL AND (v.per_customer_limit IS NOT NULL OR c.per_customer_limit IS NOT NULL)
                        THEN 'customer_required'
               END AS refusal,
               least(v.per_customer_limit - coalesce(vc.live_count, 0),
                     c.per_customer_limit - coalesce(cc.live_count, 0)) AS customer_rest,
               CASE WHEN vc.live_count >= v.per_customer_limit THEN vc.last_redemption_id
                    ELSE coalesce(cc.last_redemption_id, vc.last_redemption_id) END AS existing
          FROM req q
          LEFT JOIN LATERAL (
               SELECT k.live_count, k.last_redemption_id FROM vf.customer_counts k
                WHERE k.customer_id = q.customer AND k.scope_id = p_voucher AND k.project_id = p_project
                  AND v.per_customer_limit IS NOT NULL LIMIT 1) vc ON true
          LEFT JOIN LATERAL (
               SELECT k.live_count, k.last_redemption_id FROM vf.customer_counts k
                WHERE k.customer_id = q.customer AND k.scope_id = p_campaign AND k.project_id = p_project
                  AND c.per_customer_limit IS NOT NULL LIMIT 1) cc ON true
         WHERE NOT EXISTS (SELECT 1 FROM seen WHERE seen.ord = q.ord)
    ), counted AS MATERIALIZED (
        SELECT f.*, f.refusal IS NULL AND (f.customer_rest IS NULL OR f.customer_rest >= row_number() OVER (
                        PARTITION BY f.customer, f.refusal ORDER BY f.ord)) AS is_eligible
          FROM fresh f
    ), placed AS MATERIALIZED (
        SELECT f.*, row_number() OVER (PARTITION BY f.is_eligible ORDER BY f.ord) AS place FROM counted f
    ), wins AS MATERIALIZED (
        SELECT p.* FROM placed p WHERE p.is_eligible AND (v_rest IS NULL OR p.place <= v_rest)
    ), held AS MATERIALIZED (
        SELECT w.customer, count(*) AS n, (array_agg(w.id ORDER BY w.place DESC))[1] AS last_id
          FROM wins w WHERE w.customer_rest IS NOT NULL GROUP BY w.customer
    ), rows AS (
        INSERT INTO vf.redemptions (project_id, lease_id, seq, id, voucher_id, campaign_id, sale_id, sale_seq,
               idempotency_key, fingerprint, customer_id, order_id, order_value_minor, discount_minor, remaining,
               metadata, redeemed_at)
        SELECT p_project, p_voucher, v.next_number + w.place - 1, w.id, p_voucher, p_campaign, p_sale,
               CASE WHEN p_sale IS NOT NULL THEN v.next_number + w.place - 1 - s.seq_base END,
               w.key, w.fingerprint, w.customer, w.order_id, w.order_value, w.discount, v_rest - w.place,
               w.metadata::jsonb, v_at
          FROM wins w ORDER BY w.place
    ), counts AS (
        INSERT INTO vf.customer_counts AS k (project_id, scope_id, customer_id, live_count, limit_max, last_redemption_id)
        SELECT p_project, x.scope, h.customer, h.n, x.limit_max, h.last_id
          FROM held h CROSS JOIN (VALUES (p_voucher, v.per_customer_limit), (p_campaign, c.per_customer_limit))
               AS x (scope, limit_max)
         WHERE x.limit_max IS NOT NULL ORDER BY h.customer, x.scope
            ON CONFLICT (customer_id, scope_id, project_id) DO UPDATE
               SET live_count = k.live_count + excluded.live_count, limit_max = excluded.limit_max,
                   last_redemption_id = excluded.last_redemption_id
    ), total AS MATERIALIZED (
        SELECT count(*) AS n FROM wins
    ), voucher AS (
        UPDATE vf.vouchers k SET direct_count = k.direct_count + t.n, next_number = k.next_number + t.n
          FROM total t WHERE k.project_id = p_project AND k.id = p_voucher AND t.n > 0
    ), campaign AS (
        UPDATE vf.campaigns k SET direct_count = k.direct_count + t.n
          FROM total t WHERE k.project_id = p_project AND k.id = p_campaign AND t.n > 0
    ), sale AS (
        UPDATE vf.flash_sales k SET sold_count = k.sold_count + t.n
          FROM total t WHERE k.project_id = p_project AND k.id = p_sale AND t.n > 0
    ), event AS (
        INSERT INTO vf.outbox (project_id, event, subject, data)
        SELECT p_project, 'voucher.redeemed', p_voucher,
               jsonb_build_object('first', v.next_number, 'count', t.n)
          FROM total t WHERE t.n > 0
    )
    SELECT e.ord, CASE WHEN e.same THEN 'replayed' ELSE 'mismatch' END, e.id, e.seq, e.remaining, e.redeemed_at,
           e.order_value_minor, e.discount_minor, NULL::uuid, e.sale_id
      FROM seen e
    UNION ALL
    SELECT p.ord, CASE WHEN p.refusal IS NOT NULL THEN p.refusal
                       WHEN NOT p.is_eligible AND p.customer_rest <= coalesce(h.n, 0) THEN 'customer_limit_reached'
                       WHEN p.is_eligible AND (v_rest IS NULL OR p.place <= v_rest) THEN 'redeemed'
                       ELSE v_over END,
           p.id, v.next_number + p.place - 1 - coalesce(s.seq_base, 0), v_rest - p.place, v_at,
           p.order_value, p.discount, coalesce(h.last_id, p.existing), p_sale
      FROM placed p LEFT JOIN LATERAL (SELECT x.n, x.last_id FROM held x WHERE x.customer = p.customer) h ON true;
END $$;
