-- Figures: what redemptions add up to, by time.

-- What redemptions add up to. scope_id: the project itself (kind p), a campaign (c), a flash sale (s) or a voucher (v).
-- grain_s: how many seconds a row is of, from bucket on; 0: of all times. A redemption counts when it was redeemed, also as
-- undone; rolled_back counts when it was undone. returned_minor: parts of discounts that were given back.
CREATE TABLE vf.figures (
    project_id             uuid NOT NULL,
    scope_id               uuid NOT NULL,
    kind                   text NOT NULL CHECK (kind IN ('p', 'c', 's', 'v')),
    grain_s                integer NOT NULL CHECK (grain_s IN (0, 1, 60, 900)),
    bucket                 timestamptz NOT NULL,
    redeemed               bigint NOT NULL,
    discount_minor         bigint NOT NULL,
    order_value_minor      bigint NOT NULL,
    undone                 bigint NOT NULL,
    undone_discount_minor  bigint NOT NULL,
    undone_value_minor     bigint NOT NULL,
    returned_minor         bigint NOT NULL,
    rolled_back            bigint NOT NULL,
    PRIMARY KEY (project_id, scope_id, grain_s, bucket)
) WITH (fillfactor = 70);
-- Codes that are redeemed more than once: most of those made by the million are not.
CREATE INDEX figures_top ON vf.figures (project_id, grain_s, bucket, (redeemed - undone), scope_id)
    WHERE kind = 'v' AND redeemed - undone > 1;
CREATE INDEX figures_of_hour ON vf.figures (project_id, bucket, scope_id) WHERE kind = 'v' AND grain_s = 900;
CREATE INDEX figures_age ON vf.figures (grain_s, bucket) WHERE grain_s IN (1, 60) OR kind = 'v' AND grain_s = 900;
ALTER TABLE vf.figures ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.figures FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.figures TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.figures TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_deletion ON vf.figures TO vf_definer USING (project_id IN (SELECT p.id FROM vf.projects p
    WHERE p.status = 'deleting'));
GRANT SELECT ON vf.figures TO vf_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON vf.figures TO vf_worker;
GRANT SELECT, DELETE ON vf.figures TO vf_definer;

-- Up to which event the figures go; NULL: what was redeemed before there were events is not added yet. One row.
CREATE TABLE vf.figures_mark (
    only_row  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    event_id  uuid
);
GRANT SELECT ON vf.figures_mark TO vf_app;
GRANT SELECT, UPDATE ON vf.figures_mark TO vf_worker;
INSERT INTO vf.figures_mark DEFAULT VALUES;

-- What some events add to the figures, of one project or of all: those after p_after up to p_to, and with p_waiting those that
-- wait to be published.
CREATE FUNCTION vf.facts(p_project uuid, p_after uuid, p_to uuid, p_waiting boolean)
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
               (o.data ->> 'first')::bigint + (o.data ->> 'count')::bigint - 1, NULL
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
CREATE FUNCTION vf.add_facts(p_after uuid, p_to uuid) RETURNS void LANGUAGE sql
AS $$
    INSERT INTO vf.figures AS k
    SELECT f.project_id, s.scope_id, s.kind, g.grain_s,
           CASE g.grain_s WHEN 0 THEN '-infinity' ELSE date_bin(make_interval(secs => g.grain_s), f.at, 'epoch') END,
           sum(f.redeemed), sum(f.discount_minor), sum(f.order_value_minor), sum(f.undone),
           sum(f.undone_discount_minor), sum(f.undone_value_minor), sum(f.returned_minor), sum(f.rolled_back)
      FROM vf.facts(NULL, p_after, p_to, false) f
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

-- Adds the next events to the figures and moves the mark, in one commit; answers how many rows of events, or NULL where what
-- came before events is not added yet. Nothing while somebody else does.
CREATE FUNCTION vf.roll_up(p_rows_max bigint, p_events_max bigint)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    v_mark vf.figures_mark;
    v_to uuid;
    v_count bigint;
BEGIN
    SELECT * INTO v_mark FROM vf.figures_mark k FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    ELSIF v_mark.event_id IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT (array_agg(y.id ORDER BY y.id DESC))[1], count(*) INTO v_to, v_count
      FROM (SELECT x.id, sum(x.count) OVER (ORDER BY x.id) - x.count AS before
              FROM (SELECT e.id, e.count FROM vf.events e WHERE e.id > v_mark.event_id ORDER BY e.id LIMIT p_rows_max) x) y
     WHERE y.before < p_events_max;
    IF v_count > 0 THEN
        PERFORM vf.add_facts(v_mark.event_id, v_to);
        UPDATE vf.figures_mark k SET event_id = v_to;
    END IF;
    RETURN v_count;
END $$;

-- Adds every redemption there is, once, where the figures begin. Run it in a REPEATABLE READ transaction: then the ledger,
-- the events and the outbox are of one moment. Answers whether it is done; not while something waits to be published.
CREATE FUNCTION vf.begin_figures()
RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM 1 FROM vf.figures_mark k WHERE k.event_id IS NULL FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN true;
    ELSIF EXISTS (SELECT 1 FROM vf.outbox o WHERE o.event IN ('voucher.redeemed', 'redemption.rolled_back')) THEN
        RETURN false;
    END IF;
    INSERT INTO vf.figures
    SELECT f.project_id, s.scope_id, s.kind, g.grain_s,
           CASE g.grain_s WHEN 0 THEN '-infinity' ELSE date_bin(make_interval(secs => g.grain_s), f.at, 'epoch') END,
           sum(f.redeemed), sum(f.discount_minor), sum(f.order_value_minor), sum(f.undone),
           sum(f.undone_discount_minor), sum(f.undone_value_minor), sum(f.returned_minor), sum(f.rolled_back)
      FROM (SELECT r.project_id, r.campaign_id, r.sale_id, r.voucher_id, r.redeemed_at, 1, r.discount_minor,
                   r.order_value_minor, u.undone, u.undone * (r.discount_minor - coalesce(r.returned_minor, 0)),
                   u.undone * r.order_value_minor, coalesce(r.returned_minor, 0), 0
              FROM vf.redemptions r
             CROSS JOIN LATERAL (SELECT (r.status = 'rolled_back')::integer AS undone) u
            UNION ALL
            SELECT r.project_id, r.campaign_id, r.sale_id, r.voucher_id, r.rolled_back_at, 0, 0, 0, 0, 0, 0, 0, 1
              FROM vf.redemptions r WHERE r.status = 'rolled_back')
           AS f (project_id, campaign_id, sale_id, voucher_id, at, redeemed, discount_minor, order_value_minor, undone,
                 undone_discount_minor, undone_value_minor, returned_minor, rolled_back)
     CROSS JOIN LATERAL (VALUES (f.project_id, 'p'), (f.campaign_id, 'c'), (f.sale_id, 's'), (f.voucher_id, 'v'))
           AS s (scope_id, kind)
      JOIN (VALUES (0, 'pcsv'), (1, 's'), (60, 'pcs'), (900, 'pcsv')) AS g (grain_s, kinds)
        ON position(s.kind IN g.kinds) > 0
     WHERE s.scope_id IS NOT NULL
     GROUP BY 1, 2, 3, 4, 5;
    UPDATE vf.figures_mark k
       SET event_id = coalesce((SELECT e.id FROM vf.events e ORDER BY e.id DESC LIMIT 1), '00000000-0000-0000-0000-000000000000');
    RETURN true;
END $$;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vf.facts(uuid, uuid, uuid, boolean), vf.add_facts(uuid, uuid), vf.roll_up(bigint, bigint),
    vf.begin_figures() TO vf_app, vf_worker;
