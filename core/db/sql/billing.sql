-- Plans and invoices of accounts.

-- name: change_plan :one
-- Moves the project's account to another plan; says changed, unchanged or too_many_projects.
SELECT vf.change_plan(@project_id, @plan) AS outcome;

-- name: invoices :many
-- The final invoices of the project's account, newest first.
SELECT month, lines, total_minor, reference, finalized_at FROM vf.invoices_of(@project_id);

-- name: due :many
-- Operator: accounts without an invoice for a month, with their changes of plan.
SELECT a.id AS account_id, a.plan, a.created_at,
       coalesce((SELECT jsonb_agg(jsonb_build_object('at', c.at, 'before', c.before, 'after', c.after) ORDER BY c.at)
                   FROM vf.plan_changes c WHERE c.account_id = a.id), '[]') AS changes
  FROM vf.accounts a
 WHERE a.created_at < @before AND NOT EXISTS (SELECT FROM vf.invoices i WHERE i.account_id = a.id AND i.month = @month)
 ORDER BY a.id
 LIMIT @limit;

-- name: finalize :exec
-- Operator: writes an invoice down for good.
INSERT INTO vf.invoices (account_id, month, lines, total_minor, provider, reference)
VALUES (@account_id, @month, @lines, @total_minor, @provider, @reference)
    ON CONFLICT (account_id, month) DO NOTHING;
