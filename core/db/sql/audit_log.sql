-- name: write :exec
-- Appends one entry; its number, instant and hash are the database's.
INSERT INTO vf.audit_log (project_id, id, actor, action, target, detail, before, after, address, request_id)
VALUES (@project_id, @id, @actor, @action, @target, @detail, @before, @after, @address, @request_id);

-- name: page :many
-- The project's entries, newest first, below a cursor.
SELECT a.id, a.number, a.at, a.actor, a.action, a.target, a.before, a.after, a.detail, a.address, a.request_id,
       encode(a.hash, 'hex') AS hash
  FROM vf.audit_log a
 WHERE a.project_id = @project_id
   AND (@after_id::uuid IS NULL
        OR a.number < (SELECT b.number FROM vf.audit_log b WHERE b.project_id = @project_id AND b.id = @after_id))
   AND (@action::text IS NULL OR a.action = @action)
   AND (@actor::text IS NULL OR a.actor = @actor)
   AND (@target::text IS NULL OR a.target = @target)
 ORDER BY a.number DESC
 LIMIT @limit::bigint;

-- name: people :many
-- The e-mails of those who are in the project.
SELECT user_id, email FROM vf.members();
