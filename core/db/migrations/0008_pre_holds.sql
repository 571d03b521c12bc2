-- Holds: a use kept for a checkout, and codes redeemed together.

ALTER TABLE vf.campaigns
    ADD COLUMN held_count bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT campaigns_held CHECK (held_count BETWEEN 0 AND direct_count);
ALTER TABLE vf.vouchers
    ADD COLUMN held_count bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT vouchers_held CHECK (held_count BETWEEN 0 AND direct_count);

-- A use that is kept for a checkout until expires_at. It is taken of every limit and budget as if it were redeemed;
-- takings says of which budgets. The redemption it becomes has its id.
CREATE TABLE vf.holds (
    project_id      uuid NOT NULL REFERENCES vf.projects (id),
    id              uuid NOT NULL,
    voucher_id      uuid NOT NULL,
    campaign_id     uuid,
    customer_id     text,
    status          text NOT NULL DEFAULT 'held' CHECK (status IN ('held', 'redeemed', 'released', 'expired')),
    discount_minor  bigint NOT NULL CHECK (discount_minor >= 0),
    detail          jsonb NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at      timestamptz NOT NULL,
    ended_at        timestamptz,
    PRIMARY KEY (project_id, id),
    CONSTRAINT holds_voucher FOREIGN KEY (project_id, voucher_id) REFERENCES vf.vouchers (project_id, id),
    CONSTRAINT holds_ended CHECK ((status = 'held') = (ended_at IS NULL))
);
CREATE INDEX holds_due ON vf.holds (expires_at) WHERE status = 'held';
CREATE INDEX holds_of_voucher ON vf.holds (voucher_id, expires_at) WHERE status = 'held';

ALTER TABLE vf.holds ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.holds FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.holds TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.holds TO vf_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON vf.holds TO vf_app, vf_worker;

-- Ends a live hold as released, redeemed or expired (only once its time is over) and gives back what it took; false
-- where it was not live any more. Locks campaign, voucher.
CREATE FUNCTION vf.end_hold(p_project uuid, p_id uuid, p_status text)
RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    h vf.holds;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO h FROM vf.holds k WHERE k.project_id = p_project AND k.id = p_id;
    PERFORM 1 FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = h.campaign_id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = h.voucher_id FOR NO KEY UPDATE;
    UPDATE vf.holds k SET status = p_status, ended_at = clock_timestamp()
     WHERE k.project_id = p_project AND k.id = p_id AND k.status = 'held'
       AND (p_status <> 'expired' OR k.expires_at <= clock_timestamp());
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE vf.campaigns k SET direct_count = k.direct_count - 1, held_count = k.held_count - 1
     WHERE k.project_id = p_project AND k.id = h.campaign_id;
    UPDATE vf.vouchers k
       SET direct_count = k.direct_count - 1, held_count = k.held_count - 1, crowd_version = k.crowd_version + 1
     WHERE k.project_id = p_project AND k.id = h.voucher_id;
    UPDATE vf.customer_counts k SET live_count = k.live_count - 1
     WHERE k.customer_id = h.customer_id AND k.scope_id IN (h.voucher_id, h.campaign_id)
       AND k.project_id = p_project AND k.live_count > 0;
    UPDATE vf.budgets k SET used = k.used - t.used, reached_at = NULL
      FROM jsonb_populate_recordset(NULL::vf.budgets, h.detail -> 'takings') t
     WHERE k.subject = t.subject AND k.period = t.period AND k.label = t.label AND k.scope_id = t.scope_id
       AND k.project_id = p_project;
    RETURN true;
END $$;

-- Redeems one code, or several for one order: all or nothing, in one commit. With p_hold_s the uses are held for so
-- many seconds instead; p_holds says which hold of each code is redeemed by this, whose use is given back first. Each is priced beforehand; p_takings says
-- what it takes of which budget, by its place in the arrays. Answers a row a code (redeemed, or replayed or mismatch
-- where the key was used before), or one row for the first code that is refused: then nothing was written but that a
-- budget was reached. Rerouted: a flash sale holds the voucher. Locks campaigns, vouchers (each in id order), customers.
CREATE FUNCTION vf.redeem_order(
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

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
