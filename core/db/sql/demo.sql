-- name: lock :exec
-- Operator: lets one process at a time make the demo project.
SELECT pg_advisory_xact_lock(hashtextextended('vauchflow demo', 0));

-- name: project :one
-- Operator: the demo user's first project.
SELECT p.id
  FROM vf.users u JOIN vf.projects p ON p.account_id = u.account_id
 WHERE u.email = @email
 ORDER BY p.id
 LIMIT 1;

-- name: set_password :exec
-- Operator: the demo user's new password.
UPDATE vf.users SET password_hash = @password_hash WHERE email = @email;

-- name: has_key :one
-- Operator: whether a key's digest is stored and not revoked.
SELECT EXISTS (SELECT 1 FROM vf.api_keys WHERE digest = @digest AND revoked_at IS NULL);
