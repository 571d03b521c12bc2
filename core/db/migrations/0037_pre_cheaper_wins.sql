-- Wins are added, told and added up by fewer instructions (docs/profile.md).

-- What waits is told by the function that compares it with what was told before. From now on a row with gaps names its numbers.
DO $$
BEGIN
    WHILE (SELECT p.row_count > 0 FROM vf.publish_events(60000, 1000000000) p) LOOP
    END LOOP;
END $$;

-- Writes wins of one lease, in seq order, with the stream offset they reach: all or nothing. A second reconciler
-- finds the offset moved and gets 'stale', and so does one that read from another Redis process than the lease's, or
-- before its last judgement: after a split, its stream and the one that goes on tell different wins for one number. What cannot be the ledger's (above
-- open_to, or another win's number or key, or a number in p_poison whose entry could not be read) goes to quarantine
-- with its reason, and the offset moves on. A lease that is settled takes nothing more.
CREATE OR REPLACE FUNCTION vf.settle_wins(
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
    v_added bigint[];
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
    -- Nearly always none of them is there yet, and to look for each before it is added would be a quarter of its cost.
    BEGIN
        INSERT INTO vf.redemptions (project_id, lease_id, seq, granted_size, id, voucher_id, campaign_id, sale_id, sale_seq,
               idempotency_key, fingerprint, customer_id, order_id, order_value_minor, discount_minor, remaining, metadata,
               redeemed_at)
        SELECT p_project, p_lease, q.seq, l.size, q.id, l.voucher_id, l.campaign_id, l.sale_id, l.seq_base + q.seq,
               q.key, q.fingerprint, q.customer, q.order_id, q.order_value, q.discount, q.remaining, q.metadata::jsonb,
               to_timestamp(q.at_ms / 1000.0)
          FROM unnest(p_seqs, p_ids, p_keys, p_fingerprints, p_customers, p_order_values, p_discounts, p_order_ids,
                      p_metadata, p_remaining, p_at_ms)
               AS q (seq, id, key, fingerprint, customer, order_value, discount, order_id, metadata, remaining, at_ms)
         WHERE q.seq BETWEEN 1 AND l.open_to;
        GET DIAGNOSTICS v_ins = ROW_COUNT;
        v_added := CASE WHEN v_ins = v_n THEN p_seqs ELSE ARRAY(
            SELECT x FROM unnest(p_seqs) AS x WHERE x BETWEEN 1 AND l.open_to ORDER BY x) END;
    EXCEPTION WHEN unique_violation THEN
        WITH added AS (
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
                ON CONFLICT DO NOTHING RETURNING seq
        )
        SELECT count(*), coalesce(array_agg(a.seq ORDER BY a.seq), '{}') INTO v_ins, v_added FROM added a;
    END;
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
        VALUES (p_project, 'voucher.redeemed', p_lease,
                CASE WHEN v_added[v_ins] - v_added[1] = v_ins - 1
                     THEN jsonb_build_object('first', v_added[1], 'count', v_ins)
                     ELSE jsonb_build_object('first', v_added[1], 'count', v_ins, 'seqs', v_added) END);
    END IF;
    RETURN QUERY SELECT 'applied', v_ins, v_rep, v_same, v_bad, v_acc;
END $$;

-- Publishes what waits in the outbox: each row becomes an event under an id above all before it, 48 bits of milliseconds, 16
-- of its place, 40 random ones and 24 zeros, which count a row's redemptions. Who committed first wrote first under the same
-- lock, so rows that are seen together are in order by number, and one that comes into sight later was committed later.
-- Answers how many rows left the outbox and between which ids their events are; none while somebody else publishes.
CREATE OR REPLACE FUNCTION vf.publish_events(p_rows_max bigint, p_events_max bigint)
RETURNS TABLE (row_count bigint, first_id uuid, last_id uuid)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_ms bigint;
    v_told record;
BEGIN
    SELECT greatest(k.last_ms + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) INTO v_ms
      FROM vf.event_clock k FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 0::bigint, NULL::uuid, NULL::uuid;
        RETURN;
    END IF;
    WITH waiting AS MATERIALIZED (
        SELECT k.*, q.*, row_number() OVER up_to AS place, sum(q.count) OVER up_to AS events
          FROM (SELECT x.* FROM vf.outbox x ORDER BY x.number LIMIT p_rows_max) k
         CROSS JOIN LATERAL (
               SELECT w.is_many, CASE WHEN w.is_many THEN (k.data ->> 'first')::bigint END AS first,
                      CASE WHEN w.is_many THEN (k.data ->> 'count')::bigint ELSE 1 END AS count,
                      CASE WHEN w.is_many AND k.data ? 'seqs'
                           THEN ARRAY(SELECT x::bigint FROM jsonb_array_elements_text(k.data -> 'seqs') x) END AS seqs
                 FROM (SELECT k.event = 'voucher.redeemed' AS is_many) w) q
        WINDOW up_to AS (ORDER BY k.number ROWS UNBOUNDED PRECEDING)
    ), due AS MATERIALIZED (
        SELECT w.*, (lpad(to_hex(v_ms), 12, '0') || lpad(to_hex(w.place - 1), 4, '0')
                     || left(replace(gen_random_uuid()::text, '-', ''), 10) || '000000')::uuid AS id
          FROM waiting w WHERE w.place = 1 OR w.events <= p_events_max
    ), told AS (
        INSERT INTO vf.events (project_id, id, type, subject, data, at, count, first_seq, last_seq, seqs)
        SELECT d.project_id, d.id, d.event, d.subject, CASE WHEN d.is_many THEN '{}' ELSE d.data END, d.at, d.count,
               d.first, coalesce(d.seqs[cardinality(d.seqs)], d.first + d.count - 1), d.seqs
          FROM due d
    ), gone AS (
        DELETE FROM vf.outbox k USING due d WHERE k.number = d.number AND k.project_id = d.project_id
    )
    SELECT count(*) AS row_count, (array_agg(d.id ORDER BY d.place))[1] AS first_id,
           (array_agg(d.id ORDER BY d.place DESC))[1] AS last_id
      INTO v_told FROM due d;
    UPDATE vf.event_clock k SET last_ms = v_ms WHERE v_told.row_count > 0;
    RETURN QUERY SELECT v_told.row_count, v_told.first_id, v_told.last_id;
END $$;

-- What some events add to the figures, of one project or of all: those after p_after up to p_to, and with p_waiting those that
-- wait to be published.
CREATE OR REPLACE FUNCTION vf.facts(p_project uuid, p_after uuid, p_to uuid, p_waiting boolean)
RETURNS TABLE (project_id uuid, campaign_id uuid, sale_id uuid, voucher_id uuid, at timestamptz, redeemed bigint,
               discount_minor bigint, order_value_minor bigint, undone bigint, undone_discount_minor bigint,
               undone_value_minor bigint, returned_minor bigint, rolled_back bigint)
LANGUAGE sql STABLE
AS $$
    WITH told AS MATERIALIZED (
        SELECT e.project_id, e.type, e.subject, e.data, e.first_seq, e.last_seq, e.seqs
          FROM vf.events e
         WHERE e.id > p_after AND e.id <= p_to AND (p_project IS NULL OR e.project_id = p_project)
           AND e.type IN ('voucher.redeemed', 'redemption.rolled_back')
        UNION ALL
        SELECT o.project_id, o.event, o.subject, o.data, (o.data ->> 'first')::bigint,
               coalesce((o.data #>> '{seqs,-1}')::bigint,
                        (o.data ->> 'first')::bigint + (o.data ->> 'count')::bigint - 1),
               CASE WHEN o.data ? 'seqs'
                    THEN ARRAY(SELECT x::bigint FROM jsonb_array_elements_text(o.data -> 'seqs') x) END
          FROM vf.outbox o
         WHERE p_waiting AND (p_project IS NULL OR o.project_id = p_project)
           AND o.event IN ('voucher.redeemed', 'redemption.rolled_back')
    )
    SELECT r.project_id, r.campaign_id, r.sale_id, r.voucher_id, r.redeemed_at, 1::bigint, r.discount_minor,
           r.order_value_minor, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint
      FROM told t JOIN vf.redemptions r ON r.lease_id = t.subject AND r.seq BETWEEN t.first_seq AND t.last_seq
     WHERE t.type = 'voucher.redeemed' AND (t.seqs IS NULL OR r.seq = ANY (t.seqs))
    UNION ALL
    SELECT r.project_id, r.campaign_id, r.sale_id, r.voucher_id, r.redeemed_at, 0, 0, 0,
           CASE WHEN t.data ? 'amount_minor' THEN 0 ELSE 1 END,
           CASE WHEN t.data ? 'amount_minor' THEN 0 ELSE r.discount_minor - coalesce(r.returned_minor, 0) END,
           CASE WHEN t.data ? 'amount_minor' THEN 0 ELSE r.order_value_minor END,
           coalesce((t.data ->> 'amount_minor')::bigint, 0), 0
      FROM told t JOIN vf.redemptions r ON r.project_id = t.project_id AND r.id = t.subject AND r.redeemed_at > '-infinity'
     WHERE t.type = 'redemption.rolled_back'
    UNION ALL
    SELECT r.project_id, r.campaign_id, r.sale_id, r.voucher_id, r.rolled_back_at, 0, 0, 0, 0, 0, 0, 0, 1
      FROM told t JOIN vf.redemptions r ON r.project_id = t.project_id AND r.id = t.subject AND r.redeemed_at > '-infinity'
     WHERE t.type = 'redemption.rolled_back' AND NOT t.data ? 'amount_minor'
$$;

-- Adds facts, which are given by what selects them, to every row they belong to: of the project, its campaigns and sales by
-- the minute and quarter of an hour, of sales by the second, of vouchers by the quarter, and of all times.
CREATE OR REPLACE FUNCTION vf.add_facts(p_after uuid, p_to uuid) RETURNS void LANGUAGE sql
AS $$
    WITH f AS MATERIALIZED (
        SELECT x.project_id, x.campaign_id, x.sale_id, x.voucher_id, date_bin('1 second', x.at, 'epoch') AS at,
               sum(x.redeemed) AS redeemed, sum(x.discount_minor) AS discount_minor,
               sum(x.order_value_minor) AS order_value_minor, sum(x.undone) AS undone,
               sum(x.undone_discount_minor) AS undone_discount_minor, sum(x.undone_value_minor) AS undone_value_minor,
               sum(x.returned_minor) AS returned_minor, sum(x.rolled_back) AS rolled_back
          FROM vf.facts(NULL, p_after, p_to, false) x GROUP BY 1, 2, 3, 4, 5
    )
    INSERT INTO vf.figures AS k
    SELECT f.project_id, s.scope_id, s.kind, g.grain_s,
           CASE g.grain_s WHEN 0 THEN '-infinity' ELSE date_bin(make_interval(secs => g.grain_s), f.at, 'epoch') END,
           sum(f.redeemed), sum(f.discount_minor), sum(f.order_value_minor), sum(f.undone),
           sum(f.undone_discount_minor), sum(f.undone_value_minor), sum(f.returned_minor), sum(f.rolled_back)
      FROM f
     CROSS JOIN LATERAL (VALUES (f.project_id, 'p'), (f.campaign_id, 'c'), (f.sale_id, 's'), (f.voucher_id, 'v'))
           AS s (scope_id, kind)
      JOIN (VALUES (0, 'pcsv'), (1, 's'), (60, 'pcs'), (900, 'pcsv')) AS g (grain_s, kinds)
        ON position(s.kind IN g.kinds) > 0
     WHERE s.scope_id IS NOT NULL
     GROUP BY 1, 2, 3, 4, 5
     ORDER BY 1, 2, 4, 5
        ON CONFLICT (project_id, scope_id, grain_s, bucket) DO UPDATE
           SET redeemed = k.redeemed + excluded.redeemed, discount_minor = k.discount_minor + excluded.discount_minor,
               order_value_minor = k.order_value_minor + excluded.order_value_minor, undone = k.undone + excluded.undone,
               undone_discount_minor = k.undone_discount_minor + excluded.undone_discount_minor,
               undone_value_minor = k.undone_value_minor + excluded.undone_value_minor,
               returned_minor = k.returned_minor + excluded.returned_minor,
               rolled_back = k.rolled_back + excluded.rolled_back
$$;
