-- What the last look at the books found.

-- name: write :exec
-- Operator: keeps what was found of each invariant that could be checked.
INSERT INTO vf.verifications AS v (invariant, violations, elapsed_ms)
SELECT q.invariant, q.violations, @elapsed_ms FROM unnest(@invariants::text[], @violations::bigint[]) AS q (invariant, violations)
    ON CONFLICT (invariant) DO UPDATE
       SET violations = excluded.violations, elapsed_ms = excluded.elapsed_ms, checked_at = clock_timestamp();

-- name: due_in_s :one
-- Operator: seconds until the next look is due, at the pace that keeps looking at this share of the time.
SELECT coalesce(extract(epoch FROM max(v.checked_at) - clock_timestamp())
                + greatest(@pause_s::float8, @share::float8 * max(v.elapsed_ms) / 1000.0), @pause_s)::float8
  FROM vf.verifications v;

-- name: latest :many
-- What was found at the last look, over all projects.
SELECT v.invariant, v.violations, extract(epoch FROM v.checked_at)::float8 AS checked_at_s
  FROM vf.verifications v ORDER BY v.invariant;
