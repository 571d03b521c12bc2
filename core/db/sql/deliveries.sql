-- Events on their way to webhooks.

-- name: enqueue :exec
-- Operator: writes down who is to be told of events that were just published, a row each. An example goes to the webhook it
-- names, or to those that are told of its type.
INSERT INTO vf.deliveries (project_id, id, webhook_id, event_id, event_type)
SELECT e.project_id,
       (left(replace(e.id::text, '-', ''), 16) || left(replace(gen_random_uuid()::text, '-', ''), 16))::uuid, w.id,
       (left(replace(e.id::text, '-', ''), 26) || lpad(to_hex(p.place), 6, '0'))::uuid, t.type
  FROM vf.events e
 CROSS JOIN LATERAL (SELECT CASE WHEN e.type = 'webhook.test' THEN e.data ->> 'type' ELSE e.type END AS type) t
  JOIN vf.webhooks w ON w.project_id = e.project_id AND w.status = 'active'
       AND CASE WHEN e.data ->> 'webhook' IS NOT NULL AND e.type = 'webhook.test'
                THEN w.id = (e.data ->> 'webhook')::uuid
                ELSE w.events IS NULL OR t.type = ANY (w.events)
                     OR split_part(t.type, '.', 1) || '.*' = ANY (w.events) END
 CROSS JOIN LATERAL generate_series(0, e.count - 1) AS p (place)
 WHERE e.id BETWEEN @first AND @last
 ORDER BY e.id, p.place;

-- name: take :many
-- Operator: takes what is due, of each webhook no more than it has places; nobody else takes it for a while. A webhook that
-- failed too often in a row is asked by one request at a time, after its rest. The loose scan visits webhooks for which
-- something waits, and no others.
WITH RECURSIVE waiting AS (
    (SELECT d.webhook_id FROM vf.deliveries d WHERE d.status = 'pending' ORDER BY d.webhook_id LIMIT 1)
    UNION ALL
    SELECT (SELECT d.webhook_id FROM vf.deliveries d
             WHERE d.status = 'pending' AND d.webhook_id > w.webhook_id ORDER BY d.webhook_id LIMIT 1)
      FROM waiting w WHERE w.webhook_id IS NOT NULL
), ready AS (
    SELECT w.project_id, w.id, w.url, w.secret_version, w.previous_until, w.failure_count, p.currency,
           CASE WHEN w.failure_count >= @failures_max::integer THEN 1 ELSE @places::bigint END
           - coalesce((SELECT b.n FROM unnest(@busy_ids::uuid[], @busy_counts::bigint[]) AS b (id, n)
                        WHERE b.id = w.id), 0) AS places
      FROM waiting k
      JOIN vf.webhooks w ON w.id = k.webhook_id
      JOIN vf.projects p ON p.id = w.project_id
     WHERE w.status = 'active' AND coalesce(w.open_until <= clock_timestamp(), true)
), picked AS (
    SELECT d.project_id, d.id, r.url, r.secret_version, r.previous_until, r.failure_count, r.currency
      FROM ready r
     CROSS JOIN LATERAL (
           SELECT x.project_id, x.id FROM vf.deliveries x
            WHERE x.webhook_id = r.id AND x.status = 'pending' AND x.due_at <= clock_timestamp()
            ORDER BY x.due_at LIMIT greatest(r.places, 0) FOR NO KEY UPDATE SKIP LOCKED) d
     LIMIT @limit::bigint
)
UPDATE vf.deliveries d
   SET attempt_count = d.attempt_count + 1, try_count = d.try_count + 1,
       due_at = clock_timestamp() + make_interval(secs => @taken_s::float8)
  FROM picked p WHERE d.project_id = p.project_id AND d.id = p.id
RETURNING d.project_id, d.id, d.webhook_id, d.event_id, d.attempt_count, d.try_count, d.started_at, p.url,
          p.secret_version, p.previous_until, p.failure_count, p.currency;

-- name: record :exec
-- Writes down an attempt and what follows. What came too late, after somebody else's attempt, still ends a delivery when it
-- succeeded, and changes nothing else.
WITH logged AS (
    INSERT INTO vf.delivery_attempts (project_id, delivery_id, number, status_code, error, body, latency_ms, at)
    VALUES (@project_id, @id, @number::integer, @status_code::integer, @error::text, @body::text, @latency_ms::integer,
            clock_timestamp() - make_interval(secs => @latency_ms::integer / 1000.0))
        ON CONFLICT DO NOTHING
)
UPDATE vf.deliveries d
   SET status = @status, due_at = clock_timestamp() + make_interval(secs => @delay_s::float8),
       ended_at = CASE WHEN @status <> 'pending' THEN clock_timestamp() END
 WHERE d.project_id = @project_id AND d.id = @id AND d.status <> 'delivered'
   AND (@status = 'delivered' OR d.status = 'pending' AND d.attempt_count = @number::integer);

-- name: count_failure :exec
-- Counts a webhook's failures in a row, lets it rest after some, and switches it off after days of them or when it says that
-- it is gone.
UPDATE vf.webhooks w
   SET failure_count = w.failure_count + 1, failing_since = coalesce(w.failing_since, clock_timestamp()),
       open_until = CASE WHEN @pause_s::float8 > 0 THEN clock_timestamp() + make_interval(secs => @pause_s::float8) END,
       status = CASE WHEN x.reason IS NOT NULL THEN 'disabled' ELSE w.status END,
       disabled_reason = coalesce(x.reason, w.disabled_reason)
  FROM (SELECT k.id, CASE WHEN @is_gone::boolean THEN 'it answered 410'
                          WHEN k.failing_since < clock_timestamp() - make_interval(secs => @disable_after_s::float8)
                          THEN 'it failed for days' END AS reason
          FROM vf.webhooks k WHERE k.project_id = @project_id AND k.id = @webhook_id) x
 WHERE w.project_id = @project_id AND w.id = x.id AND w.status = 'active';

-- name: count_success :exec
-- Forgets a webhook's failures.
UPDATE vf.webhooks w SET failure_count = 0, failing_since = NULL, open_until = NULL
 WHERE w.project_id = @project_id AND w.id = @webhook_id AND w.failure_count > 0;

-- name: page :many
-- Deliveries of a webhook, newest first, below a cursor, of one status.
SELECT d.id, d.webhook_id, d.event_id, d.event_type, d.status, d.attempt_count, d.due_at, d.created_at, d.ended_at
  FROM vf.deliveries d
 WHERE d.webhook_id = @webhook_id AND d.project_id = @project_id
   AND (@status::text IS NULL OR d.status = @status) AND (@after::uuid IS NULL OR d.id < @after)
 ORDER BY d.id DESC LIMIT @limit::bigint;

-- name: of_event :many
-- The deliveries of one event, by webhook. Their ids begin like its row's, so they lie together.
SELECT d.id, d.webhook_id, d.event_id, d.event_type, d.status, d.attempt_count, d.due_at, d.created_at, d.ended_at
  FROM vf.deliveries d
 WHERE d.project_id = @project_id AND d.id BETWEEN @first AND @last AND d.event_id = @event_id
 ORDER BY d.webhook_id, d.id LIMIT @limit::bigint;

-- name: by_id :one
-- One delivery.
SELECT d.id, d.webhook_id, d.event_id, d.event_type, d.status, d.attempt_count, d.due_at, d.created_at, d.ended_at
  FROM vf.deliveries d WHERE d.project_id = @project_id AND d.id = @id;

-- name: attempts :many
-- Every attempt of a delivery, in order.
SELECT a.number, a.at, a.status_code, a.error, a.body AS response_body, a.latency_ms
  FROM vf.delivery_attempts a WHERE a.project_id = @project_id AND a.delivery_id = @id ORDER BY a.number;

-- name: replay :exec
-- Starts a delivery that has ended again.
UPDATE vf.deliveries d
   SET status = 'pending', due_at = clock_timestamp(), started_at = clock_timestamp(), try_count = 0, ended_at = NULL
 WHERE d.project_id = @project_id AND d.id = @id AND d.status <> 'pending';

-- name: replay_all :exec
-- Starts deliveries of a webhook that have ended so again, the oldest first.
UPDATE vf.deliveries d
   SET status = 'pending', due_at = clock_timestamp(), started_at = clock_timestamp(), try_count = 0, ended_at = NULL
 WHERE d.project_id = @project_id AND d.id = ANY (ARRAY(
       SELECT k.id FROM vf.deliveries k
        WHERE k.webhook_id = @webhook_id AND k.project_id = @project_id AND k.status = @status
          AND (@since::timestamptz IS NULL OR k.created_at >= @since)
        ORDER BY k.id LIMIT @limit::bigint));

-- name: forget :exec
-- Operator: deletes deliveries, with their attempts, that are older than events are kept. Ids begin with their time.
DELETE FROM vf.deliveries d
 WHERE d.ctid = ANY (ARRAY(
       SELECT x.ctid FROM vf.deliveries x
        WHERE x.id < (lpad(to_hex(floor(extract(epoch FROM clock_timestamp() - make_interval(days => @keep_days::integer))
                                        * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
        LIMIT 10000));
