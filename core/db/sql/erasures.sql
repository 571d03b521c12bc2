-- Where Redis has a person who is about to be forgotten.

-- name: leases :many
-- Settled leases that a customer holds a number of; their streams may be kept.
SELECT DISTINCT l.id
  FROM vf.redemptions r JOIN vf.leases l ON l.project_id = r.project_id AND l.id = r.lease_id
 WHERE r.customer_id = @customer_id AND r.project_id = @project_id AND r.redeemed_at > '-infinity'
   AND l.state = 'settled';

-- name: vouchers :many
-- Vouchers that a customer redeemed and whose crowd may be answered by Redis.
SELECT v.id FROM vf.vouchers v
 WHERE v.project_id = @project_id
   AND (v.flash_sale_id IS NOT NULL OR v.direct_count + v.leased_count >= v.max_redemptions)
   AND v.id IN (SELECT r.voucher_id FROM vf.redemptions r
                 WHERE r.customer_id = @customer_id AND r.project_id = @project_id
                   AND r.redeemed_at > '-infinity');
