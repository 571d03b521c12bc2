-- name: try_lock :one
-- Takes a key for this transaction without waiting; false while another request holds it.
SELECT pg_try_advisory_xact_lock(
    hashtextextended(@project_id::uuid::text || ' ' || @key::text, 0));

-- name: get :one
-- The answer stored for a key.
SELECT fingerprint, status, body
  FROM vf.idempotency_keys
 WHERE project_id = @project_id AND key = @key;

-- name: put :exec
-- Stores the answer of the request that holds the key.
INSERT INTO vf.idempotency_keys (project_id, key, fingerprint, status, body)
VALUES (@project_id, @key, @fingerprint, @status, @body);
