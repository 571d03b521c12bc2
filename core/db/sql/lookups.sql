-- Look-ups by a secret code that found nothing, by minute.

-- name: failures :many
-- How often each of these scopes failed in the running minute.
SELECT f.scope, f.failure_count FROM vf.failed_lookups f
 WHERE f.scope = ANY (@scopes::text[]) AND f.minute = date_trunc('minute', clock_timestamp())
   AND f.project_id = @project_id;

-- name: count :exec
-- Counts a failed look-up in each of its scopes.
INSERT INTO vf.failed_lookups AS f (project_id, scope, minute, failure_count)
SELECT @project_id, s, date_trunc('minute', clock_timestamp()), 1 FROM unnest(@scopes::text[]) s ORDER BY s
    ON CONFLICT (scope, minute, project_id) DO UPDATE SET failure_count = f.failure_count + 1;

-- name: forget :exec
-- Operator: forgets failures that no limit asks for any more.
DELETE FROM vf.failed_lookups WHERE minute < clock_timestamp() - interval '10 minutes';
