-- Promotions: discounts, rules, schedules and budgets beyond plain terms. All columns are empty for what is there.

ALTER TABLE vf.campaigns
    ADD COLUMN promotion jsonb,
    ADD COLUMN expires_after_days integer CHECK (expires_after_days > 0),
    DROP CONSTRAINT campaigns_discount_type_check,
    ADD CONSTRAINT campaigns_discount_type_check CHECK (discount_type IN ('PERCENT', 'AMOUNT', 'FIXED', 'FREE_SHIPPING', 'FREE_ITEM')),
    ADD CONSTRAINT campaigns_plain CHECK (promotion IS NOT NULL OR discount_type IN ('PERCENT', 'AMOUNT'));

ALTER TABLE vf.vouchers
    ADD COLUMN promotion jsonb,
    DROP CONSTRAINT vouchers_discount_type_check,
    ADD CONSTRAINT vouchers_discount_type_check CHECK (discount_type IN ('PERCENT', 'AMOUNT', 'FIXED', 'FREE_SHIPPING', 'FREE_ITEM')),
    ADD CONSTRAINT vouchers_plain CHECK (promotion IS NOT NULL OR discount_type IN ('PERCENT', 'AMOUNT'));

ALTER TABLE vf.redemptions ADD COLUMN detail jsonb;

-- Sums that are capped, of a voucher or campaign (scope_id): what label adds up, for one customer (subject) or all
-- (empty), in one day, week or month (period) or for ever (empty). reached_at: when it was first found spent.
CREATE TABLE vf.budgets (
    project_id          uuid NOT NULL REFERENCES vf.projects (id),
    scope_id            uuid NOT NULL,
    label               text NOT NULL,
    subject             text NOT NULL,
    period              text NOT NULL,
    used                bigint NOT NULL CHECK (used >= 0),
    used_max            bigint NOT NULL,
    reached_at          timestamptz,
    PRIMARY KEY (subject, period, label, scope_id, project_id),
    CONSTRAINT budgets_never_over CHECK (used <= used_max)
) WITH (fillfactor = 80);

ALTER TABLE vf.budgets ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.budgets FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.budgets TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.budgets TO vf_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON vf.budgets TO vf_app, vf_worker;

-- Redeems one code, or several for one order: all or nothing, in one commit. Each is priced beforehand; p_takings says
-- what it takes of which budget, by its place in the arrays. Answers a row a code (redeemed, or replayed or mismatch
-- where the key was used before), or one row for the first code that is refused: then nothing was written but that a
-- budget was reached. Rerouted: a flash sale holds the voucher. Locks campaigns, vouchers (each in id order), customers.
CREATE FUNCTION vf.redeem_order(
    p_project uuid, p_customer text, p_order_id text, p_order_value bigint, p_metadata text, p_fingerprint bytea,
    p_vouchers uuid[], p_versions bigint[], p_campaigns uuid[], p_campaign_versions bigint[],
    p_ids uuid[], p_keys text[], p_discounts bigint[], p_details text[], p_takings jsonb)
RETURNS TABLE (ord bigint, outcome text, id uuid, seq bigint, remaining bigint, redeemed_at timestamptz,
               order_value_minor bigint, discount_minor bigint, detail jsonb, existing uuid, label text, used bigint)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    c vf.campaigns;
    v vf.vouchers;
    b vf.budgets;
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
                WHEN c.status = 'paused' THEN 'paused'
                WHEN v_at < v.starts_at OR v_at < c.starts_at THEN 'not_started'
                WHEN v_at >= v.expires_at OR v_at >= c.expires_at THEN 'voucher_expired'
                WHEN p_customer IS NULL AND (v.per_customer_limit IS NOT NULL OR c.per_customer_limit IS NOT NULL)
                     THEN 'customer_required'
                WHEN v_rest <= 0 THEN 'limit_reached'
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
    RETURN QUERY
    SELECT q.ord, 'redeemed', q.id, r.seq, r.remaining, r.redeemed_at, r.order_value_minor, r.discount_minor,
           r.detail, NULL::uuid, NULL, NULL::bigint
      FROM unnest(p_vouchers, p_ids, p_keys) WITH ORDINALITY AS q (voucher, id, key, ord)
     CROSS JOIN LATERAL (
           SELECT k.* FROM vf.redemptions k
            WHERE k.idempotency_key = q.key AND k.voucher_id = q.voucher AND k.project_id = p_project LIMIT 1) r;
END $$;

CREATE OR REPLACE FUNCTION vf.roll_back(p_project uuid, p_id uuid, p_reason text, p_window interval)
RETURNS TABLE (outcome text, voucher_id uuid, lease_id uuid, lease_state text, customer_id text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    r vf.redemptions;
    v_state text;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO r FROM vf.redemptions k
     WHERE k.project_id = p_project AND k.id = p_id AND k.redeemed_at > '-infinity';
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'not_found', NULL::uuid, NULL::uuid, NULL, NULL;
        RETURN;
    END IF;
    PERFORM 1 FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = r.campaign_id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = r.voucher_id FOR NO KEY UPDATE;
    IF r.granted_size IS NOT NULL THEN
        SELECT k.state INTO v_state FROM vf.leases k
         WHERE k.project_id = p_project AND k.id = r.lease_id FOR SHARE;
    END IF;
    UPDATE vf.redemptions k
       SET status = 'rolled_back', rolled_back_at = clock_timestamp(), rollback_reason = p_reason
     WHERE k.lease_id = r.lease_id AND k.seq = r.seq AND k.status = 'redeemed'
       AND k.redeemed_at > clock_timestamp() - p_window;
    IF NOT FOUND THEN
        SELECT * INTO r FROM vf.redemptions k WHERE k.lease_id = r.lease_id AND k.seq = r.seq;
        RETURN QUERY SELECT CASE r.status WHEN 'rolled_back' THEN 'already_rolled_back'
                                          ELSE 'rollback_window_passed' END,
                            r.voucher_id, NULL::uuid, NULL, NULL;
        RETURN;
    END IF;
    UPDATE vf.campaigns k
       SET direct_count = k.direct_count - (r.granted_size IS NULL)::int,
           leased_count = k.leased_count - (r.granted_size IS NOT NULL)::int
     WHERE k.project_id = p_project AND k.id = r.campaign_id;
    UPDATE vf.vouchers k
       SET direct_count = k.direct_count - (r.granted_size IS NULL)::int,
           leased_count = k.leased_count - (r.granted_size IS NOT NULL)::int,
           crowd_version = k.crowd_version + 1
     WHERE k.project_id = p_project AND k.id = r.voucher_id;
    UPDATE vf.flash_sales k
       SET sold_count = k.sold_count - (r.granted_size IS NULL)::int,
           leased_count = k.leased_count - (r.granted_size IS NOT NULL)::int
     WHERE k.project_id = p_project AND k.id = r.sale_id;
    -- The counts of an open lease live in Redis and reach these rows when it settles.
    IF v_state IS NULL OR v_state = 'settled' THEN
        UPDATE vf.customer_counts k SET live_count = k.live_count - 1
         WHERE k.customer_id = r.customer_id AND k.scope_id IN (r.voucher_id, r.campaign_id)
           AND k.project_id = p_project AND k.live_count > 0;
    END IF;
    UPDATE vf.budgets k SET used = k.used - t.used, reached_at = NULL
      FROM jsonb_populate_recordset(NULL::vf.budgets, r.detail -> 'takings') t
     WHERE k.subject = t.subject AND k.period = t.period AND k.label = t.label AND k.scope_id = t.scope_id
       AND k.project_id = p_project;
    INSERT INTO vf.outbox (project_id, event, subject, data)
    VALUES (p_project, 'redemption.rolled_back', r.id, jsonb_build_object('reason', p_reason));
    RETURN QUERY SELECT 'rolled_back', r.voucher_id, CASE WHEN v_state IS NOT NULL THEN r.lease_id END, v_state,
                        r.customer_id;
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
