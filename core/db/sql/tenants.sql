-- name: projects :many
-- Operator: every project there is.
SELECT p.id, p.name, p.currency FROM vf.projects p ORDER BY p.id;

-- name: create_account :exec
-- Operator: stores a new account.
INSERT INTO vf.accounts (id, name, plan) VALUES (@id, @account_name, @plan);

-- name: create_user :exec
-- Operator: stores a new user of an account.
INSERT INTO vf.users (id, account_id, email, password_hash)
VALUES (@id, @account_id, @email, @password_hash);

-- name: create_project :exec
-- Operator: stores a new project of an account.
INSERT INTO vf.projects (id, account_id, name, currency, time_zone)
VALUES (@id, @account_id, @project_name, @currency, @time_zone);

-- name: add_owner :exec
-- Operator: makes a user an owner of a project.
INSERT INTO vf.memberships (project_id, user_id, role) VALUES (@project_id, @user_id, 'owner')
    ON CONFLICT (project_id, user_id) DO UPDATE SET role = 'owner';
