-- Projects that are being deleted.

-- name: due :many
-- Operator: projects that are being deleted, with the flash sales that are still to be closed, and whether all that was
-- under way has come to its end.
SELECT p.id AS project_id,
       coalesce((SELECT array_agg(s.id) FROM vf.flash_sales s
                  WHERE s.project_id = p.id AND s.status NOT IN ('closed', 'settled')), '{}') AS open_sales,
       p.deleting_at < clock_timestamp() - @grace::interval
       AND NOT EXISTS (SELECT FROM vf.leases l WHERE l.project_id = p.id AND l.state <> 'settled') AS is_drained
  FROM vf.projects p
 WHERE p.status = 'deleting'
 ORDER BY p.deleting_at;

-- name: purge :one
-- Operator: deletes a piece of a project that is being deleted; 0 when it is gone.
SELECT vf.purge_project(@project_id, @rows_max);
