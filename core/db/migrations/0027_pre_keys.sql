-- Keys with scopes, origins, an end and a successor; sales that browsers may claim.

ALTER TABLE vf.api_keys
    DROP CONSTRAINT api_keys_kind_check,
    ADD CONSTRAINT api_keys_kind CHECK (kind IN ('SECRET', 'PUBLISHABLE', 'AGENT')),
    ADD COLUMN scopes text[],
    ADD COLUMN origins text[] NOT NULL DEFAULT '{}',
    ADD COLUMN expires_at timestamptz,
    ADD COLUMN changed_at timestamptz,
    ADD COLUMN last_used_at timestamptz,
    ADD COLUMN rotated_to uuid,
    ADD CONSTRAINT api_keys_agent CHECK (kind <> 'AGENT' OR (scopes IS NOT NULL AND expires_at IS NOT NULL));
CREATE INDEX api_keys_changed ON vf.api_keys (changed_at) WHERE changed_at IS NOT NULL;

ALTER TABLE vf.flash_sales ADD COLUMN publishable_claims boolean NOT NULL DEFAULT false;

DROP FUNCTION vf.authenticate(bytea);
-- Who presents the key with this digest; no row for an unknown, revoked or expired one.
CREATE FUNCTION vf.authenticate(p_digest bytea)
RETURNS TABLE (key_id uuid, project_id uuid, account_id uuid, kind text, currency text, scopes text[],
               origins text[], expires_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.id, k.project_id, p.account_id, k.kind, p.currency, k.scopes, k.origins, k.expires_at
      FROM vf.api_keys k JOIN vf.projects p ON p.id = k.project_id
     WHERE k.digest = p_digest AND k.revoked_at IS NULL
       AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
$$;

-- Digests of keys that were revoked or changed since an instant, for the caches of keys.
CREATE OR REPLACE FUNCTION vf.revoked_since(p_since timestamptz)
RETURNS TABLE (digest bytea, revoked_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.digest, k.revoked_at FROM vf.api_keys k WHERE k.revoked_at >= p_since
    UNION SELECT k.digest, k.revoked_at FROM vf.api_keys k WHERE k.changed_at >= p_since
$$;

-- Says that keys were used, once a minute each.
CREATE FUNCTION vf.touch_keys(p_ids uuid[])
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE vf.api_keys k SET last_used_at = clock_timestamp()
     WHERE k.id = ANY (p_ids) AND (k.last_used_at IS NULL OR k.last_used_at < clock_timestamp() - interval '1 minute')
$$;

GRANT UPDATE (last_used_at) ON vf.api_keys TO vf_definer;
GRANT CREATE ON SCHEMA vf TO vf_definer;
ALTER FUNCTION vf.authenticate(bytea) OWNER TO vf_definer;
ALTER FUNCTION vf.touch_keys(uuid[]) OWNER TO vf_definer;
REVOKE CREATE ON SCHEMA vf FROM vf_definer;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
