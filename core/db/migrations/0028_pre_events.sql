-- Events. The outbox becomes a queue: what is published leaves it. Nobody could read what it held until now.

TRUNCATE vf.outbox;
ALTER TABLE vf.outbox DROP CONSTRAINT outbox_pkey;
ALTER TABLE vf.outbox DROP COLUMN id;
ALTER TABLE vf.outbox ADD COLUMN number bigint GENERATED ALWAYS AS IDENTITY;
ALTER TABLE vf.outbox ADD PRIMARY KEY (number, project_id);
ALTER TABLE vf.outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);
GRANT DELETE ON vf.outbox TO vf_worker;

ALTER TABLE vf.flash_sales ADD COLUMN sold_out_at timestamptz;

-- What happened, in the order in which it was committed; ids rise with it. A row of `count` redemptions stands for so
-- many events, whose ids follow its own: of numbers first_seq to last_seq of the lease or voucher in subject, or
-- where some of those had been told before, of the numbers in seqs.
CREATE TABLE vf.events (
    project_id  uuid NOT NULL,
    id          uuid NOT NULL,
    type        text NOT NULL,
    subject     uuid NOT NULL,
    data        jsonb NOT NULL,
    at          timestamptz NOT NULL,
    count       bigint NOT NULL CHECK (count BETWEEN 1 AND 16777216),
    first_seq   bigint,
    last_seq    bigint,
    seqs        bigint[],
    PRIMARY KEY (project_id, id),
    CONSTRAINT events_seqs CHECK ((first_seq IS NULL) = (last_seq IS NULL) AND (count = 1 OR first_seq IS NOT NULL)
                                  AND (seqs IS NOT NULL OR last_seq - first_seq = count - 1))
);
CREATE INDEX events_in_order ON vf.events (id);
CREATE INDEX events_of_type ON vf.events (project_id, type, id);
CREATE INDEX events_of_redemptions ON vf.events (subject, last_seq) WHERE last_seq IS NOT NULL;
ALTER TABLE vf.events ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.events FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.events TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.events TO vf_worker USING (true) WITH CHECK (true);
GRANT SELECT ON vf.events TO vf_app;
GRANT SELECT, INSERT, DELETE ON vf.events TO vf_worker;

-- Who publishes holds this row, so that one does at a time; last_ms: when the last ids were given. expired_to: up to
-- when the vouchers whose time is over were told. One row.
CREATE TABLE vf.event_clock (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    last_ms     bigint NOT NULL DEFAULT 0,
    expired_to  timestamptz NOT NULL DEFAULT now()
);
GRANT SELECT, UPDATE ON vf.event_clock TO vf_worker;
INSERT INTO vf.event_clock DEFAULT VALUES;

-- Publishes what waits in the outbox: each row becomes an event under an id above all before it, 48 bits of milliseconds, 16
-- of its place, 40 random ones and 24 zeros, which count a row's redemptions. Who committed first wrote first under the same
-- lock, so rows that are seen together are in order by number, and one that comes into sight later was committed later.
-- Answers how many rows left the outbox and between which ids their events are; none while somebody else publishes.
CREATE FUNCTION vf.publish_events(p_rows_max bigint, p_events_max bigint)
RETURNS TABLE (row_count bigint, first_id uuid, last_id uuid)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    o vf.outbox;
    v_ms bigint;
    v_numbers bigint[] := '{}';
    v_events bigint := 0;
    v_first bigint;
    v_count bigint;
    v_seqs bigint[];
    v_id uuid;
    v_first_id uuid;
BEGIN
    SELECT greatest(k.last_ms + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) INTO v_ms
      FROM vf.event_clock k FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 0::bigint, NULL::uuid, NULL::uuid;
        RETURN;
    END IF;
    FOR o IN SELECT k.* FROM vf.outbox k ORDER BY k.number LIMIT p_rows_max
    LOOP
        v_first := NULL;
        v_count := 1;
        v_seqs := NULL;
        IF o.event = 'voucher.redeemed' THEN
            v_first := (o.data ->> 'first')::bigint;
            v_count := (o.data ->> 'count')::bigint;
            EXIT WHEN v_events > 0 AND v_events + v_count > p_events_max;
            IF EXISTS (SELECT 1 FROM vf.events e WHERE e.subject = o.subject AND e.last_seq >= v_first)
               OR (SELECT count(*) FROM vf.redemptions r WHERE r.lease_id = o.subject
                      AND r.seq BETWEEN v_first AND v_first + v_count - 1) < v_count THEN
                -- Some of them were written, and told, by an earlier commit, or have no row of their own.
                SELECT array_agg(q.seq ORDER BY q.seq) INTO v_seqs
                  FROM (SELECT r.seq FROM vf.redemptions r
                         WHERE r.lease_id = o.subject AND r.seq >= v_first AND NOT EXISTS (
                               SELECT 1 FROM vf.events e
                                WHERE e.subject = o.subject AND e.last_seq >= r.seq AND e.first_seq <= r.seq
                                  AND (e.seqs IS NULL OR r.seq = ANY (e.seqs)))
                         ORDER BY r.seq LIMIT v_count) q;
                v_first := v_seqs[1];
                v_count := coalesce(cardinality(v_seqs), 0);
            END IF;
        END IF;
        IF v_count > 0 THEN
            v_id := (lpad(to_hex(v_ms), 12, '0') || lpad(to_hex(cardinality(v_numbers)), 4, '0')
                     || left(replace(gen_random_uuid()::text, '-', ''), 10) || '000000')::uuid;
            v_first_id := coalesce(v_first_id, v_id);
            INSERT INTO vf.events (project_id, id, type, subject, data, at, count, first_seq, last_seq, seqs)
            VALUES (o.project_id, v_id, o.event, o.subject, CASE WHEN v_first IS NULL THEN o.data ELSE '{}' END, o.at,
                    v_count, v_first, CASE WHEN v_seqs IS NULL THEN v_first + v_count - 1
                                           ELSE v_seqs[cardinality(v_seqs)] END,
                    CASE WHEN v_seqs[cardinality(v_seqs)] - v_first >= v_count THEN v_seqs END);
        END IF;
        v_numbers := v_numbers || o.number;
        v_events := v_events + v_count;
    END LOOP;
    DELETE FROM vf.outbox k WHERE k.number = ANY (v_numbers);
    UPDATE vf.event_clock k SET last_ms = v_ms WHERE v_events > 0;
    RETURN QUERY SELECT cardinality(v_numbers)::bigint, v_first_id, v_id;
END $$;
REVOKE ALL ON FUNCTION vf.publish_events(bigint, bigint) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vf.publish_events(bigint, bigint) TO vf_app, vf_worker;
