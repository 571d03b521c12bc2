-- What people log in with.

-- name: get :one
-- What a person's own password is checked against.
SELECT user_id, password_hash, totp_nonce FROM vf.credentials_of(@user_id);

-- name: set_password :exec
-- Sets a new password.
SELECT vf.set_password(@user_id, @password_hash);

-- name: allow_reset :one
-- Lets who has an e-mail set a new password; whether anybody has it.
SELECT vf.allow_reset(@email, @digest, @life);

-- name: use_reset :one
-- Sets a new password by what a mail held, and ends all sessions; whether that was allowed.
SELECT vf.use_reset(@digest, @password_hash);
