-- Who is told of events.

-- name: create :exec
-- Stores a new webhook, where the project has not as many as it may have.
INSERT INTO vf.webhooks (project_id, id, url, events, description)
SELECT @project_id, @id, @url, @events, @description
 WHERE (SELECT count(*) FROM vf.webhooks w WHERE w.project_id = @project_id AND w.status <> 'deleted') < @count_max;

-- name: by_id :one
-- One webhook that was not taken away.
SELECT w.id, w.url, w.description, w.events, w.status, w.disabled_reason, w.secret_version, w.previous_until,
       w.failure_count, w.failing_since, w.created_at, w.updated_at
  FROM vf.webhooks w WHERE w.project_id = @project_id AND w.id = @id AND w.status <> 'deleted';

-- name: page :many
-- Webhooks of the project, newest first, below a cursor.
SELECT w.id, w.url, w.description, w.events, w.status, w.disabled_reason, w.secret_version, w.previous_until,
       w.failure_count, w.failing_since, w.created_at, w.updated_at
  FROM vf.webhooks w
 WHERE w.project_id = @project_id AND w.status <> 'deleted' AND (@after::uuid IS NULL OR w.id < @after)
 ORDER BY w.id DESC LIMIT @limit::bigint;

-- name: edit :exec
-- Writes what may change. Who is switched on again, or elsewhere, starts without a record of failures.
UPDATE vf.webhooks w
   SET url = @url, events = @events, description = @description, status = @status,
       disabled_reason = CASE WHEN @status = 'active' THEN NULL ELSE coalesce(w.disabled_reason, 'by hand') END,
       failure_count = CASE WHEN w.status <> @status OR w.url <> @url THEN 0 ELSE w.failure_count END,
       failing_since = CASE WHEN w.status <> @status OR w.url <> @url THEN NULL ELSE w.failing_since END,
       open_until = CASE WHEN w.status <> @status OR w.url <> @url THEN NULL ELSE w.open_until END,
       updated_at = clock_timestamp()
 WHERE w.project_id = @project_id AND w.id = @id AND w.status <> 'deleted';

-- name: remove :exec
-- Takes a webhook away and ends what waits for it.
WITH gone AS (
    UPDATE vf.webhooks w SET status = 'deleted', updated_at = clock_timestamp()
     WHERE w.project_id = @project_id AND w.id = @id RETURNING w.project_id, w.id
)
UPDATE vf.deliveries d SET status = 'dead', ended_at = clock_timestamp()
  FROM gone g WHERE d.webhook_id = g.id AND d.project_id = g.project_id AND d.status = 'pending';

-- name: rotate :exec
-- Makes the next secret the one that counts; the one before stays valid for a while.
UPDATE vf.webhooks w
   SET secret_version = w.secret_version + 1, updated_at = clock_timestamp(),
       previous_until = clock_timestamp() + make_interval(secs => @overlap_s::bigint)
 WHERE w.project_id = @project_id AND w.id = @id AND w.status <> 'deleted';

-- name: try_out :exec
-- Tells an example.
INSERT INTO vf.outbox (project_id, event, subject, data) VALUES (@project_id, @event, @id, @data);
