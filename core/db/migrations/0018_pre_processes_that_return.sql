-- A lease may come back to a Redis process that it had left: a slot of a cluster that moves away and back, a primary
-- that was a replica meanwhile. Its stream is written again, by who read it after that judgement and by nobody else.

-- Decides, once for all workers, what a lease is after Redis came back as another process: intact (every registered
-- worker has sealed and told its mark, and Redis still knows every number answered or settled), waiting, or fenced.
CREATE OR REPLACE FUNCTION vf.judge_lease(
    p_project uuid, p_lease uuid, p_run_id_old text, p_run_id_new text, p_issued bigint, p_deadline interval)
RETURNS TABLE (outcome text, run_id text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    l vf.leases;
    v_mark bigint;
    v_waiting bigint;
    v_silent bigint;
    v_top bigint;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease FOR NO KEY UPDATE;
    IF l.id IS NULL OR l.state IN ('settled', 'fenced') OR l.run_id <> p_run_id_old THEN
        RETURN QUERY SELECT coalesce(l.state, 'settled'), l.run_id;
        RETURN;
    END IF;
    SELECT count(*) FILTER (WHERE w.sealed_run_id IS DISTINCT FROM p_run_id_new
                              AND w.seen_at > clock_timestamp() - p_deadline),
           count(*) FILTER (WHERE w.sealed_run_id IS DISTINCT FROM p_run_id_new
                                  AND w.seen_at <= clock_timestamp() - p_deadline
                               OR w.sealed_run_id = p_run_id_new AND w.mark IS NULL),
           coalesce(max(w.mark) FILTER (WHERE w.sealed_run_id = p_run_id_new), 0)
      INTO v_waiting, v_silent, v_mark
      FROM vf.lease_workers w WHERE w.lease_id = p_lease;
    SELECT coalesce(max(k.seq), 0) INTO v_top FROM vf.redemptions k WHERE k.lease_id = p_lease;
    IF v_silent > 0 OR p_issued IS NULL OR p_issued < v_top
       OR (v_waiting = 0 AND p_issued < v_mark) THEN
        UPDATE vf.leases k
           SET state = 'fenced', judged = k.judged + 1,
               fence_reason = CASE WHEN v_silent > 0 THEN v_silent || ' worker(s) whose marks nobody knows'
                   WHEN p_issued IS NULL THEN 'the lease is gone from Redis'
                   WHEN p_issued < v_top THEN 'Redis knows ' || p_issued || ', PostgreSQL has ' || v_top
                   ELSE 'Redis knows ' || p_issued || ', workers answered up to ' || v_mark END
         WHERE k.project_id = p_project AND k.id = p_lease;
        RETURN QUERY SELECT 'fenced', l.run_id;
    ELSIF v_waiting > 0 THEN
        RETURN QUERY SELECT 'waiting', l.run_id;
    ELSE
        UPDATE vf.leases k
           SET run_id = p_run_id_new, judged = k.judged + 1,
               past_run_ids = CASE WHEN p_run_id_new = k.run_id THEN k.past_run_ids
                                   ELSE array_remove(k.past_run_ids || k.run_id, p_run_id_new) END
         WHERE k.project_id = p_project AND k.id = p_lease;
        UPDATE vf.lease_workers w SET sealed_run_id = NULL, mark = NULL WHERE w.lease_id = p_lease;
        RETURN QUERY SELECT 'intact', p_run_id_new;
    END IF;
END $$;

-- Writes wins of one lease, in seq order, with the stream offset they reach: all or nothing. A second reconciler
-- finds the offset moved and gets 'stale', and so does one that read from another Redis process than the lease's, or
-- before its last judgement: after a split, its stream and the one that goes on tell different wins for one number. What cannot be the ledger's (above
-- open_to, or another win's number or key, or a number in p_poison whose entry could not be read) goes to quarantine
-- with its reason, and the offset moves on. A lease that is settled takes nothing more.
CREATE FUNCTION vf.settle_wins(
    p_project uuid, p_lease uuid, p_run_id text, p_judged bigint, p_from text, p_to text,
    p_seqs bigint[], p_ids uuid[], p_keys text[], p_fingerprints bytea[], p_customers text[],
    p_order_values bigint[], p_discounts bigint[], p_order_ids text[], p_metadata text[], p_remaining bigint[],
    p_at_ms bigint[], p_poison bigint[], p_poison_raw text[])
RETURNS TABLE (outcome text, inserted bigint, replayed bigint, same_key bigint, quarantined bigint, accounted bigint)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    l vf.leases;
    v_n bigint := cardinality(p_seqs);
    v_ins bigint;
    v_rep bigint := 0;
    v_same bigint := 0;
    v_bad bigint := 0;
    v_acc bigint;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease FOR SHARE;
    IF l.state = 'settled' THEN
        RETURN QUERY SELECT 'closed', 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint;
        RETURN;
    ELSIF p_run_id = ANY (l.past_run_ids)
       OR l.state <> 'fenced' AND (p_run_id <> l.run_id OR p_judged <> l.judged) THEN
        RETURN QUERY SELECT 'stale', 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint;
        RETURN;
    END IF;
    PERFORM 1 FROM vf.lease_progress k WHERE k.lease_id = p_lease AND k.project_id = p_project
        AND k.last_id = p_from FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'stale', 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint;
        RETURN;
    END IF;
    INSERT INTO vf.redemptions (project_id, lease_id, seq, granted_size, id, voucher_id, campaign_id, sale_id, sale_seq,
           idempotency_key, fingerprint, customer_id, order_id, order_value_minor, discount_minor, remaining, metadata,
           redeemed_at)
    SELECT p_project, p_lease, q.seq, l.size, q.id, l.voucher_id, l.campaign_id, l.sale_id, l.seq_base + q.seq,
           q.key, q.fingerprint, q.customer, q.order_id, q.order_value, q.discount, q.remaining, q.metadata::jsonb,
           to_timestamp(q.at_ms / 1000.0)
      FROM unnest(p_seqs, p_ids, p_keys, p_fingerprints, p_customers, p_order_values, p_discounts, p_order_ids,
                  p_metadata, p_remaining, p_at_ms)
           AS q (seq, id, key, fingerprint, customer, order_value, discount, order_id, metadata, remaining, at_ms)
     WHERE q.seq BETWEEN 1 AND l.open_to
     ORDER BY q.seq
        ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS v_ins = ROW_COUNT;
    IF v_ins < v_n THEN
        -- Rows of this very call are visible here too: they equal their request and count as 'stored'.
        WITH judged AS (
            SELECT q.seq, q.key, q.customer,
                   CASE WHEN r.id = q.id AND r.idempotency_key = q.key THEN 'stored'
                        WHEN r.id IS NULL AND k.id IS NOT NULL AND q.seq <= l.open_to THEN 'same_key'
                        WHEN q.seq > l.open_to THEN 'closed'
                        ELSE 'conflict' END AS verdict
              FROM unnest(p_seqs, p_ids, p_keys, p_customers) AS q (seq, id, key, customer)
              LEFT JOIN LATERAL (SELECT x.id, x.idempotency_key FROM vf.redemptions x
                    WHERE x.lease_id = p_lease AND x.seq = q.seq LIMIT 1) r ON true
              LEFT JOIN LATERAL (SELECT x.id FROM vf.redemptions x WHERE x.idempotency_key = q.key
                    AND x.voucher_id = l.voucher_id AND x.project_id = p_project LIMIT 1) k ON true
        ), bad AS (
            INSERT INTO vf.quarantine (project_id, lease_id, seq, reason, entry)
            SELECT p_project, p_lease, j.seq, j.verdict, jsonb_build_object('key', j.key, 'customer', j.customer)
              FROM judged j WHERE j.verdict IN ('closed', 'conflict')
            RETURNING 1
        )
        SELECT count(*) FILTER (WHERE j.verdict = 'stored') - v_ins, count(*) FILTER (WHERE j.verdict = 'same_key'),
               (SELECT count(*) FROM bad)
          INTO v_rep, v_same, v_bad FROM judged j;
    END IF;
    INSERT INTO vf.quarantine (project_id, lease_id, seq, reason, entry)
    SELECT p_project, p_lease, q.seq, 'unreadable', to_jsonb(q.raw)
      FROM unnest(p_poison, p_poison_raw) AS q (seq, raw);
    v_bad := v_bad + cardinality(p_poison);
    v_n := v_n + cardinality(p_poison);
    UPDATE vf.lease_progress k
       SET last_id = p_to,
           accounted = greatest(k.accounted, (SELECT max(x) FROM unnest(p_seqs || p_poison) x)),
           read_count = k.read_count + v_n, inserted_count = k.inserted_count + v_ins,
           replayed_count = k.replayed_count + v_rep, same_key_count = k.same_key_count + v_same,
           quarantined_count = k.quarantined_count + v_bad
     WHERE k.lease_id = p_lease AND k.project_id = p_project
    RETURNING k.accounted INTO v_acc;
    IF v_ins > 0 THEN
        INSERT INTO vf.outbox (project_id, event, subject, data)
        VALUES (p_project, 'voucher.redeemed', p_lease, jsonb_build_object('first', p_seqs[1], 'count', v_ins));
    END IF;
    RETURN QUERY SELECT 'applied', v_ins, v_rep, v_same, v_bad, v_acc;
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
