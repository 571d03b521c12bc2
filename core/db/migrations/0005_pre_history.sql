-- A database that was restored or promoted redeems nothing until it is known to hold what Redis answered.

-- The history (vf.lineage()) whose books hold everything Redis was told they hold. Another one, or a reason in
-- held_for, and redeeming waits for `recover`. One row.
CREATE TABLE vf.history (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    lineage     text NOT NULL,
    held_for    text,
    changed_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

GRANT SELECT ON vf.history TO vf_app, vf_worker;
GRANT UPDATE ON vf.history TO vf_worker;

-- The history this database continues: the cluster, and the timeline it writes. It changes when the database is
-- restored elsewhere or promoted. pg_control's own timeline lags behind a promotion until the next checkpoint.
CREATE OR REPLACE FUNCTION vf.lineage() RETURNS text LANGUAGE sql STABLE
AS $$
    SELECT s.system_identifier::text || '/' || CASE WHEN pg_is_in_recovery() THEN '0'
           ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer::text END
      FROM pg_control_system() s
$$;

-- Whether this database may redeem: it writes the timeline that is accepted, and nobody has found it gone back. Asked by
-- every commit of redemptions, so it is plpgsql, whose plan stays, and does not read pg_control for the cluster's id
-- (40 us): another cluster is found by the reconciler, which compares all when PostgreSQL was started.
CREATE FUNCTION vf.is_accepted() RETURNS boolean LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_timeline text := '0';
BEGIN
    IF NOT pg_is_in_recovery() THEN
        v_timeline := ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer;
    END IF;
    RETURN EXISTS (SELECT 1 FROM vf.history h
                    WHERE h.held_for IS NULL AND split_part(h.lineage, '/', 2) = v_timeline);
END $$;

-- Nothing is redeemed and nothing armed in a database that may lack what Redis has answered: VF001 is "not applied".
CREATE FUNCTION vf.refuse_unaccepted() RETURNS trigger LANGUAGE plpgsql
AS $$
BEGIN
    IF NOT vf.is_accepted() THEN
        RAISE EXCEPTION 'this database was restored or promoted, and recover has not accepted it'
            USING ERRCODE = 'VF001';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER redemptions_history BEFORE INSERT ON vf.redemptions
    FOR EACH STATEMENT EXECUTE FUNCTION vf.refuse_unaccepted();
CREATE TRIGGER leases_history BEFORE INSERT ON vf.leases
    FOR EACH STATEMENT EXECUTE FUNCTION vf.refuse_unaccepted();

-- Gives a restored database back what Redis knows of a lease, fenced, so that its stream is written and it settles.
-- A lease that is out and lacks a grant gets it; one that is not there at all is made as large as its highest number,
-- as far as the stock goes. The sale's status becomes what Redis heard of it. Answers created, held, settled (nothing
-- to do), busy (an older lease has to settle first, and the sale is paused until then), no_sale or no_room, and the
-- size that holds.
CREATE FUNCTION vf.recover_lease(
    p_project uuid, p_lease uuid, p_tag bigint, p_sale uuid, p_seq_base bigint, p_issued bigint, p_backlog_max bigint,
    p_run_id text, p_redis_state text, p_reason text)
RETURNS TABLE (outcome text, size bigint)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    l vf.leases;
    v vf.vouchers;
    c vf.campaigns;
    s vf.flash_sales;
    v_rest bigint;
    v_more bigint;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO s FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = p_sale;
    IF s.id IS NULL THEN
        RETURN QUERY SELECT 'no_sale', 0::bigint;
        RETURN;
    END IF;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = s.voucher_id;
    SELECT * INTO c FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = v.campaign_id FOR NO KEY UPDATE;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = s.voucher_id FOR NO KEY UPDATE;
    SELECT * INTO s FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = p_sale FOR NO KEY UPDATE;
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.voucher_id = v.id
        AND (k.id = p_lease OR k.state <> 'settled') ORDER BY k.id = p_lease DESC LIMIT 1 FOR NO KEY UPDATE;
    IF l.id = p_lease AND l.state = 'settled' THEN
        RETURN QUERY SELECT 'settled', l.size;
        RETURN;
    ELSIF l.id <> p_lease THEN
        -- Nobody may arm the sale between the two.
        UPDATE vf.flash_sales k SET status = 'paused', updated_at = clock_timestamp()
         WHERE k.project_id = p_project AND k.id = p_sale AND k.status IN ('scheduled', 'open');
        RETURN QUERY SELECT 'busy', 0::bigint;
        RETURN;
    END IF;
    v_rest := least(s.stock - s.sold_count - s.leased_count, v.max_redemptions - v.direct_count - v.leased_count,
                    c.max_redemptions - c.direct_count - c.leased_count);
    v_more := least(p_issued - coalesce(l.size, 0), v_rest);
    IF l.id IS NULL AND v_more <= 0 THEN
        RETURN QUERY SELECT 'no_room', 0::bigint;
        RETURN;
    END IF;
    UPDATE vf.flash_sales k
       SET status = CASE WHEN p_redis_state IN ('closed', 'open', 'paused') THEN p_redis_state ELSE k.status END,
           closed_at = CASE WHEN p_redis_state = 'closed' THEN coalesce(k.closed_at, clock_timestamp())
                            ELSE k.closed_at END,
           opened_at = coalesce(k.opened_at, clock_timestamp()), updated_at = clock_timestamp()
     WHERE k.project_id = p_project AND k.id = p_sale AND k.status IN ('scheduled', 'open', 'paused');
    IF l.id IS NULL THEN
        INSERT INTO vf.leases (project_id, id, tag, sale_id, voucher_id, campaign_id, state, size, open_to, backlog_max,
                               seq_base, run_id, pg_lineage, fence_reason)
        VALUES (p_project, p_lease, p_tag, p_sale, v.id, v.campaign_id, 'fenced', v_more, v_more, p_backlog_max,
                p_seq_base, p_run_id, vf.lineage(), p_reason);
        INSERT INTO vf.lease_progress (project_id, lease_id) VALUES (p_project, p_lease);
        UPDATE vf.vouchers k SET authority = 'flash', terms_version = k.terms_version + 1
         WHERE k.project_id = p_project AND k.id = v.id;
    ELSE
        UPDATE vf.leases k
           SET state = 'fenced', fence_reason = coalesce(k.fence_reason, p_reason), pg_lineage = vf.lineage(),
               size = k.size + greatest(v_more, 0), open_to = k.size + greatest(v_more, 0)
         WHERE k.project_id = p_project AND k.id = p_lease;
    END IF;
    IF v_more > 0 THEN
        INSERT INTO vf.lease_grants (project_id, lease_id, size)
        VALUES (p_project, p_lease, coalesce(l.size, 0) + v_more);
        UPDATE vf.campaigns k SET leased_count = k.leased_count + v_more
         WHERE k.project_id = p_project AND k.id = v.campaign_id;
        UPDATE vf.vouchers k SET leased_count = k.leased_count + v_more
         WHERE k.project_id = p_project AND k.id = v.id;
        UPDATE vf.flash_sales k SET leased_count = k.leased_count + v_more
         WHERE k.project_id = p_project AND k.id = p_sale;
    END IF;
    RETURN QUERY SELECT CASE WHEN l.id IS NULL THEN 'created' ELSE 'held' END,
                        coalesce(l.size, 0) + greatest(v_more, 0);
END $$;

INSERT INTO vf.history (lineage) VALUES (vf.lineage());

REVOKE ALL ON FUNCTION vf.is_accepted(), vf.refuse_unaccepted(),
    vf.recover_lease(uuid, uuid, bigint, uuid, bigint, bigint, bigint, text, text, text) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vf.is_accepted(), vf.refuse_unaccepted(),
    vf.recover_lease(uuid, uuid, bigint, uuid, bigint, bigint, bigint, text, text, text) TO vf_app, vf_worker;
