-- What rules and budgets are judged by before a redemption is decided.

-- name: customer :one
-- How often a customer redeemed, in all, of a voucher and of its campaign; what was rolled back does not count.
SELECT count(*) AS redemptions,
       count(*) FILTER (WHERE r.voucher_id = @voucher_id) AS voucher_redemptions,
       count(*) FILTER (WHERE r.campaign_id = @campaign_id::uuid) AS campaign_redemptions
  FROM vf.redemptions r
 WHERE r.customer_id = @customer_id AND r.project_id = @project_id AND r.status = 'redeemed'
   AND r.redeemed_at > '-infinity';

-- name: used :one
-- What is gone of a budget.
SELECT k.used FROM vf.budgets k
 WHERE k.subject = @subject AND k.period = @period AND k.label = @label AND k.scope_id = @scope_id
   AND k.project_id = @project_id;
