-- Receipts of wins that Redis lost.

-- Writes the redemption of a receipt at its own number, which settling burned. Answers claimed, stored (it is there), or
-- why not: unsettled, void (returned, released or another's), same_key or customer_limit with the redemption in the way.
CREATE FUNCTION vf.claim_receipt(
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
    ELSIF r.id IS NOT NULL OR p_seq > l.open_to OR l.burned = 0 THEN
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

REVOKE ALL ON FUNCTION vf.claim_receipt(uuid, uuid, bigint, uuid, text, bytea, text, bigint, bigint, text, jsonb, bigint,
    timestamptz) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vf.claim_receipt(uuid, uuid, bigint, uuid, text, bytea, text, bigint, bigint, text, jsonb,
    bigint, timestamptz) TO vf_app, vf_worker;
