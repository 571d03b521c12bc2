-- Wins that Redis lost, written on the word of a receipt.

-- name: facts :one
-- The lease a receipt's number was drawn from, its voucher, and the lease that is out on it now.
SELECT l.id AS lease_id, l.state, l.voucher_id, v.code_norm, v.per_customer_limit, o.id AS open_lease,
       o.state AS open_state
  FROM vf.leases l
  JOIN vf.vouchers v ON v.project_id = l.project_id AND v.id = l.voucher_id
  LEFT JOIN vf.leases o ON o.project_id = l.project_id AND o.voucher_id = l.voucher_id AND o.state <> 'settled'
 WHERE l.project_id = @project_id AND l.tag = @tag;

-- name: claim :one
-- Writes a burned number's redemption, or says why not.
SELECT outcome, existing FROM vf.claim_receipt(@project_id, @lease_id, @seq, @id, @key, @fingerprint, @customer,
       @order_value, @discount, @order_id, @metadata, @remaining, @redeemed_at);
