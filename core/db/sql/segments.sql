-- Groups of customers: lists, and rules.

-- name: lock :exec
-- Lets one change of a project's segments happen at a time, so that no two make a circle together.
SELECT pg_advisory_xact_lock(hashtextextended('segments ' || @project_id::uuid::text, 0));

-- name: create :exec
-- Stores a new segment; a name that is taken fails on segments_name_key.
INSERT INTO vf.segments (project_id, id, name, rule) VALUES (@project_id, @id, @segment_name, @rule::jsonb);

-- name: count :one
-- How many segments a project has.
SELECT count(*) FROM vf.segments s WHERE s.project_id = @project_id;

-- name: by_id :one
-- One segment, with how many are on its list.
SELECT s.id, s.name, s.rule, m.member_count, s.created_at, s.updated_at
  FROM vf.segments s
 CROSS JOIN LATERAL (SELECT count(*) AS member_count FROM vf.segment_members k
                      WHERE k.project_id = s.project_id AND k.segment_id = s.id) m
 WHERE s.project_id = @project_id AND s.id = @id;

-- name: page :many
-- Segments of the project, newest first, below a cursor.
SELECT s.id, s.name, s.rule, m.member_count, s.created_at, s.updated_at
  FROM vf.segments s
 CROSS JOIN LATERAL (SELECT count(*) AS member_count FROM vf.segment_members k
                      WHERE k.project_id = s.project_id AND k.segment_id = s.id) m
 WHERE s.project_id = @project_id AND (@after::uuid IS NULL OR s.id < @after)
 ORDER BY s.id DESC LIMIT @limit::bigint;

-- name: edit :exec
-- Changes name and rule; a list stays a list.
UPDATE vf.segments
   SET name = coalesce(@segment_name::text, name), rule = coalesce(@rule::jsonb, rule), updated_at = clock_timestamp()
 WHERE project_id = @project_id AND id = @id;

-- name: rules :many
-- The rules of some segments.
SELECT s.id, s.rule FROM vf.segments s WHERE s.project_id = @project_id AND s.id = ANY (@ids::uuid[]);

-- name: names :many
-- The names of some segments.
SELECT s.id, s.name FROM vf.segments s WHERE s.project_id = @project_id AND s.id = ANY (@ids::uuid[]) ORDER BY s.id;

-- name: all_rules :many
-- The rules of every segment of a project.
SELECT s.id, s.rule FROM vf.segments s WHERE s.project_id = @project_id ORDER BY s.id;

-- name: listed :many
-- On which of some lists a customer is.
SELECT k.segment_id FROM vf.segment_members k
 WHERE k.customer_id = @customer_id AND k.segment_id = ANY (@ids::uuid[]) AND k.project_id = @project_id;

-- name: add :exec
-- Puts customers on a list; who is on it stays.
INSERT INTO vf.segment_members (project_id, segment_id, customer_id)
SELECT @project_id, @id, q.customer_id FROM unnest(@customer_ids::text[]) AS q (customer_id) ORDER BY q.customer_id
    ON CONFLICT DO NOTHING;

-- name: remove :exec
-- Takes customers off a list.
DELETE FROM vf.segment_members k
 WHERE k.customer_id = ANY (@customer_ids::text[]) AND k.segment_id = @id AND k.project_id = @project_id;

-- name: members :many
-- A page of a list, by customer.
SELECT k.customer_id FROM vf.segment_members k
 WHERE k.project_id = @project_id AND k.segment_id = @id AND (@after::text IS NULL OR k.customer_id > @after)
 ORDER BY k.customer_id LIMIT @limit::bigint;

-- name: attributes :one
-- What the shop wrote down of a customer.
SELECT c.attributes FROM vf.customers c WHERE c.project_id = @project_id AND c.customer_id = @customer_id;

-- name: redemption_count :one
-- How often a customer redeemed and it stands.
SELECT count(*) FROM vf.redemptions r
 WHERE r.customer_id = @customer_id AND r.project_id = @project_id AND r.status = 'redeemed'
   AND r.redeemed_at > '-infinity';
