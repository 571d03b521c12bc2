-- Fraud: rules, alerts, block lists, and what was refused.

-- What a project changed of the rules (core/rules/fraud.py): those that are not in here are as they come.
CREATE TABLE vf.fraud_rules (
    project_id  uuid PRIMARY KEY REFERENCES vf.projects (id),
    rules       jsonb NOT NULL,
    version     bigint NOT NULL DEFAULT 1,
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What a rule found, once for a subject and window. subject: a customer, a code, the keyed hash of an address or device, or
-- an id, as subject_kind says. observed, expected: the largest seen in that window, and where the rule begins.
CREATE TABLE vf.fraud_alerts (
    project_id      uuid NOT NULL REFERENCES vf.projects (id),
    id              uuid NOT NULL,
    rule            text NOT NULL,
    subject_kind    text NOT NULL CHECK (subject_kind IN ('customer', 'code', 'address', 'device', 'campaign',
                                                          'redemption')),
    subject         text NOT NULL,
    window_at       timestamptz NOT NULL,
    at              timestamptz NOT NULL,
    score           integer NOT NULL CHECK (score BETWEEN 1 AND 100),
    observed        bigint NOT NULL,
    expected        bigint NOT NULL,
    reasons         jsonb NOT NULL,
    redemption_ids  uuid[] NOT NULL DEFAULT '{}',
    action          text NOT NULL CHECK (action IN ('alert', 'review', 'block')),
    status          text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'acknowledged', 'dismissed', 'confirmed')),
    note            text,
    decided_by      text,
    decided_at      timestamptz,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, id),
    CONSTRAINT fraud_alerts_once UNIQUE (subject, rule, window_at, subject_kind, project_id),
    CONSTRAINT fraud_alerts_decided CHECK ((status = 'open') = (decided_at IS NULL))
);
CREATE INDEX fraud_alerts_by_time ON vf.fraud_alerts (project_id, at);
CREATE INDEX fraud_alerts_undecided ON vf.fraud_alerts (project_id, id) WHERE status IN ('open', 'acknowledged');

-- Who and what is refused, until expires_at. value: the shop's id of a customer, a code as it is compared, or the keyed hash of
-- an address or device. A project without a row here pays for one look at an index, a batch.
CREATE TABLE vf.blocks (
    project_id  uuid NOT NULL REFERENCES vf.projects (id),
    id          uuid NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('customer', 'code', 'address', 'device')),
    value       text NOT NULL,
    reason      text,
    alert_id    uuid,
    created_by  text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz,
    PRIMARY KEY (project_id, kind, value),
    CONSTRAINT blocks_id_key UNIQUE (project_id, id),
    CONSTRAINT blocks_alert FOREIGN KEY (project_id, alert_id) REFERENCES vf.fraud_alerts (project_id, id)
);
CREATE INDEX blocks_due ON vf.blocks (expires_at) WHERE expires_at IS NOT NULL;

-- Append-only: what was refused, to whom, written down by each process once a second; numbers rise in the order of commits.
-- code: a keyed hash. address, device: as in vf.blocks.
CREATE TABLE vf.fraud_signals (
    project_id   uuid NOT NULL REFERENCES vf.projects (id),
    number       bigint GENERATED ALWAYS AS IDENTITY,
    at           timestamptz NOT NULL,
    reason       text NOT NULL,
    code         text NOT NULL,
    customer_id  text,
    address      text,
    device       text,
    PRIMARY KEY (number, project_id)
);
CREATE INDEX fraud_signals_by_time ON vf.fraud_signals (project_id, at);
CREATE INDEX fraud_signals_of_customer ON vf.fraud_signals (customer_id, project_id) WHERE customer_id IS NOT NULL;

-- Up to which event and which signal the rules have looked. One row.
CREATE TABLE vf.fraud_mark (
    only_row       boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    event_id       uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    signal_number  bigint NOT NULL DEFAULT 0
);

ALTER TABLE vf.fraud_rules ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.fraud_rules FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.fraud_rules TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.fraud_rules TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_deletion ON vf.fraud_rules TO vf_definer USING (project_id IN (SELECT p.id FROM vf.projects p
    WHERE p.status = 'deleting'));
GRANT SELECT ON vf.fraud_rules TO vf_app, vf_worker;
GRANT SELECT, DELETE ON vf.fraud_rules TO vf_definer;
ALTER TABLE vf.fraud_alerts ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.fraud_alerts FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.fraud_alerts TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.fraud_alerts TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_deletion ON vf.fraud_alerts TO vf_definer USING (project_id IN (SELECT p.id FROM vf.projects p
    WHERE p.status = 'deleting'));
GRANT SELECT ON vf.fraud_alerts TO vf_app, vf_worker;
GRANT SELECT, DELETE ON vf.fraud_alerts TO vf_definer;
ALTER TABLE vf.blocks ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.blocks FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.blocks TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.blocks TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_deletion ON vf.blocks TO vf_definer USING (project_id IN (SELECT p.id FROM vf.projects p
    WHERE p.status = 'deleting'));
GRANT SELECT ON vf.blocks TO vf_app, vf_worker;
GRANT SELECT, DELETE ON vf.blocks TO vf_definer;
ALTER TABLE vf.fraud_signals ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.fraud_signals FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.fraud_signals TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.fraud_signals TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_deletion ON vf.fraud_signals TO vf_definer USING (project_id IN (SELECT p.id FROM vf.projects p
    WHERE p.status = 'deleting'));
GRANT SELECT ON vf.fraud_signals TO vf_app, vf_worker;
GRANT SELECT, DELETE ON vf.fraud_signals TO vf_definer;
GRANT INSERT, UPDATE ON vf.fraud_rules, vf.blocks TO vf_app, vf_worker;
GRANT UPDATE ON vf.fraud_alerts TO vf_app;
GRANT INSERT, UPDATE ON vf.fraud_alerts TO vf_worker;
GRANT DELETE ON vf.blocks, vf.fraud_signals TO vf_app, vf_worker;
GRANT SELECT, UPDATE ON vf.fraud_mark TO vf_worker;
CREATE POLICY of_definer ON vf.fraud_signals FOR INSERT TO vf_definer WITH CHECK (true);
GRANT INSERT ON vf.fraud_signals TO vf_definer;
INSERT INTO vf.fraud_mark DEFAULT VALUES;

-- Writes down what was refused. One at a time does, so that numbers rise in the order of commits and who reads on from a
-- number misses nothing. A project that is gone is left out.
CREATE FUNCTION vf.note_signals(p_projects uuid[], p_ats timestamptz[], p_reasons text[], p_codes text[], p_customers text[],
                                p_addresses text[], p_devices text[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('vf.fraud_signals', 0));
    INSERT INTO vf.fraud_signals (project_id, at, reason, code, customer_id, address, device)
    SELECT q.project_id, q.at, q.reason, q.code, q.customer, q.address, q.device
      FROM unnest(p_projects, p_ats, p_reasons, p_codes, p_customers, p_addresses, p_devices)
           AS q (project_id, at, reason, code, customer, address, device)
      JOIN vf.projects p ON p.id = q.project_id AND p.status <> 'deleting'
     ORDER BY q.at;
END $$;

GRANT CREATE ON SCHEMA vf TO vf_definer;
ALTER FUNCTION vf.note_signals(uuid[], timestamptz[], text[], text[], text[], text[], text[]) OWNER TO vf_definer;
REVOKE CREATE ON SCHEMA vf FROM vf_definer;

-- Which requests of an array for one code the block list refuses, by their places; NULL: none.
CREATE FUNCTION vf.blocked_of(p_project uuid, p_code text, p_customers text[], p_metadata text[], p_at timestamptz)
RETURNS bigint[]
LANGUAGE sql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
    SELECT array_agg(q.ord)
      FROM unnest(p_customers, p_metadata) WITH ORDINALITY AS q (customer, metadata, ord)
     WHERE EXISTS (
           SELECT 1
             FROM (VALUES ('code', p_code), ('customer', q.customer),
                          ('address', q.metadata::jsonb ->> '_address'),
                          ('device', q.metadata::jsonb ->> '_device')) AS x (kind, value)
            CROSS JOIN LATERAL (
                  SELECT 1 FROM vf.blocks k
                   WHERE k.project_id = p_project AND k.kind = x.kind AND k.value = x.value
                     AND (k.expires_at IS NULL OR k.expires_at > p_at) LIMIT 1) b)
$$;

-- Answers each request of an array: redeemed, replayed, mismatch, a refusal, or rerouted / repriced (nothing was
-- decided: the caller priced with other terms, or a fast sale holds the voucher). Keys are distinct within the
-- array; a customer's nth request counts the ones before it. A single row with ord 0 says that all won, the first with
-- that seq and remaining, each later one with the next. Locks in the order campaign, voucher, sale, customers (by customer_id).
-- The planner settings are pinned because a hot voucher's statistics are always stale.
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
    v_blocked bigint[];
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
                  AND k.project_id = p_project LIMIT 1) r)
       AND (NOT EXISTS (SELECT 1 FROM vf.blocks k WHERE k.project_id = p_project)
            OR vf.blocked_of(p_project, v.code_norm, p_customers, p_metadata, v_at) IS NULL) THEN
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
    IF v_verdict IS NULL AND EXISTS (SELECT 1 FROM vf.blocks k WHERE k.project_id = p_project) THEN
        v_blocked := vf.blocked_of(p_project, v.code_norm, p_customers, p_metadata, v_at);
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
                   WHEN q.ord = ANY (v_blocked) THEN 'blocked'
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

-- Redeems one code, or several for one order: all or nothing, in one commit. With p_hold_s the uses are held for so
-- many seconds instead; p_holds says which hold of each code is redeemed by this, whose use is given back first. Each is priced beforehand; p_takings says
-- what it takes of which budget, by its place in the arrays. Answers a row a code (redeemed, or replayed or mismatch
-- where the key was used before), or one row for the first code that is refused: then nothing was written but that a
-- budget was reached. Rerouted: a flash sale holds the voucher. Locks campaigns, vouchers (each in id order), customers.
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
                WHEN EXISTS (SELECT 1 FROM vf.blocks k WHERE k.project_id = p_project)
                 AND vf.blocked_of(p_project, v.code_norm, ARRAY[p_customer], ARRAY[p_metadata], v_at) IS NOT NULL
                     THEN 'blocked'
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
GRANT EXECUTE ON FUNCTION vf.note_signals(uuid[], timestamptz[], text[], text[], text[], text[], text[]),
    vf.blocked_of(uuid, text, text[], text[], timestamptz) TO vf_app, vf_worker;
