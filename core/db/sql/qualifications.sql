-- What a customer may know of without being sent a code.

-- name: candidates :many
-- The codes in a customer's wallet, newest first.
SELECT v.code FROM vf.vouchers v
 WHERE v.holder = @customer_id AND v.project_id = @project_id
 ORDER BY v.id DESC LIMIT @limit::bigint;
