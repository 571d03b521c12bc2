-- Rate limits: a key may have one of its own beside its plan's.

ALTER TABLE vf.api_keys ADD rate_limit jsonb CONSTRAINT api_keys_rate_limit CHECK (((rate_limit ->> 'limit')::bigint > 0
    AND (rate_limit ->> 'window_s')::bigint > 0 AND (rate_limit ->> 'burst')::bigint > 0) IS NOT FALSE);

DROP FUNCTION vf.authenticate(bytea);
-- Who presents the key with this digest; no row for an unknown, revoked or expired one, or in a project put away.
CREATE FUNCTION vf.authenticate(p_digest bytea)
RETURNS TABLE (key_id uuid, project_id uuid, account_id uuid, kind text, currency text, scopes text[],
               origins text[], expires_at timestamptz, plan text, rate_limit jsonb)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.id, k.project_id, p.account_id, k.kind, p.currency, k.scopes, k.origins, k.expires_at, a.plan, k.rate_limit
      FROM vf.api_keys k JOIN vf.projects p ON p.id = k.project_id JOIN vf.accounts a ON a.id = p.account_id
     WHERE k.digest = p_digest AND k.revoked_at IS NULL AND p.status = 'active'
       AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
$$;
GRANT CREATE ON SCHEMA vf TO vf_definer;
ALTER FUNCTION vf.authenticate(bytea) OWNER TO vf_definer;
REVOKE CREATE ON SCHEMA vf FROM vf_definer;
REVOKE ALL ON FUNCTION vf.authenticate(bytea) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION vf.authenticate(bytea) TO vf_app, vf_worker;
