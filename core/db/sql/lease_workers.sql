-- API workers and the leases they serve.

-- name: beat :exec
-- Says that an API worker is alive.
INSERT INTO vf.api_workers AS w (id, node_id) VALUES (@worker_id, @node_id)
    ON CONFLICT (id) DO UPDATE SET node_id = excluded.node_id, beat_at = clock_timestamp();

-- name: leave :exec
-- Takes a worker that stops in good order off the list.
DELETE FROM vf.api_workers w WHERE w.id = @worker_id;

-- name: live :many
-- Every lease that is out, of all projects.
SELECT project_id, sale_id, voucher_id, lease_id, tag, state, size, seq_base, run_id, judged, code_norm,
       NOT vf.is_accepted() AS is_held
  FROM vf.live_leases();

-- name: join :one
-- Seats a worker at a lease, before it may send the first claim; says whether its seat was registered before.
SELECT joined, was_registered FROM vf.join_lease(@project_id, @lease_id, @worker_id, @node_id, @run_id);

-- name: serve :exec
-- Says that a worker serves a lease at this size.
UPDATE vf.lease_workers w SET serving_size = @size, seen_at = clock_timestamp()
 WHERE w.lease_id = @lease_id AND w.worker_id = @worker_id;

-- name: seen :exec
-- Says that a worker still serves its leases.
UPDATE vf.lease_workers w SET seen_at = clock_timestamp() WHERE w.worker_id = @worker_id;

-- name: seal :one
-- Tells PostgreSQL the mark of a worker that answers no more wins until a run id is judged. A database that was restored
-- may have lost the registration.
SELECT vf.seal_lease(@project_id, @lease_id, @worker_id, @node_id, @run_id, @judged, @mark, @seen_at);

-- name: unseal :one
-- Takes a seal back before its worker answers again.
SELECT vf.unseal_lease(@project_id, @lease_id, @worker_id, @run_id, @judged);

-- name: unsealed_neighbours :many
-- The workers of this node that have not sealed a lease for a run id: dead ones are answered for by the living.
SELECT w.worker_id, w.seen_at FROM vf.lease_workers w
 WHERE w.lease_id = @lease_id AND w.node_id = @node_id AND w.worker_id <> @worker_id
   AND w.sealed_run_id IS DISTINCT FROM @run_id;

-- name: judge :one
-- Decides whether a lease survived a change of the Redis process.
SELECT outcome, run_id FROM vf.judge_lease(@project_id, @lease_id, @run_id_old, @run_id_new, @issued, @deadline);
