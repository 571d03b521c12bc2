-- name: create :one
-- Stores a new key's digest and hint.
INSERT INTO vf.api_keys (project_id, id, kind, name, digest, hint)
VALUES (@project_id, @id, @kind, @key_name, @digest, @hint)
RETURNING id, kind, name, hint, created_at, revoked_at;

-- name: get :one
-- One key of the project, revoked or not.
SELECT id, kind, name, hint, created_at, revoked_at
  FROM vf.api_keys
 WHERE project_id = @project_id AND id = @id;

-- name: page :many
-- The project's keys, newest first, below a cursor.
SELECT id, kind, name, hint, created_at, revoked_at
  FROM vf.api_keys
 WHERE project_id = @project_id AND (@after::uuid IS NULL OR id < @after)
 ORDER BY id DESC
 LIMIT @limit::bigint;

-- name: revoke :exec
-- Revokes a key that is not revoked yet.
UPDATE vf.api_keys SET revoked_at = clock_timestamp()
 WHERE project_id = @project_id AND id = @id AND revoked_at IS NULL;

-- name: authenticate :one
-- Who a key's digest belongs to, in any project; nothing for a revoked one.
SELECT key_id, project_id, account_id, kind, currency FROM vf.authenticate(@digest);

-- name: revoked_since :one
-- The digests revoked since an instant (none for null) and the database's clock, to ask from next time.
SELECT clock_timestamp() AS at,
       coalesce((SELECT array_agg(r.digest) FROM vf.revoked_since(@since) r), '{}') AS digests;
