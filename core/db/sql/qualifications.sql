-- What a customer may know of without being sent a code.

-- name: candidates :many
-- The codes in a customer's wallet, and those of campaigns that are there for everybody; of each the newest first.
(SELECT v.code FROM vf.vouchers v
  WHERE v.holder = @customer_id AND v.project_id = @project_id
  ORDER BY v.id DESC LIMIT @limit::bigint)
UNION ALL
(SELECT c.code FROM vf.campaigns c
  WHERE c.project_id = @project_id AND c.code IS NOT NULL AND c.status = 'active'
    AND coalesce(c.expires_at > now(), true)
  ORDER BY c.id DESC LIMIT @limit);
