-- name: create :one
-- Stores a new key's digest and hint.
INSERT INTO vf.api_keys (project_id, id, kind, name, digest, hint, scopes, origins, expires_at, rate_limit)
VALUES (@project_id, @id, @kind, @key_name, @digest, @hint, @scopes::text[], @origins::text[],
        clock_timestamp() + @lifetime::interval, @rate_limit::jsonb)
RETURNING id, kind, name, hint, scopes, origins, created_at, expires_at, revoked_at, last_used_at, rotated_to, rate_limit;

-- name: get :one
-- One key of the project, revoked or not.
SELECT id, kind, name, hint, scopes, origins, created_at, expires_at, revoked_at, last_used_at, rotated_to, rate_limit
  FROM vf.api_keys
 WHERE project_id = @project_id AND id = @id;

-- name: page :many
-- The project's keys, newest first, below a cursor.
SELECT id, kind, name, hint, scopes, origins, created_at, expires_at, revoked_at, last_used_at, rotated_to, rate_limit
  FROM vf.api_keys
 WHERE project_id = @project_id AND (@after::uuid IS NULL OR id < @after)
 ORDER BY id DESC
 LIMIT @limit::bigint;

-- name: revoke :exec
-- Revokes a key that is not revoked yet.
UPDATE vf.api_keys SET revoked_at = clock_timestamp()
 WHERE project_id = @project_id AND id = @id AND revoked_at IS NULL;

-- name: retire :exec
-- Ends a key that still works and was not replaced before, no later than it would have ended.
UPDATE vf.api_keys
   SET expires_at = least(expires_at, clock_timestamp() + @overlap::interval), changed_at = clock_timestamp(),
       rotated_to = @successor_id
 WHERE project_id = @project_id AND id = @id AND revoked_at IS NULL AND rotated_to IS NULL
   AND (expires_at IS NULL OR expires_at > clock_timestamp());

-- name: authenticate :one
-- Who a key's digest belongs to, in any project; nothing for a revoked or expired one.
SELECT key_id, project_id, account_id, kind, currency, scopes, origins, expires_at, plan, rate_limit
  FROM vf.authenticate(@digest);

-- name: revoked_since :one
-- The digests revoked or changed since an instant (none for null) and the database's clock, to ask from next time.
SELECT clock_timestamp() AS at,
       coalesce((SELECT array_agg(r.digest) FROM vf.revoked_since(@since) r), '{}') AS digests;

-- name: touch :exec
-- Says that keys were used in this minute.
SELECT vf.touch_keys(@ids);
