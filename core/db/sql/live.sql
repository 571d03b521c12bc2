-- What the tail of live listeners reads.

-- name: head :one
-- The newest row of a project's events.
SELECT e.id, e.count FROM vf.events e WHERE e.project_id = @project_id ORDER BY e.id DESC LIMIT 1;

-- name: moved :many
-- Those of some projects that have events after the ones they were told of.
SELECT m FROM vf.moved_projects(@projects, @heads) AS m;

-- name: after :many
-- Rows of events from one on, in their order.
SELECT e.id, e.type, e.subject, e.data, e.at, e.count, e.first_seq, e.seqs
  FROM vf.events e
 WHERE e.project_id = @project_id AND e.id >= @from_row AND (@to_row::uuid IS NULL OR e.id <= @to_row)
 ORDER BY e.id LIMIT @limit::bigint;

-- name: sales :many
-- Sales that are under way.
SELECT s.id FROM vf.flash_sales s
 WHERE s.project_id = @project_id AND s.status NOT IN ('scheduled', 'settled') ORDER BY s.id DESC LIMIT @limit::bigint;
