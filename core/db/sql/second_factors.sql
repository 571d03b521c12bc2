-- Second factors of people.

-- name: set :exec
-- Gives a person a second factor that is still to be confirmed, or takes theirs away.
SELECT vf.set_second_factor(@user_id, @nonce);

-- name: confirm :one
-- Makes a second factor count; whether it did not before.
SELECT vf.confirm_second_factor(@user_id, @nonce, @codes);

-- name: use :one
-- Takes a time step that is later than any before, or a recovery code; whether it could.
SELECT vf.use_second_factor(@user_id, @step, @recovery);
