-- name: open_tables :many
-- Tables of tenants whose wall has a gap: row-level security off, not forced, or no full policy.
SELECT c.oid::regclass::text AS object
  FROM pg_class c
 WHERE c.relnamespace = 'vf'::regnamespace AND c.relkind IN ('r', 'p')
   AND EXISTS (SELECT FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attname = 'project_id' AND NOT a.attisdropped)
   AND NOT (c.relrowsecurity AND c.relforcerowsecurity
            AND EXISTS (SELECT FROM pg_policy p
                         WHERE p.polrelid = c.oid AND p.polqual IS NOT NULL AND p.polwithcheck IS NOT NULL))
 ORDER BY 1;

-- name: loose_policies :many
-- Policies that let vf_app, or everybody, read or write a row without naming its project.
WITH wall (expression) AS (
    VALUES ($$ = ( SELECT (NULLIF(current_setting('app.project_id'::text, true), ''::text))::uuid AS "nullif"))$$)
)
SELECT p.polrelid::regclass::text || '.' || p.polname AS object
  FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid CROSS JOIN wall
 WHERE c.relnamespace = 'vf'::regnamespace
   AND (0::oid = ANY (p.polroles) OR 'vf_app'::regrole::oid = ANY (p.polroles))
   AND (p.polcmd <> 'a' AND pg_get_expr(p.polqual, p.polrelid) IS DISTINCT FROM
            CASE c.relname WHEN 'projects' THEN '(id' ELSE '(project_id' END || wall.expression
        OR p.polcmd IN ('*', 'a', 'w') AND pg_get_expr(p.polwithcheck, p.polrelid) IS DISTINCT FROM
            CASE c.relname WHEN 'projects' THEN '(id' ELSE '(project_id' END || wall.expression)
 ORDER BY 1;

-- name: unwalled_grants :many
-- Tables without row-level security that vf_app can read or write.
SELECT c.oid::regclass::text AS object
  FROM pg_class c
 WHERE c.relnamespace = 'vf'::regnamespace AND c.relkind IN ('r', 'p', 'm', 'f') AND NOT c.relrowsecurity
   AND has_any_column_privilege('vf_app', c.oid, 'SELECT, INSERT, UPDATE')
 ORDER BY 1;

-- name: cross_project_keys :many
-- Foreign keys between tables of tenants that do not carry the project: they can point at another tenant's row.
SELECT f.conrelid::regclass::text || '.' || f.conname AS object
  FROM pg_constraint f
 WHERE f.contype = 'f' AND f.connamespace = 'vf'::regnamespace
   AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = f.conrelid AND a.attname = 'project_id')
   AND EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = f.confrelid AND a.attname = 'project_id')
   AND NOT EXISTS (
       SELECT FROM unnest(f.conkey, f.confkey) AS k (mine, theirs)
         JOIN pg_attribute m ON m.attrelid = f.conrelid AND m.attnum = k.mine AND m.attname = 'project_id'
         JOIN pg_attribute t ON t.attrelid = f.confrelid AND t.attnum = k.theirs AND t.attname = 'project_id')
 ORDER BY 1;

-- name: unique_oracles :many
-- Unique indexes of tenants' tables without the project: a collision would tell of another tenant's row.
SELECT i.indexrelid::regclass::text AS object
  FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
 WHERE c.relnamespace = 'vf'::regnamespace AND i.indisunique
   AND EXISTS (SELECT FROM pg_attribute a
                WHERE a.attrelid = c.oid AND a.attname = 'project_id' AND NOT a.attisdropped)
   AND NOT EXISTS (
       SELECT FROM unnest(i.indkey::int2[]) AS k (attnum)
         JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND a.attname = 'project_id')
 ORDER BY 1;

-- name: unpinned_definers :many
-- SECURITY DEFINER functions without a pinned search_path, or not owned by vf_definer.
SELECT p.oid::regprocedure::text AS object
  FROM pg_proc p
 WHERE p.pronamespace = 'vf'::regnamespace AND p.prosecdef
   AND (p.proowner <> 'vf_definer'::regrole
        OR NOT coalesce('search_path=pg_catalog, pg_temp' = ANY (p.proconfig), false))
 ORDER BY 1;

-- name: public_functions :many
-- Functions that everybody who can connect may call.
SELECT p.oid::regprocedure::text AS object
  FROM pg_proc p
 WHERE p.pronamespace = 'vf'::regnamespace
   AND EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) g
                WHERE g.grantee = 0 AND g.privilege_type = 'EXECUTE')
 ORDER BY 1;

-- name: grants_past_the_wall :many
-- Grants that row-level security does not hold back, and anything granted to everybody.
SELECT c.oid::regclass::text || ' ' || g.privilege_type || ' to '
       || coalesce(nullif(g.grantee, 0)::regrole::text, 'everybody') AS object
  FROM pg_class c CROSS JOIN LATERAL aclexplode(c.relacl) g
 WHERE c.relnamespace = 'vf'::regnamespace AND g.grantee <> c.relowner
   AND (g.grantee = 0 OR g.privilege_type IN ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN'))
UNION ALL
SELECT 'schema ' || n.nspname || ' CREATE to ' || r.rolname
  FROM pg_namespace n CROSS JOIN pg_roles r
 WHERE n.nspname IN ('vf', 'public') AND r.rolname IN ('vf_app', 'vf_worker', 'vf_definer')
   AND has_schema_privilege(r.oid, n.oid, 'CREATE')
 ORDER BY 1;

-- name: strong_roles :many
-- Roles of ours that could walk around the wall: by attribute, by membership or by owning a table.
SELECT r.rolname::text || ' ' || why AS object
  FROM pg_roles r CROSS JOIN LATERAL (
       SELECT 'is a superuser' WHERE r.rolsuper
       UNION ALL SELECT 'has BYPASSRLS' WHERE r.rolbypassrls
       UNION ALL SELECT 'may create roles' WHERE r.rolcreaterole
       UNION ALL SELECT 'may log in' WHERE r.rolcanlogin AND r.rolname IN ('vf_owner', 'vf_definer')
       UNION ALL SELECT 'is a member of ' || m.roleid::regrole FROM pg_auth_members m
                  WHERE m.member = r.oid AND r.rolname <> 'vf_owner'
       UNION ALL SELECT 'owns ' || c.oid::regclass FROM pg_class c
                  WHERE c.relowner = r.oid AND c.relnamespace = 'vf'::regnamespace AND r.rolname <> 'vf_owner'
       ) AS found (why)
 WHERE r.rolname IN ('vf_owner', 'vf_app', 'vf_worker', 'vf_definer')
 ORDER BY 1;

-- name: foreign_owners :many
-- Objects of the schema that vf_owner does not own; a superuser's view would show every tenant.
SELECT 'schema ' || n.nspname AS object FROM pg_namespace n
 WHERE n.nspname = 'vf' AND n.nspowner <> 'vf_owner'::regrole
UNION ALL
SELECT c.oid::regclass::text FROM pg_class c
 WHERE c.relnamespace = 'vf'::regnamespace AND c.relowner <> 'vf_owner'::regrole
   AND c.relkind NOT IN ('i', 'I')
UNION ALL
SELECT p.oid::regprocedure::text FROM pg_proc p
 WHERE p.pronamespace = 'vf'::regnamespace
   AND p.proowner NOT IN ('vf_owner'::regrole, 'vf_definer'::regrole)
 ORDER BY 1;

-- name: careless_views :many
-- Views that run with their owner's eyes, and materialized views, which have no wall at all.
SELECT c.oid::regclass::text AS object
  FROM pg_class c
 WHERE c.relnamespace = 'vf'::regnamespace
   AND (c.relkind = 'm'
        OR c.relkind = 'v' AND NOT coalesce('security_invoker=true' = ANY (c.reloptions), false))
 ORDER BY 1;

-- name: session :many
-- Why this session must not serve requests: it could see every tenant's rows.
SELECT current_user::text || ' ' || why AS object
  FROM (SELECT 'is a superuser' FROM pg_roles WHERE rolname = current_user AND rolsuper
        UNION ALL SELECT 'has BYPASSRLS' FROM pg_roles WHERE rolname = current_user AND rolbypassrls
        UNION ALL SELECT 'can become vf_owner' WHERE pg_has_role(current_user, 'vf_owner', 'MEMBER')
       ) AS found (why);
