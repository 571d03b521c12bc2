-- Confirmed e-mails: whether what somebody signed up with is theirs.

ALTER TABLE vf.users ADD email_confirmed_at timestamptz;

DROP FUNCTION vf.use_session(bytea, interval);
-- The session a token's digest belongs to, and whose it is; that it was used is written once a minute.
CREATE FUNCTION vf.use_session(p_digest bytea, p_idle interval)
RETURNS TABLE (session_id uuid, user_id uuid, email text, name text, has_second_factor boolean, created_at timestamptz,
               expires_at timestamptz, is_email_confirmed boolean)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE vf.sessions s SET seen_at = clock_timestamp()
     WHERE s.digest = p_digest AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()
       AND s.seen_at > clock_timestamp() - p_idle AND s.seen_at < clock_timestamp() - interval '1 minute';
    SELECT s.id, u.id, u.email, u.name, u.totp_since IS NOT NULL, s.created_at, s.expires_at, u.email_confirmed_at IS NOT NULL
      FROM vf.sessions s JOIN vf.users u ON u.id = s.user_id
     WHERE s.digest = p_digest AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()
       AND s.seen_at > clock_timestamp() - p_idle;
$$;

-- Says that a person's e-mail is theirs; whether there is such a person.
CREATE FUNCTION vf.confirm_email(p_user uuid)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE vf.users u SET email_confirmed_at = coalesce(u.email_confirmed_at, clock_timestamp()) WHERE u.id = p_user;
    RETURN FOUND;
END $$;

GRANT CREATE ON SCHEMA vf TO vf_definer;
ALTER FUNCTION vf.use_session(bytea, interval) OWNER TO vf_definer;
ALTER FUNCTION vf.confirm_email(uuid) OWNER TO vf_definer;
REVOKE CREATE ON SCHEMA vf FROM vf_definer;
REVOKE ALL ON FUNCTION vf.use_session(bytea, interval), vf.confirm_email(uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vf.use_session(bytea, interval), vf.confirm_email(uuid) TO vf_app, vf_worker;
