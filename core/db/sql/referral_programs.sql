-- Referral programs and their customers' codes.

-- name: create :exec
-- Stores a program.
INSERT INTO vf.referral_programs (project_id, id, name, conversion, min_order_minor, rules, metadata)
VALUES (@project_id, @id, @program_name, @conversion, @min_order_minor, @rules, @metadata);

-- name: by_id :one
-- One program.
SELECT p.id, p.name, p.status, p.conversion, p.min_order_minor, p.rules, p.metadata, p.created_at, p.updated_at
  FROM vf.referral_programs p WHERE p.project_id = @project_id AND p.id = @id;

-- name: page :many
-- Programs of the project, newest first, below a cursor.
SELECT p.id, p.name, p.status, p.conversion, p.min_order_minor, p.rules, p.metadata, p.created_at, p.updated_at
  FROM vf.referral_programs p
 WHERE p.project_id = @project_id AND (@after::uuid IS NULL OR p.id < @after) ORDER BY p.id DESC LIMIT @limit::bigint;

-- name: switch :exec
-- Pauses, resumes or ends a program; what has ended stays ended.
UPDATE vf.referral_programs SET status = @status, updated_at = clock_timestamp()
 WHERE project_id = @project_id AND id = @id AND status NOT IN ('ended', @status);

-- name: create_code :exec
-- Gives a customer a code, unless there is one.
INSERT INTO vf.referral_codes (project_id, id, program_id, customer_id, code, code_norm)
VALUES (@project_id, @id, @program_id, @customer_id, @code, @code_norm)
    ON CONFLICT (project_id, program_id, customer_id) DO NOTHING;

-- name: code_of :one
-- A customer's code in a program.
SELECT c.id, c.program_id, c.customer_id, c.code, c.conversion_count, c.created_at FROM vf.referral_codes c
 WHERE c.project_id = @project_id AND c.program_id = @program_id AND c.customer_id = @customer_id;
