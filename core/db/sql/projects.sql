-- Projects: the tenants, as their people see and change them.

-- name: create :exec
-- Stores a new project of a person's account, which they own.
SELECT vf.create_project(@user_id, @project_id, @project_name, @currency, @time_zone);

-- name: get :one
-- The project that was entered.
SELECT p.id, p.name, p.status, p.currency, p.time_zone, p.rollback_window_s, p.mail_at_percent, p.created_at,
       p.archived_at, p.deleting_at
  FROM vf.projects p
 WHERE p.id = @project_id;

-- name: lock :one
-- The same, until the commit nobody else's to change.
SELECT p.id, p.name, p.status, p.currency, p.time_zone, p.rollback_window_s, p.mail_at_percent, p.created_at,
       p.archived_at, p.deleting_at
  FROM vf.projects p
 WHERE p.id = @project_id
   FOR NO KEY UPDATE;

-- name: patch :exec
-- Changes what may be changed at any time.
UPDATE vf.projects p
   SET name = @project_name, time_zone = @time_zone, rollback_window_s = @rollback_window_s,
       mail_at_percent = @mail_at_percent
 WHERE p.id = @project_id;

-- name: set_currency :exec
-- Changes the currency of a project that holds no amount yet.
UPDATE vf.projects p SET currency = @currency
 WHERE p.id = @project_id
   AND NOT EXISTS (SELECT FROM vf.vouchers k WHERE k.project_id = @project_id)
   AND NOT EXISTS (SELECT FROM vf.campaigns k WHERE k.project_id = @project_id)
   AND NOT EXISTS (SELECT FROM vf.gift_cards k WHERE k.project_id = @project_id)
   AND NOT EXISTS (SELECT FROM vf.referral_programs k WHERE k.project_id = @project_id);

-- name: refresh_keys :exec
-- Has every process look the project's keys up again, within a second.
UPDATE vf.api_keys k SET changed_at = clock_timestamp() WHERE k.project_id = @project_id AND k.revoked_at IS NULL;

-- name: has_live_sale :one
-- Whether a flash sale of the project is not over.
SELECT EXISTS (SELECT FROM vf.flash_sales s WHERE s.project_id = @project_id AND s.status NOT IN ('closed', 'settled'))
    OR EXISTS (SELECT FROM vf.leases l WHERE l.project_id = @project_id AND l.state <> 'settled');

-- name: set_status :exec
-- Archives a project, takes it back, or begins to delete it.
UPDATE vf.projects p
   SET status = @status,
       archived_at = CASE @status WHEN 'archived' THEN clock_timestamp() WHEN 'active' THEN NULL ELSE p.archived_at END,
       deleting_at = CASE @status WHEN 'deleting' THEN clock_timestamp() END
 WHERE p.id = @project_id;
