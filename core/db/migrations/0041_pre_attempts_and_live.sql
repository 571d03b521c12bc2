-- What is refused and what is only asked, counted by quarter of an hour; which projects have news for who listens.

-- What was refused, by the code of the reason, and what was only asked (validate, with the reason valid where it would
-- work), by quarter of an hour; added up by each process once a second.
CREATE TABLE vf.attempts (
    project_id  uuid NOT NULL REFERENCES vf.projects (id),
    bucket      timestamptz NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('redeem', 'validate')),
    reason      text NOT NULL,
    count       bigint NOT NULL CHECK (count > 0),
    PRIMARY KEY (project_id, bucket, kind, reason)
);
ALTER TABLE vf.attempts ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.attempts FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.attempts TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.attempts TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_deletion ON vf.attempts TO vf_definer USING (project_id IN (SELECT p.id FROM vf.projects p
    WHERE p.status = 'deleting'));
CREATE POLICY of_definer ON vf.attempts TO vf_definer USING (true) WITH CHECK (true);
GRANT SELECT ON vf.attempts TO vf_app;
GRANT SELECT, INSERT, UPDATE ON vf.attempts TO vf_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON vf.attempts TO vf_definer;

-- Adds refusals and validations to the running quarter of an hour. A project that is gone is left out.
CREATE FUNCTION vf.count_attempts(p_projects uuid[], p_kinds text[], p_reasons text[], p_counts bigint[])
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO vf.attempts AS a (project_id, bucket, kind, reason, count)
    SELECT p.id, date_bin('15 minutes', clock_timestamp(), 'epoch'), k.kind, k.reason, k.n
      FROM unnest(p_projects, p_kinds, p_reasons, p_counts) AS k (id, kind, reason, n)
      JOIN vf.projects p ON p.id = k.id AND p.status <> 'deleting'
     ORDER BY 1, 2, 3, 4
        ON CONFLICT (project_id, bucket, kind, reason) DO UPDATE SET count = a.count + excluded.count
$$;
CREATE POLICY of_definer ON vf.events FOR SELECT TO vf_definer USING (true);

-- Those of some projects that have events after the ones given. It says nothing of what they are.
CREATE FUNCTION vf.moved_projects(p_projects uuid[], p_heads uuid[])
RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT q.id FROM unnest(p_projects, p_heads) AS q (id, head)
     WHERE EXISTS (SELECT 1 FROM vf.events e WHERE e.project_id = q.id AND e.id > q.head)
$$;

GRANT CREATE ON SCHEMA vf TO vf_definer;
ALTER FUNCTION vf.count_attempts(uuid[], text[], text[], bigint[]) OWNER TO vf_definer;
ALTER FUNCTION vf.moved_projects(uuid[], uuid[]) OWNER TO vf_definer;
REVOKE CREATE ON SCHEMA vf FROM vf_definer;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vf.count_attempts(uuid[], text[], text[], bigint[]), vf.moved_projects(uuid[], uuid[]) TO vf_app, vf_worker;
