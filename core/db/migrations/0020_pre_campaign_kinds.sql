-- Kinds of campaigns, drafts, and what the clock tells of them.

ALTER TABLE vf.campaigns
    DROP CONSTRAINT campaigns_status_check,
    ADD CONSTRAINT campaigns_status_check CHECK (status IN ('draft', 'active', 'paused', 'ended')),
    ADD COLUMN kind text NOT NULL DEFAULT 'codes'
        CHECK (kind IN ('codes', 'standalone', 'automatic', 'auto_refill', 'join_once')),
    ADD COLUMN code text,
    ADD COLUMN issuing jsonb,
    -- Nothing is told late of campaigns that are there already.
    ADD COLUMN started_at timestamptz DEFAULT now(),
    ADD COLUMN ended_at timestamptz,
    ADD CONSTRAINT campaigns_code CHECK ((code IS NOT NULL) = (kind IN ('standalone', 'automatic')));
ALTER TABLE vf.campaigns ALTER COLUMN started_at DROP DEFAULT;
CREATE INDEX campaigns_to_start ON vf.campaigns (starts_at) WHERE started_at IS NULL AND status = 'active';
CREATE INDEX campaigns_to_end ON vf.campaigns (expires_at) WHERE ended_at IS NULL AND started_at IS NOT NULL;
CREATE INDEX campaigns_with_pools ON vf.campaigns (id) WHERE kind = 'auto_refill' AND status = 'active';

ALTER TABLE vf.vouchers ADD COLUMN is_pooled boolean NOT NULL DEFAULT false;
CREATE INDEX vouchers_pooled ON vf.vouchers (campaign_id, id) WHERE is_pooled;

-- Who has a code of a campaign that gives each customer one, and which.
CREATE TABLE vf.campaign_members (
    project_id   uuid NOT NULL,
    campaign_id  uuid NOT NULL,
    customer_id  text NOT NULL,
    voucher_id   uuid NOT NULL,
    joined_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (customer_id, campaign_id, project_id),
    CONSTRAINT campaign_members_campaign FOREIGN KEY (project_id, campaign_id)
        REFERENCES vf.campaigns (project_id, id),
    CONSTRAINT campaign_members_voucher FOREIGN KEY (project_id, voucher_id)
        REFERENCES vf.vouchers (project_id, id) DEFERRABLE INITIALLY DEFERRED
);

ALTER TABLE vf.campaign_members ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.campaign_members FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.campaign_members TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.campaign_members TO vf_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON vf.campaign_members TO vf_app, vf_worker;

-- A draft's vouchers are not redeemed yet.
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
            v_is_mixed := (SELECT count(DISTINCT q.customer) < v_n FROM unnest(p_customers) AS q (customer))
                OR EXISTS (SELECT 1 FROM unnest(p_customers) AS q (customer) CROSS JOIN LATERAL (
                       SELECT 1 FROM vf.customer_counts k WHERE k.customer_id = q.customer
                          AND k.scope_id = p_voucher AND k.project_id = p_project
                          AND k.live_count >= v.per_customer_limit LIMIT 1) r);
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
            IF v.per_customer_limit IS NOT NULL THEN
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

CREATE OR REPLACE FUNCTION vf.redeem_order(
    p_project uuid, p_customer text, p_order_id text, p_order_value bigint, p_metadata text, p_fingerprint bytea,
    p_vouchers uuid[], p_versions bigint[], p_campaigns uuid[], p_campaign_versions bigint[],
    p_ids uuid[], p_keys text[], p_discounts bigint[], p_details text[], p_takings jsonb,
    p_holds uuid[], p_hold_s bigint)
RETURNS TABLE (ord bigint, outcome text, id uuid, seq bigint, remaining bigint, redeemed_at timestamptz,
               order_value_minor bigint, discount_minor bigint, detail jsonb, existing uuid, label text, used bigint)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    c vf.campaigns;
    v vf.vouchers;
    b vf.budgets;
    h vf.holds;
    t record;
    v_at timestamptz;
    v_ord integer;
    v_seen bigint;
    v_rest bigint;
    v_outcome text;
    v_existing uuid;
    v_taking jsonb;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    PERFORM 1 FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = ANY (p_campaigns)
      ORDER BY k.id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = ANY (p_vouchers)
      ORDER BY k.id FOR NO KEY UPDATE;
    v_at := clock_timestamp();
    RETURN QUERY
    SELECT q.ord, CASE WHEN r.fingerprint = p_fingerprint THEN 'replayed' ELSE 'mismatch' END, r.id,
           coalesce(r.sale_seq, r.seq), r.remaining, r.redeemed_at, r.order_value_minor, r.discount_minor, r.detail,
           NULL::uuid, NULL, NULL::bigint
      FROM unnest(p_vouchers, p_keys) WITH ORDINALITY AS q (voucher, key, ord)
     CROSS JOIN LATERAL (
           SELECT k.* FROM vf.redemptions k
            WHERE k.idempotency_key = q.key AND k.voucher_id = q.voucher AND k.project_id = p_project LIMIT 1) r;
    GET DIAGNOSTICS v_seen = ROW_COUNT;
    IF v_seen > 0 THEN
        RETURN;
    END IF;
    BEGIN
        FOR i IN 1 .. cardinality(p_vouchers) LOOP
            v_ord := i;
            IF p_holds[v_ord] IS NOT NULL THEN
                SELECT * INTO h FROM vf.holds k
                 WHERE k.project_id = p_project AND k.id = p_holds[v_ord] AND k.voucher_id = p_vouchers[v_ord];
                v_outcome := CASE WHEN h.id IS NULL OR h.customer_id IS DISTINCT FROM p_customer THEN 'no_hold'
                                  WHEN h.expires_at <= v_at OR NOT vf.end_hold(p_project, h.id, 'redeemed')
                                       THEN 'hold_expired' END;
                IF v_outcome IS NOT NULL THEN
                    RAISE SQLSTATE 'VF001';
                END IF;
            END IF;
            -- What ran out and nobody swept yet is no longer in the way.
            PERFORM vf.end_hold(p_project, k.id, 'expired') FROM vf.holds k
              WHERE k.voucher_id = p_vouchers[v_ord] AND k.project_id = p_project AND k.status = 'held'
                AND k.expires_at <= v_at;
            SELECT * INTO c FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = p_campaigns[v_ord];
            SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = p_vouchers[v_ord];
            v_rest := least(v.max_redemptions - v.direct_count - v.leased_count,
                            c.max_redemptions - c.direct_count - c.leased_count);
            v_outcome := CASE
                WHEN v.id IS NULL THEN 'not_found'
                WHEN v.authority <> 'pg' OR v.flash_sale_id IS NOT NULL OR v.sale_only THEN 'rerouted'
                WHEN v.terms_version <> p_versions[v_ord] OR v.campaign_id IS DISTINCT FROM p_campaigns[v_ord]
                  OR c.terms_version <> p_campaign_versions[v_ord] THEN 'repriced'
                WHEN v.status <> 'active' THEN 'voucher_inactive'
                WHEN c.status = 'ended' THEN 'ended'
                WHEN c.status = 'draft' THEN 'not_started'
                WHEN c.status = 'paused' THEN 'paused'
                WHEN v_at < v.starts_at OR v_at < c.starts_at THEN 'not_started'
                WHEN v_at >= v.expires_at OR v_at >= c.expires_at THEN 'voucher_expired'
                WHEN p_customer IS NULL AND (v.per_customer_limit IS NOT NULL OR c.per_customer_limit IS NOT NULL)
                     THEN 'customer_required'
            END;
            IF v_outcome IS NOT NULL THEN
                RAISE SQLSTATE 'VF001';
            END IF;
            FOR t IN SELECT x.scope, x.most FROM (VALUES (v.id, v.per_customer_limit), (c.id, c.per_customer_limit))
                         AS x (scope, most) WHERE x.most IS NOT NULL ORDER BY x.scope
            LOOP
                INSERT INTO vf.customer_counts AS k
                       (project_id, scope_id, customer_id, live_count, limit_max, last_redemption_id)
                VALUES (p_project, t.scope, p_customer, 1, t.most, p_ids[v_ord])
                    ON CONFLICT (customer_id, scope_id, project_id) DO UPDATE
                       SET live_count = k.live_count + 1, limit_max = excluded.limit_max,
                           last_redemption_id = excluded.last_redemption_id
                     WHERE k.live_count < excluded.limit_max;
                IF NOT FOUND THEN
                    v_outcome := 'customer_limit_reached';
                    SELECT k.last_redemption_id INTO v_existing FROM vf.customer_counts k
                     WHERE k.customer_id = p_customer AND k.scope_id = t.scope AND k.project_id = p_project;
                    RAISE SQLSTATE 'VF001';
                END IF;
            END LOOP;
            IF v_rest <= 0 THEN
                v_outcome := 'limit_reached';
                RAISE SQLSTATE 'VF001';
            END IF;
            FOR v_taking IN SELECT x FROM jsonb_array_elements(p_takings -> (v_ord - 1)) x
            LOOP
                SELECT * INTO b FROM jsonb_populate_record(NULL::vf.budgets, v_taking);
                INSERT INTO vf.budgets AS k (project_id, scope_id, label, subject, period, used, used_max, reached_at)
                SELECT p_project, b.scope_id, b.label, b.subject, b.period, b.used, b.used_max,
                       CASE WHEN b.used = b.used_max THEN v_at END
                 WHERE b.used <= b.used_max
                    ON CONFLICT (subject, period, label, scope_id, project_id) DO UPDATE
                       SET used = k.used + excluded.used, used_max = excluded.used_max,
                           reached_at = CASE WHEN k.used + excluded.used = excluded.used_max
                                             THEN coalesce(k.reached_at, v_at) ELSE k.reached_at END
                     WHERE k.used + excluded.used <= excluded.used_max
                RETURNING k.used, k.used_max INTO v_seen, v_rest;
                IF NOT FOUND THEN
                    v_outcome := 'budget';
                    RAISE SQLSTATE 'VF001';
                END IF;
                IF v_seen = v_rest AND b.subject = '' AND b.scope_id = c.id THEN
                    INSERT INTO vf.outbox (project_id, event, subject, data)
                    VALUES (p_project, 'campaign.budget_reached', c.id, v_taking || jsonb_build_object('used', v_seen));
                END IF;
            END LOOP;
            v_rest := least(v.max_redemptions - v.direct_count - v.leased_count,
                            c.max_redemptions - c.direct_count - c.leased_count) - 1;
            IF p_hold_s IS NOT NULL THEN
                INSERT INTO vf.holds (project_id, id, voucher_id, campaign_id, customer_id, discount_minor, detail,
                                      expires_at)
                VALUES (p_project, p_ids[v_ord], v.id, c.id, p_customer, p_discounts[v_ord],
                        p_details[v_ord]::jsonb, v_at + make_interval(secs => p_hold_s));
                UPDATE vf.vouchers k SET direct_count = k.direct_count + 1, held_count = k.held_count + 1
                 WHERE k.project_id = p_project AND k.id = v.id;
                UPDATE vf.campaigns k SET direct_count = k.direct_count + 1, held_count = k.held_count + 1
                 WHERE k.project_id = p_project AND k.id = c.id;
            ELSE
                INSERT INTO vf.redemptions (project_id, lease_id, seq, id, voucher_id, campaign_id, idempotency_key,
                       fingerprint, customer_id, order_id, order_value_minor, discount_minor, remaining, metadata,
                       redeemed_at, detail)
                VALUES (p_project, v.id, v.next_number, p_ids[v_ord], v.id, c.id, p_keys[v_ord], p_fingerprint, p_customer,
                        p_order_id, p_order_value, p_discounts[v_ord], v_rest, p_metadata::jsonb, v_at,
                        p_details[v_ord]::jsonb);
                UPDATE vf.vouchers k SET direct_count = k.direct_count + 1, next_number = k.next_number + 1
                 WHERE k.project_id = p_project AND k.id = v.id;
                UPDATE vf.campaigns k SET direct_count = k.direct_count + 1
                 WHERE k.project_id = p_project AND k.id = c.id;
                INSERT INTO vf.outbox (project_id, event, subject, data)
                VALUES (p_project, 'voucher.redeemed', v.id, jsonb_build_object('first', v.next_number, 'count', 1));
            END IF;
        END LOOP;
    EXCEPTION WHEN SQLSTATE 'VF001' THEN
        v_seen := NULL;
        IF v_outcome = 'budget' THEN
            SELECT k.used INTO v_seen FROM vf.budgets k
             WHERE k.subject = b.subject AND k.period = b.period AND k.label = b.label AND k.scope_id = b.scope_id
               AND k.project_id = p_project;
            -- The first that no longer fits tells that the budget is spent, once.
            UPDATE vf.budgets k SET reached_at = v_at
             WHERE k.subject = b.subject AND k.period = b.period AND k.label = b.label AND k.scope_id = b.scope_id
               AND k.project_id = p_project AND k.reached_at IS NULL;
            IF FOUND AND b.subject = '' AND b.scope_id = c.id THEN
                INSERT INTO vf.outbox (project_id, event, subject, data)
                VALUES (p_project, 'campaign.budget_reached', c.id, v_taking || jsonb_build_object('used', v_seen));
            END IF;
        END IF;
        RETURN QUERY SELECT v_ord::bigint, v_outcome, NULL::uuid, NULL::bigint, NULL::bigint, NULL::timestamptz,
                            NULL::bigint, NULL::bigint, v_taking, v_existing, b.label, coalesce(v_seen, 0);
        RETURN;
    END;
    IF p_hold_s IS NOT NULL THEN
        RETURN QUERY
        SELECT q.ord, 'held', q.id, NULL::bigint, NULL::bigint, NULL::timestamptz, NULL::bigint, q.discount, NULL::jsonb,
               NULL::uuid, NULL, NULL::bigint
          FROM unnest(p_ids, p_discounts) WITH ORDINALITY AS q (id, discount, ord);
        RETURN;
    END IF;
    RETURN QUERY
    SELECT q.ord, 'redeemed', q.id, r.seq, r.remaining, r.redeemed_at, r.order_value_minor, r.discount_minor,
           r.detail, NULL::uuid, NULL, NULL::bigint
      FROM unnest(p_vouchers, p_ids, p_keys) WITH ORDINALITY AS q (voucher, id, key, ord)
     CROSS JOIN LATERAL (
           SELECT k.* FROM vf.redemptions k
            WHERE k.idempotency_key = q.key AND k.voucher_id = q.voucher AND k.project_id = p_project LIMIT 1) r;
END $$;
