-- Burned numbers can be released by name: their units are sold again, and their receipts are void.

ALTER TABLE vf.leases ADD COLUMN released bigint NOT NULL DEFAULT 0 CHECK (released >= 0);

-- Burned numbers whose units an operator gave back. Such a number is no redemption and never becomes one.
CREATE TABLE vf.released_numbers (
    project_id   uuid NOT NULL,
    lease_id     uuid NOT NULL,
    seq          bigint NOT NULL CHECK (seq > 0),
    released_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (lease_id, seq, project_id),
    CONSTRAINT released_numbers_lease FOREIGN KEY (project_id, lease_id) REFERENCES vf.leases (project_id, id)
);

ALTER TABLE vf.released_numbers ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.released_numbers FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.released_numbers TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.released_numbers TO vf_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT ON vf.released_numbers TO vf_app, vf_worker;

CREATE OR REPLACE FUNCTION vf.refuse_unknown_sources() RETURNS trigger LANGUAGE plpgsql
AS $$
DECLARE
    v_unknown text;
    v_released boolean;
BEGIN
    SELECT CASE WHEN bool_or(v.id IS NULL) THEN 'voucher'
                WHEN bool_or(n.granted_size IS NOT NULL AND g.lease_id IS NULL) THEN 'grant' END,
           bool_or(n.granted_size IS NOT NULL
                   AND EXISTS (SELECT 1 FROM vf.released_numbers r WHERE r.lease_id = n.lease_id))
      INTO v_unknown, v_released
      FROM (SELECT DISTINCT a.project_id, a.voucher_id, a.lease_id, a.granted_size FROM added a) n
      LEFT JOIN vf.vouchers v ON v.project_id = n.project_id AND v.id = n.voucher_id
      LEFT JOIN vf.lease_grants g
             ON g.lease_id = n.lease_id AND g.size = n.granted_size AND g.project_id = n.project_id;
    IF v_released AND EXISTS (SELECT 1 FROM added a JOIN vf.released_numbers r
                                         ON r.lease_id = a.lease_id AND r.seq = a.seq) THEN
        v_unknown := 'released';
    END IF;
    IF v_unknown IS NOT NULL THEN
        RAISE EXCEPTION 'a redemption''s % is not there, or not there any more', v_unknown
            USING ERRCODE = '23503', CONSTRAINT = 'redemptions_' || v_unknown, TABLE = 'redemptions', SCHEMA = 'vf';
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE FUNCTION vf.claim_receipt(
    p_project uuid, p_lease uuid, p_seq bigint, p_id uuid, p_key text, p_fingerprint bytea, p_customer text,
    p_order_value bigint, p_discount bigint, p_order_id text, p_metadata jsonb, p_remaining bigint,
    p_redeemed_at timestamptz)
RETURNS TABLE (outcome text, existing uuid)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    l vf.leases;
    v vf.vouchers;
    r vf.redemptions;
    v_held vf.customer_counts;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease;
    PERFORM 1 FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = l.campaign_id FOR NO KEY UPDATE;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = l.voucher_id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = l.sale_id FOR NO KEY UPDATE;
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease FOR NO KEY UPDATE;
    SELECT * INTO r FROM vf.redemptions k WHERE k.lease_id = p_lease AND k.seq = p_seq;
    IF r.id = p_id THEN
        RETURN QUERY SELECT 'stored', r.id;
        RETURN;
    ELSIF l.state <> 'settled' THEN
        RETURN QUERY SELECT 'unsettled', NULL::uuid;
        RETURN;
    ELSIF r.id IS NOT NULL OR p_seq > l.open_to OR l.burned = 0
       OR EXISTS (SELECT 1 FROM vf.released_numbers k WHERE k.lease_id = p_lease AND k.seq = p_seq) THEN
        RETURN QUERY SELECT 'void', NULL::uuid;
        RETURN;
    END IF;
    SELECT * INTO r FROM vf.redemptions k
     WHERE k.idempotency_key = p_key AND k.voucher_id = l.voucher_id AND k.project_id = p_project;
    IF FOUND THEN
        RETURN QUERY SELECT 'same_key', r.id;
        RETURN;
    END IF;
    SELECT * INTO v_held FROM vf.customer_counts k
     WHERE k.customer_id = p_customer AND k.scope_id = l.voucher_id AND k.project_id = p_project;
    IF v_held.live_count >= v.per_customer_limit THEN
        RETURN QUERY SELECT 'customer_limit', v_held.last_redemption_id;
        RETURN;
    END IF;
    INSERT INTO vf.redemptions (project_id, lease_id, seq, granted_size, id, voucher_id, campaign_id, sale_id, sale_seq,
           idempotency_key, fingerprint, customer_id, order_id, order_value_minor, discount_minor, remaining, metadata,
           redeemed_at)
    VALUES (p_project, p_lease, p_seq, l.size, p_id, l.voucher_id, l.campaign_id, l.sale_id, l.seq_base + p_seq, p_key,
            p_fingerprint, p_customer, p_order_id, p_order_value, p_discount, p_remaining, p_metadata, p_redeemed_at);
    UPDATE vf.leases k SET burned = k.burned - 1 WHERE k.project_id = p_project AND k.id = p_lease;
    UPDATE vf.lease_progress k
       SET read_count = k.read_count + 1, inserted_count = k.inserted_count + 1
     WHERE k.lease_id = p_lease AND k.project_id = p_project;
    UPDATE vf.flash_sales k SET burned_count = k.burned_count - 1, updated_at = clock_timestamp()
     WHERE k.project_id = p_project AND k.id = l.sale_id;
    UPDATE vf.vouchers k SET crowd_version = k.crowd_version + 1
     WHERE k.project_id = p_project AND k.id = l.voucher_id;
    IF v.per_customer_limit IS NOT NULL AND p_customer IS NOT NULL THEN
        INSERT INTO vf.customer_counts AS k
               (project_id, scope_id, customer_id, live_count, limit_max, last_redemption_id)
        VALUES (p_project, l.voucher_id, p_customer, 1, v.per_customer_limit, p_id)
            ON CONFLICT (customer_id, scope_id, project_id) DO UPDATE
               SET live_count = k.live_count + 1, last_redemption_id = excluded.last_redemption_id;
    END IF;
    INSERT INTO vf.outbox (project_id, event, subject, data)
    VALUES (p_project, 'voucher.redeemed', p_lease, jsonb_build_object('first', p_seq, 'count', 1));
    RETURN QUERY SELECT 'claimed', p_id;
END $$;

-- Gives the units of burned numbers back, all or none. p_numbers are the sale's numbers, as its answers and `doctor` name
-- them. Answers a row a number: released (now or before); or, where one is not burned, only those that are not:
-- not_burned. From then on the number is nobody's: a receipt for it is void. Locks campaign, voucher, sale, leases.
CREATE FUNCTION vf.release_numbers(p_project uuid, p_sale uuid, p_numbers bigint[])
RETURNS TABLE (number bigint, outcome text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    s vf.flash_sales;
    v vf.vouchers;
    l record;
    v_now bigint := 0;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO s FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = p_sale;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = s.voucher_id;
    PERFORM 1 FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = v.campaign_id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = s.voucher_id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = p_sale FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.leases k WHERE k.project_id = p_project AND k.sale_id = p_sale ORDER BY k.id FOR NO KEY UPDATE;
    RETURN QUERY
    SELECT q.number, 'not_burned' FROM unnest(p_numbers) AS q (number)
     WHERE NOT EXISTS (
           SELECT 1 FROM vf.leases k
            WHERE k.project_id = p_project AND k.sale_id = p_sale AND k.state = 'settled'
              AND q.number BETWEEN k.seq_base + 1 AND k.seq_base + k.open_to
              AND NOT EXISTS (SELECT 1 FROM vf.redemptions r
                               WHERE r.lease_id = k.id AND r.seq = q.number - k.seq_base))
     ORDER BY q.number;
    IF FOUND THEN
        RETURN;
    END IF;
    FOR l IN SELECT k.id, k.seq_base, k.open_to FROM vf.leases k
              WHERE k.project_id = p_project AND k.sale_id = p_sale AND k.state = 'settled'
    LOOP
        INSERT INTO vf.released_numbers (project_id, lease_id, seq)
        SELECT p_project, l.id, q.number - l.seq_base FROM (SELECT DISTINCT x.number FROM unnest(p_numbers) AS x (number)) q
         WHERE q.number BETWEEN l.seq_base + 1 AND l.seq_base + l.open_to
            ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS v_now = ROW_COUNT;
        UPDATE vf.leases k SET burned = k.burned - v_now, released = k.released + v_now
         WHERE k.project_id = p_project AND k.id = l.id;
        UPDATE vf.campaigns k SET leased_count = k.leased_count - v_now
         WHERE k.project_id = p_project AND k.id = v.campaign_id;
        UPDATE vf.vouchers k SET leased_count = k.leased_count - v_now, crowd_version = k.crowd_version + 1
         WHERE k.project_id = p_project AND k.id = v.id;
        UPDATE vf.flash_sales k
           SET leased_count = k.leased_count - v_now, burned_count = k.burned_count - v_now,
               updated_at = clock_timestamp()
         WHERE k.project_id = p_project AND k.id = p_sale;
        IF v_now > 0 THEN
            INSERT INTO vf.outbox (project_id, event, subject, data)
            VALUES (p_project, 'flash_sale.released', p_sale, jsonb_build_object('lease', l.id, 'count', v_now));
        END IF;
    END LOOP;
    RETURN QUERY SELECT DISTINCT q.number, 'released' FROM unnest(p_numbers) AS q (number) ORDER BY q.number;
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
