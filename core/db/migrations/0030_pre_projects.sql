-- Projects that can be changed, archived and deleted.

ALTER TABLE vf.projects
    ADD status text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'archived', 'deleting')),
    ADD rollback_window_s bigint NOT NULL DEFAULT 1800 CHECK (rollback_window_s >= 0),
    ADD mail_at_percent bigint[] NOT NULL DEFAULT '{80,100}',
    ADD archived_at timestamptz,
    ADD deleting_at timestamptz,
    ADD CONSTRAINT projects_archived CHECK (status <> 'archived' OR archived_at IS NOT NULL),
    ADD CONSTRAINT projects_deleting CHECK ((status = 'deleting') = (deleting_at IS NOT NULL));

-- Projects that are gone, with nothing left of them but this.
CREATE TABLE vf.deleted_projects (
    id           uuid PRIMARY KEY,
    account_id   uuid NOT NULL REFERENCES vf.accounts (id),
    name         text NOT NULL,
    deleting_at  timestamptz NOT NULL,
    deleted_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);

DO $$
DECLARE
    t regclass;
BEGIN
    FOR t IN
        SELECT a.attrelid::regclass FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
         WHERE c.relnamespace = 'vf'::regnamespace AND c.relkind = 'r' AND a.attname = 'project_id'
    LOOP
        EXECUTE format('CREATE POLICY of_deletion ON %s TO vf_definer USING (project_id IN (SELECT p.id FROM vf.projects p '
                       'WHERE p.status = ''deleting''))', t);
        EXECUTE format('GRANT SELECT, DELETE ON %s TO vf_definer', t);
    END LOOP;
END $$;
GRANT UPDATE (name, currency, time_zone, status, rollback_window_s, mail_at_percent, archived_at, deleting_at)
    ON vf.projects TO vf_app;
GRANT DELETE ON vf.projects TO vf_definer;
-- To lock a row: the project's own, and, for the trigger that keeps grants, their lease's.
GRANT UPDATE (status) ON vf.projects TO vf_definer;
GRANT UPDATE (state) ON vf.leases TO vf_definer;
ALTER TABLE vf.deleted_projects ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.deleted_projects FORCE ROW LEVEL SECURITY;
CREATE POLICY of_operator ON vf.deleted_projects TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.deleted_projects TO vf_definer USING (true) WITH CHECK (true);
GRANT SELECT, INSERT ON vf.deleted_projects TO vf_definer;
GRANT SELECT ON vf.deleted_projects TO vf_worker;

-- Who presents the key with this digest; no row for an unknown, revoked or expired one, or in a project put away.
CREATE OR REPLACE FUNCTION vf.authenticate(p_digest bytea)
RETURNS TABLE (key_id uuid, project_id uuid, account_id uuid, kind text, currency text, scopes text[],
               origins text[], expires_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.id, k.project_id, p.account_id, k.kind, p.currency, k.scopes, k.origins, k.expires_at
      FROM vf.api_keys k JOIN vf.projects p ON p.id = k.project_id
     WHERE k.digest = p_digest AND k.revoked_at IS NULL AND p.status = 'active'
       AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
$$;

DROP FUNCTION vf.projects_of(uuid);
-- Where a person may do something, and what.
CREATE FUNCTION vf.projects_of(p_user uuid)
RETURNS TABLE (project_id uuid, name text, currency text, time_zone text, status text, role text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT p.id, p.name, p.currency, p.time_zone, p.status, m.role
      FROM vf.memberships m JOIN vf.projects p ON p.id = m.project_id
     WHERE m.user_id = p_user
     ORDER BY p.id
$$;

-- Deletes up to p_rows_max rows of a project that is being deleted, children before parents, and says how many. When
-- nothing is left the project itself goes, and the answer is 0.
CREATE FUNCTION vf.purge_project(p_project uuid, p_rows_max bigint)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t regclass;
    v_count bigint;
    v_total bigint := 0;
    v_waits boolean := false;
BEGIN
    PERFORM 1 FROM vf.projects p WHERE p.id = p_project AND p.status = 'deleting' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    SET CONSTRAINTS ALL IMMEDIATE;
    FOR t IN
        SELECT c.oid::regclass FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'project_id'
         WHERE c.relnamespace = 'vf'::regnamespace AND c.relkind = 'r' AND NOT a.attisdropped
         ORDER BY c.relname
    LOOP
        EXIT WHEN v_total >= p_rows_max;
        BEGIN
            EXECUTE format('DELETE FROM %s WHERE ctid = ANY (ARRAY(SELECT k.ctid FROM %s k WHERE k.project_id = $1 LIMIT $2))',
                           t, t) USING p_project, p_rows_max - v_total;
            GET DIAGNOSTICS v_count = ROW_COUNT;
            v_total := v_total + v_count;
        EXCEPTION WHEN foreign_key_violation THEN
            v_waits := true;
        END;
    END LOOP;
    IF v_total = 0 THEN
        ASSERT NOT v_waits, 'rows of the project keep each other';
        INSERT INTO vf.deleted_projects (id, account_id, name, deleting_at)
        SELECT p.id, p.account_id, p.name, p.deleting_at FROM vf.projects p WHERE p.id = p_project;
        DELETE FROM vf.projects p WHERE p.id = p_project;
    END IF;
    RETURN v_total;
END $$;

GRANT CREATE ON SCHEMA vf TO vf_definer;
ALTER FUNCTION vf.projects_of(uuid) OWNER TO vf_definer;
ALTER FUNCTION vf.purge_project(uuid, bigint) OWNER TO vf_definer;
REVOKE CREATE ON SCHEMA vf FROM vf_definer;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
REVOKE EXECUTE ON FUNCTION vf.purge_project(uuid, bigint) FROM vf_app;
