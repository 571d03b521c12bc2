-- Invitations, new passwords, second factors; a project keeps an owner.

ALTER TABLE vf.users
    ADD totp_nonce bytea,
    ADD totp_since timestamptz,
    ADD totp_step bigint NOT NULL DEFAULT 0,
    ADD recovery_codes bytea[] NOT NULL DEFAULT '{}';

-- Who was asked into a project, known by an HMAC of what their mail holds, until they come.
CREATE TABLE vf.invitations (
    project_id   uuid NOT NULL REFERENCES vf.projects (id),
    id           uuid NOT NULL,
    email        text NOT NULL CHECK (email = lower(email)),
    role         text NOT NULL CHECK (role IN ('owner', 'admin', 'analyst')),
    digest       bytea NOT NULL CHECK (length(digest) = 32),
    invited_by   uuid NOT NULL REFERENCES vf.users (id),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz NOT NULL,
    accepted_at  timestamptz,
    revoked_at   timestamptz,
    PRIMARY KEY (project_id, id),
    CONSTRAINT invitations_digest_key UNIQUE (digest),
    CONSTRAINT invitations_ended CHECK (accepted_at IS NULL OR revoked_at IS NULL)
);
CREATE UNIQUE INDEX invitations_one_open ON vf.invitations (project_id, email)
    WHERE accepted_at IS NULL AND revoked_at IS NULL;

-- Who may set a new password, known by an HMAC of what their mail holds, once.
CREATE TABLE vf.password_resets (
    digest      bytea PRIMARY KEY CHECK (length(digest) = 32),
    user_id     uuid NOT NULL REFERENCES vf.users (id),
    expires_at  timestamptz NOT NULL,
    used_at     timestamptz
);
CREATE INDEX password_resets_old ON vf.password_resets (expires_at);

ALTER TABLE vf.invitations ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.invitations FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.invitations TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.invitations TO vf_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON vf.invitations TO vf_app, vf_worker;
CREATE POLICY of_deletion ON vf.invitations TO vf_definer
    USING (project_id IN (SELECT p.id FROM vf.projects p WHERE p.status = 'deleting'));
GRANT SELECT, DELETE ON vf.invitations TO vf_definer;
ALTER TABLE vf.password_resets ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.password_resets FORCE ROW LEVEL SECURITY;
CREATE POLICY of_operator ON vf.password_resets TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.password_resets TO vf_definer USING (true) WITH CHECK (true);
GRANT SELECT, DELETE ON vf.password_resets TO vf_worker;
GRANT SELECT, INSERT, UPDATE ON vf.password_resets TO vf_definer;
CREATE POLICY of_definer ON vf.invitations TO vf_definer USING (true);

DROP FUNCTION vf.person_by_email(text);
DROP FUNCTION vf.use_session(bytea, interval);
-- What a log-in is checked against.
CREATE FUNCTION vf.person_by_email(p_email text)
RETURNS TABLE (user_id uuid, password_hash text, totp_nonce bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT u.id, u.password_hash, CASE WHEN u.totp_since IS NOT NULL THEN u.totp_nonce END
      FROM vf.users u WHERE u.email = p_email
$$;

-- Whose session this is, nothing where it has ended. That it was used is written once a minute.
CREATE FUNCTION vf.use_session(p_digest bytea, p_idle interval)
RETURNS TABLE (session_id uuid, user_id uuid, email text, name text, has_second_factor boolean, created_at timestamptz,
               expires_at timestamptz)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE vf.sessions s SET seen_at = clock_timestamp()
     WHERE s.digest = p_digest AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()
       AND s.seen_at > clock_timestamp() - p_idle AND s.seen_at < clock_timestamp() - interval '1 minute';
    SELECT s.id, u.id, u.email, u.name, u.totp_since IS NOT NULL, s.created_at, s.expires_at
      FROM vf.sessions s JOIN vf.users u ON u.id = s.user_id
     WHERE s.digest = p_digest AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()
       AND s.seen_at > clock_timestamp() - p_idle;
$$;

-- A person's sessions that have not ended, newest first.
CREATE FUNCTION vf.sessions_of(p_user uuid, p_idle interval)
RETURNS TABLE (id uuid, address text, agent text, created_at timestamptz, seen_at timestamptz, expires_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.id, s.address, s.agent, s.created_at, s.seen_at, s.expires_at
      FROM vf.sessions s
     WHERE s.user_id = p_user AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()
       AND s.seen_at > clock_timestamp() - p_idle
     ORDER BY s.id DESC
$$;

-- What a person's own password is checked against.
CREATE FUNCTION vf.credentials_of(p_user uuid)
RETURNS TABLE (user_id uuid, password_hash text, totp_nonce bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT u.id, u.password_hash, u.totp_nonce FROM vf.users u WHERE u.id = p_user
$$;

-- Sets a new password.
CREATE FUNCTION vf.set_password(p_user uuid, p_password_hash text)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE vf.users u SET password_hash = p_password_hash WHERE u.id = p_user
$$;

-- Lets who has an e-mail set a new password; false where nobody has it. What was let before is void.
CREATE FUNCTION vf.allow_reset(p_email text, p_digest bytea, p_life interval)
RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE vf.password_resets r SET used_at = clock_timestamp()
      FROM vf.users u WHERE u.email = p_email AND r.user_id = u.id AND r.used_at IS NULL;
    WITH allowed AS (
        INSERT INTO vf.password_resets (digest, user_id, expires_at)
        SELECT p_digest, u.id, clock_timestamp() + p_life FROM vf.users u WHERE u.email = p_email
        RETURNING 1)
    SELECT EXISTS (SELECT FROM allowed)
$$;

-- Sets a new password, once, and ends all sessions; false where it is not allowed, or not any more.
CREATE FUNCTION vf.use_reset(p_digest bytea, p_password_hash text)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_user uuid;
BEGIN
    UPDATE vf.password_resets r SET used_at = clock_timestamp()
     WHERE r.digest = p_digest AND r.used_at IS NULL AND r.expires_at > clock_timestamp()
    RETURNING r.user_id INTO v_user;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE vf.users u SET password_hash = p_password_hash WHERE u.id = v_user;
    UPDATE vf.sessions s SET ended_at = clock_timestamp() WHERE s.user_id = v_user AND s.ended_at IS NULL;
    RETURN true;
END $$;

-- Gives a person a second factor that is still to be confirmed, or takes theirs away (no nonce).
CREATE FUNCTION vf.set_second_factor(p_user uuid, p_nonce bytea)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE vf.users u SET totp_nonce = p_nonce, totp_since = NULL, totp_step = 0, recovery_codes = '{}' WHERE u.id = p_user
$$;

-- Confirms a second factor, once.
CREATE FUNCTION vf.confirm_second_factor(p_user uuid, p_nonce bytea, p_codes bytea[])
RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH confirmed AS (
        UPDATE vf.users u SET totp_since = clock_timestamp(), recovery_codes = p_codes
         WHERE u.id = p_user AND u.totp_nonce = p_nonce AND u.totp_since IS NULL
        RETURNING 1)
    SELECT EXISTS (SELECT FROM confirmed)
$$;

-- Takes a code of a second factor: a time step that is later than any taken before, or one of the recovery codes.
CREATE FUNCTION vf.use_second_factor(p_user uuid, p_step bigint, p_recovery bytea)
RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH taken AS (
        UPDATE vf.users u SET totp_step = coalesce(p_step, u.totp_step),
                              recovery_codes = array_remove(u.recovery_codes, p_recovery)
         WHERE u.id = p_user AND (p_step > u.totp_step OR p_recovery = ANY (u.recovery_codes))
        RETURNING 1)
    SELECT EXISTS (SELECT FROM taken)
$$;

-- The invitation with this digest that is still good.
CREATE FUNCTION vf.invitation_by_digest(p_digest bytea)
RETURNS TABLE (project_id uuid, id uuid, email text, role text, project_name text, currency text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT i.project_id, i.id, i.email, i.role, p.name, p.currency
      FROM vf.invitations i JOIN vf.projects p ON p.id = i.project_id
     WHERE i.digest = p_digest AND i.accepted_at IS NULL AND i.revoked_at IS NULL
       AND i.expires_at > clock_timestamp() AND p.status = 'active'
$$;

-- A project keeps an owner until it is deleted. Its row is locked, so two cannot both be the last to go.
CREATE FUNCTION vf.keep_an_owner() RETURNS trigger LANGUAGE plpgsql
AS $$
DECLARE
    v_status text;
BEGIN
    SELECT p.status INTO v_status FROM vf.projects p WHERE p.id = OLD.project_id FOR NO KEY UPDATE;
    IF v_status <> 'deleting' AND NOT EXISTS (
        SELECT FROM vf.memberships m WHERE m.project_id = OLD.project_id AND m.role = 'owner') THEN
        RAISE EXCEPTION 'the project has no other owner'
              USING ERRCODE = 'check_violation', CONSTRAINT = 'memberships_one_owner', TABLE = 'memberships', SCHEMA = 'vf';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER memberships_one_owner AFTER DELETE OR UPDATE ON vf.memberships
    FOR EACH ROW WHEN (OLD.role = 'owner') EXECUTE FUNCTION vf.keep_an_owner();

GRANT CREATE ON SCHEMA vf TO vf_definer;
ALTER FUNCTION vf.person_by_email(text) OWNER TO vf_definer;
ALTER FUNCTION vf.use_session(bytea, interval) OWNER TO vf_definer;
ALTER FUNCTION vf.sessions_of(uuid, interval) OWNER TO vf_definer;
ALTER FUNCTION vf.credentials_of(uuid) OWNER TO vf_definer;
ALTER FUNCTION vf.set_password(uuid, text) OWNER TO vf_definer;
ALTER FUNCTION vf.allow_reset(text, bytea, interval) OWNER TO vf_definer;
ALTER FUNCTION vf.use_reset(bytea, text) OWNER TO vf_definer;
ALTER FUNCTION vf.set_second_factor(uuid, bytea) OWNER TO vf_definer;
ALTER FUNCTION vf.confirm_second_factor(uuid, bytea, bytea[]) OWNER TO vf_definer;
ALTER FUNCTION vf.use_second_factor(uuid, bigint, bytea) OWNER TO vf_definer;
ALTER FUNCTION vf.invitation_by_digest(bytea) OWNER TO vf_definer;
REVOKE CREATE ON SCHEMA vf FROM vf_definer;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
REVOKE EXECUTE ON FUNCTION vf.purge_project(uuid, bigint) FROM vf_app;
