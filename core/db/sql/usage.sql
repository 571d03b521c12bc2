-- What accounts use of their plans.

-- name: count_calls :exec
-- Adds calls to the running hour of each project.
SELECT vf.count_calls(@projects, @counts);

-- name: calls_of_month :one
-- How many calls the project's account has made this month.
SELECT vf.calls_of_month(@project_id) AS calls;

-- name: quota_rest :one
-- How many redemptions the project's account may still have this month; nothing where its plan goes on.
SELECT q.rest FROM vf.quota_rest(@project_id) AS q (rest) WHERE q.rest IS NOT NULL;

-- name: account_of :one
-- The account of a project, with its changes of plan.
SELECT account_id, plan, created_at, project_count, changes FROM vf.account_of(@project_id);

-- name: by_hour :many
-- What an account used in a time, or with a project one project of it, by hour.
SELECT hour, call_count, redemption_count FROM vf.usage_by_hour(@account_id, @project_id, @from_at, @to_at);
