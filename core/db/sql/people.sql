-- People: who they are and how they log in.

-- name: sign_up :exec
-- Stores a new person with an account of their own.
SELECT vf.sign_up(@user_id, @account_id, @email, @person_name, @password_hash);

-- name: by_email :one
-- What a log-in with this e-mail is checked against.
SELECT user_id, password_hash, totp_nonce FROM vf.person_by_email(@email);

-- name: confirm_email :one
-- Says that a person's e-mail is theirs; whether there is such a person.
SELECT vf.confirm_email(@user_id) AS is_known;
