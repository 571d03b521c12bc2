-- name: write :exec
-- Appends one entry.
INSERT INTO vf.audit_log (project_id, id, actor, action, target, detail, request_id)
VALUES (@project_id, @id, @actor, @action, @target, @detail, @request_id);
