-- The audit log says from where and what was before, and is a chain.

-- How long the audit log of a project is, and the hash of its last entry.
CREATE TABLE vf.audit_heads (
    project_id  uuid PRIMARY KEY REFERENCES vf.projects (id),
    number      bigint NOT NULL,
    hash        bytea NOT NULL
);

ALTER TABLE vf.audit_heads ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.audit_heads FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.audit_heads TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.audit_heads TO vf_worker USING (true) WITH CHECK (true);
GRANT SELECT ON vf.audit_heads TO vf_app, vf_worker;
-- Nobody who may add to an audit log may move its head.
CREATE POLICY of_definer ON vf.audit_heads TO vf_definer USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON vf.audit_heads TO vf_definer;

ALTER TABLE vf.audit_log ADD before jsonb, ADD after jsonb, ADD address text, ADD number bigint, ADD hash bytea;

-- ---------------------------------------------------------------------------------------------
-- The audit log

-- What an entry is sealed with: all it says, and the seal of the entry before it.
CREATE FUNCTION vf.audit_hash(p_before bytea, p_entry vf.audit_log) RETURNS bytea LANGUAGE sql IMMUTABLE
AS $$
    SELECT sha256(p_before || convert_to(jsonb_build_array(
        p_entry.project_id, p_entry.number, p_entry.id, p_entry.actor, p_entry.action, p_entry.target, p_entry.detail,
        p_entry.before, p_entry.after, p_entry.address, p_entry.request_id, extract(epoch FROM p_entry.at))::text, 'UTF8'))
$$;

-- Numbers an entry and chains it to the one before. Entries of a project wait for each other until the commit, so they
-- are written last in their transactions.
CREATE FUNCTION vf.chain_audit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    head vf.audit_heads;
BEGIN
    INSERT INTO vf.audit_heads AS h (project_id, number, hash) VALUES (NEW.project_id, 0, '')
        ON CONFLICT (project_id) DO UPDATE SET number = h.number
        RETURNING h.* INTO head;
    NEW.number := head.number + 1;
    NEW.at := clock_timestamp();
    NEW.hash := vf.audit_hash(head.hash, NEW);
    UPDATE vf.audit_heads h SET number = NEW.number, hash = NEW.hash WHERE h.project_id = NEW.project_id;
    RETURN NEW;
END $$;

-- What is there already, in the order it was written. The table is its owner's, whom its policies name no rows.
ALTER TABLE vf.audit_log NO FORCE ROW LEVEL SECURITY;
ALTER TABLE vf.audit_heads NO FORCE ROW LEVEL SECURITY;
DO $$
DECLARE
    entry vf.audit_log;
    head  vf.audit_heads;
BEGIN
    FOR entry IN SELECT a.* FROM vf.audit_log a ORDER BY a.project_id, a.id LOOP
        IF head.project_id IS DISTINCT FROM entry.project_id THEN
            head := ROW (entry.project_id, 0, ''::bytea);
        END IF;
        entry.number := head.number + 1;
        head := ROW (entry.project_id, entry.number, vf.audit_hash(head.hash, entry));
        UPDATE vf.audit_log a SET number = entry.number, hash = head.hash
         WHERE a.project_id = entry.project_id AND a.id = entry.id;
        INSERT INTO vf.audit_heads VALUES (head.*)
            ON CONFLICT (project_id) DO UPDATE SET number = EXCLUDED.number, hash = EXCLUDED.hash;
    END LOOP;
END $$;
ALTER TABLE vf.audit_log FORCE ROW LEVEL SECURITY;
ALTER TABLE vf.audit_heads FORCE ROW LEVEL SECURITY;
ALTER TABLE vf.audit_log ALTER number SET NOT NULL, ALTER hash SET NOT NULL;
ALTER TABLE vf.audit_log ADD CONSTRAINT audit_log_number_key UNIQUE (project_id, number);
CREATE TRIGGER audit_log_chain BEFORE INSERT ON vf.audit_log FOR EACH ROW EXECUTE FUNCTION vf.chain_audit();

-- Who is in the project that was entered.
CREATE FUNCTION vf.members()
RETURNS TABLE (user_id uuid, email text, name text, role text, created_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT u.id, u.email, u.name, m.role, m.created_at
      FROM vf.memberships m JOIN vf.users u ON u.id = m.user_id
     WHERE m.project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid)
     ORDER BY m.created_at, u.id
$$;

-- Who had a project before people had roles owns it.
ALTER TABLE vf.projects NO FORCE ROW LEVEL SECURITY;
ALTER TABLE vf.memberships NO FORCE ROW LEVEL SECURITY;
INSERT INTO vf.memberships (project_id, user_id, role)
SELECT p.id, u.id, 'owner' FROM vf.projects p JOIN vf.users u ON u.account_id = p.account_id
    ON CONFLICT DO NOTHING;
ALTER TABLE vf.projects FORCE ROW LEVEL SECURITY;
ALTER TABLE vf.memberships FORCE ROW LEVEL SECURITY;

GRANT CREATE ON SCHEMA vf TO vf_definer;
ALTER FUNCTION vf.chain_audit() OWNER TO vf_definer;
ALTER FUNCTION vf.members() OWNER TO vf_definer;
REVOKE CREATE ON SCHEMA vf FROM vf_definer;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
GRANT EXECUTE ON FUNCTION vf.audit_hash(bytea, vf.audit_log) TO vf_definer;
