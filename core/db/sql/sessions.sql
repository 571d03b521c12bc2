-- Sessions: where people are logged in.

-- name: open :exec
-- Stores a new session and ends the one it replaces.
SELECT vf.open_session(@id, @user_id, @digest, @replaces, @address, @agent, @life);

-- name: use :one
-- The session with this digest, whose it is, and their projects with their role in each; nothing where it has ended.
SELECT s.session_id, s.user_id, s.email, s.name, s.has_second_factor, s.created_at, s.expires_at, s.is_email_confirmed,
       (SELECT coalesce(jsonb_agg(p), '[]') FROM vf.projects_of(s.user_id) p) AS memberships
  FROM vf.use_session(@digest, @idle) s;

-- name: end :one
-- Ends one session of a person, or all but one; whether it ended any.
SELECT vf.end_sessions(@user_id, @one, @but);

-- name: list :many
-- A person's sessions that have not ended, newest first.
SELECT id, address, agent, created_at, seen_at, expires_at FROM vf.sessions_of(@user_id, @idle);

-- name: forget :exec
-- Operator: forgets sessions, and leave to set passwords, that ended long ago.
WITH old AS (DELETE FROM vf.password_resets WHERE expires_at < clock_timestamp() - @keep::interval)
DELETE FROM vf.sessions WHERE expires_at < clock_timestamp() - @keep::interval;
