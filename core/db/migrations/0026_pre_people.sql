-- People: what they may do in which project, and where they are logged in.

ALTER TABLE vf.users ADD name text;

-- What a person may do in a project. A project keeps at least one owner, who may be asked for it.
CREATE TABLE vf.memberships (
    project_id  uuid NOT NULL REFERENCES vf.projects (id),
    user_id     uuid NOT NULL REFERENCES vf.users (id),
    role        text NOT NULL CHECK (role IN ('owner', 'admin', 'analyst')),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, user_id)
);
CREATE INDEX memberships_of_user ON vf.memberships (user_id, project_id);

-- A person who is logged in somewhere, known by an HMAC of what their browser keeps. expires_at: however busy it is.
CREATE TABLE vf.sessions (
    id          uuid PRIMARY KEY,
    user_id     uuid NOT NULL REFERENCES vf.users (id),
    digest      bytea NOT NULL CHECK (length(digest) = 32),
    address     text NOT NULL,
    agent       text,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz NOT NULL,
    ended_at    timestamptz,
    CONSTRAINT sessions_digest_key UNIQUE (digest)
);
CREATE INDEX sessions_of_user ON vf.sessions (user_id, id) WHERE ended_at IS NULL;
CREATE INDEX sessions_old ON vf.sessions (expires_at);

INSERT INTO vf.memberships (project_id, user_id, role)
SELECT p.id, u.id, 'owner' FROM vf.projects p JOIN vf.users u ON u.account_id = p.account_id;

ALTER TABLE vf.memberships ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.memberships FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.memberships TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.memberships TO vf_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON vf.memberships TO vf_app, vf_worker;

-- People belong to no project: vf_app reaches them by the functions below alone.
ALTER TABLE vf.sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.sessions FORCE ROW LEVEL SECURITY;
CREATE POLICY of_operator ON vf.sessions TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.sessions TO vf_definer USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.memberships TO vf_definer USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON vf.sessions TO vf_worker;
GRANT SELECT, INSERT, UPDATE ON vf.sessions, vf.accounts, vf.users TO vf_definer;
GRANT SELECT, INSERT ON vf.memberships TO vf_definer;
GRANT INSERT ON vf.projects TO vf_definer;
GRANT DELETE ON vf.memberships TO vf_app;

-- ---------------------------------------------------------------------------------------------
-- People

-- A new person with an account of their own. An e-mail that is taken violates users_email_key.
CREATE FUNCTION vf.sign_up(p_user uuid, p_account uuid, p_email text, p_name text, p_password_hash text)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO vf.accounts (id, name) VALUES (p_account, coalesce(p_name, p_email));
    INSERT INTO vf.users (id, account_id, email, name, password_hash)
    VALUES (p_user, p_account, p_email, p_name, p_password_hash);
$$;

-- A new project of a person's account, which they own.
CREATE FUNCTION vf.create_project(p_user uuid, p_project uuid, p_name text, p_currency text, p_time_zone text)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO vf.projects (id, account_id, name, currency, time_zone)
    SELECT p_project, u.account_id, p_name, p_currency, p_time_zone FROM vf.users u WHERE u.id = p_user;
    INSERT INTO vf.memberships (project_id, user_id, role) VALUES (p_project, p_user, 'owner');
$$;

-- What a log-in is checked against.
CREATE FUNCTION vf.person_by_email(p_email text)
RETURNS TABLE (user_id uuid, password_hash text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT u.id, u.password_hash FROM vf.users u WHERE u.email = p_email
$$;

-- A new session; the one before it on the same browser ends.
CREATE FUNCTION vf.open_session(p_id uuid, p_user uuid, p_digest bytea, p_replaces bytea, p_address text, p_agent text,
                                p_life interval)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE vf.sessions s SET ended_at = clock_timestamp() WHERE s.digest = p_replaces AND s.ended_at IS NULL;
    INSERT INTO vf.sessions (id, user_id, digest, address, agent, expires_at)
    VALUES (p_id, p_user, p_digest, p_address, p_agent, clock_timestamp() + p_life);
$$;

-- Whose session this is, nothing where it has ended. That it was used is written once a minute.
CREATE FUNCTION vf.use_session(p_digest bytea, p_idle interval)
RETURNS TABLE (session_id uuid, user_id uuid, email text, name text, created_at timestamptz, expires_at timestamptz)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE vf.sessions s SET seen_at = clock_timestamp()
     WHERE s.digest = p_digest AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()
       AND s.seen_at > clock_timestamp() - p_idle AND s.seen_at < clock_timestamp() - interval '1 minute';
    SELECT s.id, u.id, u.email, u.name, s.created_at, s.expires_at
      FROM vf.sessions s JOIN vf.users u ON u.id = s.user_id
     WHERE s.digest = p_digest AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()
       AND s.seen_at > clock_timestamp() - p_idle;
$$;

-- Where a person may do something, and what.
CREATE FUNCTION vf.projects_of(p_user uuid)
RETURNS TABLE (project_id uuid, name text, currency text, time_zone text, role text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT p.id, p.name, p.currency, p.time_zone, m.role
      FROM vf.memberships m JOIN vf.projects p ON p.id = m.project_id
     WHERE m.user_id = p_user
     ORDER BY p.id
$$;

-- Ends sessions of a person: one, or all but one; true where it ended any.
CREATE FUNCTION vf.end_sessions(p_user uuid, p_one uuid, p_but uuid)
RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH ended AS (
        UPDATE vf.sessions s SET ended_at = clock_timestamp()
         WHERE s.user_id = p_user AND s.ended_at IS NULL
           AND (p_one IS NULL OR s.id = p_one) AND (p_but IS NULL OR s.id <> p_but)
        RETURNING 1)
    SELECT EXISTS (SELECT FROM ended)
$$;

GRANT CREATE ON SCHEMA vf TO vf_definer;
ALTER FUNCTION vf.sign_up(uuid, uuid, text, text, text) OWNER TO vf_definer;
ALTER FUNCTION vf.create_project(uuid, uuid, text, text, text) OWNER TO vf_definer;
ALTER FUNCTION vf.person_by_email(text) OWNER TO vf_definer;
ALTER FUNCTION vf.open_session(uuid, uuid, bytea, bytea, text, text, interval) OWNER TO vf_definer;
ALTER FUNCTION vf.use_session(bytea, interval) OWNER TO vf_definer;
ALTER FUNCTION vf.projects_of(uuid) OWNER TO vf_definer;
ALTER FUNCTION vf.end_sessions(uuid, uuid, uuid) OWNER TO vf_definer;
REVOKE CREATE ON SCHEMA vf FROM vf_definer;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
