-- Members of projects, and who was asked to be one.

-- name: list :many
-- Who is in the project, the longest first.
SELECT user_id, email, name, role, created_at FROM vf.members();

-- name: lock :one
-- What a member is, until the commit nobody else's to change.
SELECT m.role FROM vf.memberships m
 WHERE m.project_id = @project_id AND m.user_id = @user_id
   FOR NO KEY UPDATE;

-- name: add :exec
-- Makes a person a member; who is one keeps their role.
INSERT INTO vf.memberships (project_id, user_id, role) VALUES (@project_id, @user_id, @role)
    ON CONFLICT (project_id, user_id) DO NOTHING;

-- name: set_role :exec
-- Changes a member's role.
UPDATE vf.memberships m SET role = @role WHERE m.project_id = @project_id AND m.user_id = @user_id;

-- name: remove :exec
-- Takes a member out of the project.
DELETE FROM vf.memberships m WHERE m.project_id = @project_id AND m.user_id = @user_id;

-- name: revoke_open :exec
-- Takes back the invitation of an e-mail that is still open.
UPDATE vf.invitations i SET revoked_at = clock_timestamp()
 WHERE i.project_id = @project_id AND i.email = @email AND i.accepted_at IS NULL AND i.revoked_at IS NULL;

-- name: invite :one
-- Stores an invitation.
INSERT INTO vf.invitations (project_id, id, email, role, digest, invited_by, expires_at)
VALUES (@project_id, @id, @email, @role, @digest, @invited_by, clock_timestamp() + @life::interval)
RETURNING id, email, role, created_at, expires_at;

-- name: invitations :many
-- The project's invitations that are open, newest first.
SELECT i.id, i.email, i.role, i.created_at, i.expires_at FROM vf.invitations i
 WHERE i.project_id = @project_id AND i.accepted_at IS NULL AND i.revoked_at IS NULL
   AND i.expires_at > clock_timestamp()
 ORDER BY i.id DESC;

-- name: revoke :one
-- Takes an open invitation back.
UPDATE vf.invitations i SET revoked_at = clock_timestamp()
 WHERE i.project_id = @project_id AND i.id = @id AND i.accepted_at IS NULL AND i.revoked_at IS NULL
RETURNING i.id, i.email, i.role, i.created_at, i.expires_at;

-- name: invitation_by_digest :one
-- The invitation with this digest, in any project, while it is good.
SELECT project_id, id, email, role, project_name, currency FROM vf.invitation_by_digest(@digest);

-- name: accept :exec
-- Ends an invitation that is open by its being accepted.
UPDATE vf.invitations i SET accepted_at = clock_timestamp()
 WHERE i.project_id = @project_id AND i.id = @id AND i.accepted_at IS NULL AND i.revoked_at IS NULL;
