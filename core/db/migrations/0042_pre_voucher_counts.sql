-- How many vouchers there are, counted by the worker from what the statements that make and change them write.

-- How many vouchers a project has, as the worker counted them up to vf.voucher_mark: active ones, whether their time is over
-- or not, disabled ones, and those of the active whose time was over then.
CREATE TABLE vf.voucher_counts (
    project_id      uuid PRIMARY KEY REFERENCES vf.projects (id),
    active_count    bigint NOT NULL,
    disabled_count  bigint NOT NULL,
    expired_count   bigint NOT NULL
);

-- What the worker has not counted yet: so many vouchers more, or fewer, that are active or not and end then. Written by the
-- statement that makes, changes or deletes vouchers; a redeem changes nothing of it.
CREATE TABLE vf.voucher_changes (
    project_id  uuid NOT NULL,
    id          bigint GENERATED ALWAYS AS IDENTITY,
    is_active   boolean NOT NULL,
    expires_at  timestamptz NOT NULL,
    count       bigint NOT NULL CHECK (count <> 0),
    PRIMARY KEY (project_id, id)
);

-- Up to when those whose time is over are counted; NULL: what there was before changes were written is not counted yet.
-- One row.
CREATE TABLE vf.voucher_mark (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    expired_to  timestamptz
);
INSERT INTO vf.voucher_mark DEFAULT VALUES;
ALTER TABLE vf.voucher_counts ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.voucher_counts FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.voucher_counts TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.voucher_counts TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_deletion ON vf.voucher_counts TO vf_definer USING (project_id IN (SELECT p.id FROM vf.projects p
    WHERE p.status = 'deleting'));
GRANT SELECT ON vf.voucher_counts TO vf_app;
GRANT SELECT, INSERT, UPDATE ON vf.voucher_counts TO vf_worker;
GRANT SELECT, DELETE ON vf.voucher_counts TO vf_definer;
ALTER TABLE vf.voucher_changes ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.voucher_changes FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.voucher_changes TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.voucher_changes TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_deletion ON vf.voucher_changes TO vf_definer USING (project_id IN (SELECT p.id FROM vf.projects p
    WHERE p.status = 'deleting'));
GRANT SELECT ON vf.voucher_changes TO vf_app;
GRANT SELECT, DELETE ON vf.voucher_changes TO vf_worker;
GRANT SELECT, DELETE ON vf.voucher_changes TO vf_definer;
CREATE POLICY of_definer ON vf.voucher_changes FOR INSERT TO vf_definer WITH CHECK (true);
GRANT INSERT ON vf.voucher_changes TO vf_definer;
GRANT SELECT ON vf.voucher_mark TO vf_app;
GRANT SELECT, UPDATE ON vf.voucher_mark TO vf_worker;

-- Writes what a statement changed of how many vouchers there are. As vf_definer: whoever makes vouchers writes no counts.
CREATE FUNCTION vf.note_vouchers() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO vf.voucher_changes (project_id, is_active, expires_at, count)
        VALUES (OLD.project_id, OLD.status = 'active', coalesce(OLD.expires_at, 'infinity'), -1),
               (NEW.project_id, NEW.status = 'active', coalesce(NEW.expires_at, 'infinity'), 1);
    ELSE
        INSERT INTO vf.voucher_changes (project_id, is_active, expires_at, count)
        SELECT t.project_id, t.status = 'active', coalesce(t.expires_at, 'infinity'),
               CASE TG_OP WHEN 'INSERT' THEN count(*) ELSE -count(*) END
          FROM touched t GROUP BY 1, 2, 3;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER vouchers_made AFTER INSERT ON vf.vouchers REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION vf.note_vouchers();
CREATE TRIGGER vouchers_gone AFTER DELETE ON vf.vouchers REFERENCING OLD TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION vf.note_vouchers();
-- Of these columns alone: a redeem changes others, and pays nothing.
CREATE TRIGGER vouchers_changed AFTER UPDATE OF status, expires_at ON vf.vouchers
    FOR EACH ROW WHEN ((OLD.status, OLD.expires_at) IS DISTINCT FROM (NEW.status, NEW.expires_at))
    EXECUTE FUNCTION vf.note_vouchers();

-- Counts the next changes, and the vouchers whose time is over since; answers how many changes, or NULL where it has not
-- begun. Nothing while somebody else does. One statement does it, so that vouchers and changes are of one moment: those
-- whose time is over since, as they are now, less what changes that are not counted say of them.
CREATE FUNCTION vf.count_vouchers(p_rows_max bigint, p_pause_s integer)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    v_from timestamptz;
    v_to timestamptz := clock_timestamp();
    v_count bigint;
BEGIN
    SELECT m.expired_to INTO v_from FROM vf.voucher_mark m FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    ELSIF v_from IS NULL THEN
        RETURN NULL;
    ELSIF v_from > v_to - make_interval(secs => p_pause_s) AND NOT EXISTS (SELECT 1 FROM vf.voucher_changes) THEN
        RETURN 0;
    END IF;
    WITH taken AS (
        DELETE FROM vf.voucher_changes c
         WHERE c.ctid = ANY (ARRAY(SELECT x.ctid FROM vf.voucher_changes x LIMIT p_rows_max))
        RETURNING c.project_id, c.is_active, c.expires_at, c.count
    ), added AS (
        INSERT INTO vf.voucher_counts AS k (project_id, active_count, disabled_count, expired_count)
        SELECT n.project_id, sum(n.active), sum(n.disabled), sum(n.expired)
          FROM (SELECT t.project_id, CASE WHEN t.is_active THEN t.count ELSE 0 END AS active,
                       CASE WHEN t.is_active THEN 0 ELSE t.count END AS disabled,
                       CASE WHEN t.is_active AND t.expires_at <= v_to THEN t.count ELSE 0 END AS expired
                  FROM taken t
                UNION ALL
                SELECT p.id, 0, 0, v.expired
                  FROM vf.projects p
                 CROSS JOIN LATERAL (
                       SELECT count(*) AS expired FROM vf.vouchers k
                        WHERE k.project_id = p.id AND k.status = 'active' AND k.expires_at > v_from AND k.expires_at <= v_to) v
                 WHERE v.expired > 0
                UNION ALL
                SELECT c.project_id, 0, 0, -c.count FROM vf.voucher_changes c
                 WHERE c.is_active AND c.expires_at > v_from AND c.expires_at <= v_to) n
          JOIN vf.projects p ON p.id = n.project_id
         GROUP BY 1 ORDER BY 1
            ON CONFLICT (project_id) DO UPDATE
               SET active_count = k.active_count + excluded.active_count,
                   disabled_count = k.disabled_count + excluded.disabled_count,
                   expired_count = k.expired_count + excluded.expired_count
    ), moved AS (
        UPDATE vf.voucher_mark SET expired_to = v_to
    )
    SELECT count(*) INTO v_count FROM taken;
    RETURN v_count;
END $$;

-- Counts every voucher there is, once, where counting begins. Run it in a REPEATABLE READ transaction: then vouchers and
-- changes are of one moment. Answers whether it is done.
CREATE FUNCTION vf.begin_voucher_counts()
RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    v_to timestamptz := clock_timestamp();
BEGIN
    PERFORM 1 FROM vf.voucher_mark m WHERE m.expired_to IS NULL FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN true;
    END IF;
    INSERT INTO vf.voucher_counts
    SELECT k.project_id, count(*) FILTER (WHERE k.status = 'active'), count(*) FILTER (WHERE k.status <> 'active'),
           count(*) FILTER (WHERE k.status = 'active' AND k.expires_at <= v_to)
      FROM vf.vouchers k GROUP BY 1;
    DELETE FROM vf.voucher_changes;
    UPDATE vf.voucher_mark m SET expired_to = v_to;
    RETURN true;
END $$;

-- How many vouchers of a project are active and in their time, disabled, and over, counting what is not counted yet.
CREATE FUNCTION vf.vouchers_of(p_project uuid)
RETURNS TABLE (active_count bigint, disabled_count bigint, expired_count bigint)
LANGUAGE sql STABLE
AS $$
    SELECT n.active - n.expired, n.disabled, n.expired
      FROM (SELECT (coalesce(k.active_count, 0) + c.active)::bigint AS active,
                   (coalesce(k.disabled_count, 0) + c.disabled)::bigint AS disabled,
                   (coalesce(k.expired_count, 0) + c.expired + e.expired)::bigint AS expired
              FROM vf.voucher_mark m
              LEFT JOIN vf.voucher_counts k ON k.project_id = p_project
             CROSS JOIN LATERAL (
                   SELECT coalesce(sum(c.count) FILTER (WHERE c.is_active), 0) AS active,
                          coalesce(sum(c.count) FILTER (WHERE NOT c.is_active), 0) AS disabled,
                          coalesce(sum(c.count) FILTER (WHERE c.is_active AND c.expires_at <= m.expired_to), 0) AS expired
                     FROM vf.voucher_changes c WHERE c.project_id = p_project AND m.expired_to IS NOT NULL) c
             CROSS JOIN LATERAL (
                   SELECT count(*) AS expired FROM vf.vouchers v
                    WHERE v.project_id = p_project AND v.status = 'active'
                      AND v.expires_at > m.expired_to AND v.expires_at <= now()) e
             WHERE m.expired_to IS NOT NULL
            UNION ALL
            SELECT v.active, v.disabled, v.expired
              FROM vf.voucher_mark m
             CROSS JOIN LATERAL (
                   SELECT count(*) FILTER (WHERE v.status = 'active') AS active,
                          count(*) FILTER (WHERE v.status <> 'active') AS disabled,
                          count(*) FILTER (WHERE v.status = 'active' AND v.expires_at <= now()) AS expired
                     FROM vf.vouchers v WHERE v.project_id = p_project AND m.expired_to IS NULL) v
             WHERE m.expired_to IS NULL) n
$$;
GRANT CREATE ON SCHEMA vf TO vf_definer;
ALTER FUNCTION vf.note_vouchers() OWNER TO vf_definer;
REVOKE CREATE ON SCHEMA vf FROM vf_definer;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vf.note_vouchers(), vf.count_vouchers(bigint, integer), vf.begin_voucher_counts(),
    vf.vouchers_of(uuid) TO vf_app, vf_worker;
