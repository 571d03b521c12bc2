-- What is gone of budgets, as their counters have it.

-- name: used :many
-- Some budgets of all customers together, by what they are of and for which period.
SELECT b.scope_id, b.label, b.period, b.used
  FROM unnest(@scopes::uuid[], @labels::text[], @periods::text[]) AS q (scope_id, label, period)
  JOIN vf.budgets b ON b.subject = '' AND b.period = q.period AND b.label = q.label AND b.scope_id = q.scope_id
                   AND b.project_id = @project_id;
