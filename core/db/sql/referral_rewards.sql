-- What a referral earns each side: promised, issued, taken back. The referral's row is locked by whoever comes here.

-- name: count :exec
-- Counts a reward of a referrer in a period, unless there are as many as may be.
INSERT INTO vf.referral_counts AS k (project_id, program_id, referrer_id, period, live_count, limit_max)
VALUES (@project_id, @program_id, @referrer_id, @period, 1, @limit_max)
    ON CONFLICT (referrer_id, period, program_id, project_id) DO UPDATE
       SET live_count = k.live_count + 1, limit_max = excluded.limit_max WHERE k.live_count < excluded.limit_max;

-- name: uncount :exec
-- Takes a reward that was reversed out of its period's count.
UPDATE vf.referral_counts SET live_count = live_count - 1
 WHERE project_id = @project_id AND program_id = @program_id AND referrer_id = @referrer_id AND period = @period;

-- name: promise :exec
-- Writes down what a side gets, and when; once.
INSERT INTO vf.referral_rewards (project_id, referral_id, side, customer_id, kind, status, campaign_id, amount_minor,
                                 period, due_at)
VALUES (@project_id, @referral_id, @side, @customer_id, @kind, @status, @campaign_id, @amount_minor, @period,
        clock_timestamp() + make_interval(secs => @delay_s::bigint));

-- name: of_referrals :many
-- What both sides of some referrals got.
SELECT w.referral_id, w.side, w.customer_id, w.kind, w.status, w.campaign_id, w.amount_minor, w.period, w.voucher_id, v.code AS voucher_code,
       w.gift_card_id, w.debt_minor, w.due_at, w.due_at <= clock_timestamp() AS is_due, w.issued_at, w.ended_at
  FROM vf.referral_rewards w LEFT JOIN vf.vouchers v ON v.project_id = w.project_id AND v.id = w.voucher_id
 WHERE w.referral_id = ANY (@referrals::uuid[]) AND w.project_id = @project_id ORDER BY w.referral_id, w.side DESC;

-- name: issue :exec
-- Says what was issued for a promise, once.
UPDATE vf.referral_rewards
   SET status = 'issued', voucher_id = @voucher_id, gift_card_id = @gift_card_id, issued_at = clock_timestamp()
 WHERE project_id = @project_id AND referral_id = @referral_id AND side = @side AND status = 'pending';

-- name: end :exec
-- Cancels a promise, or says what became of a reward that was taken back.
UPDATE vf.referral_rewards SET status = @status, debt_minor = @debt_minor, ended_at = clock_timestamp()
 WHERE project_id = @project_id AND referral_id = @referral_id AND side = @side AND status IN ('pending', 'issued');

-- name: spent_of_voucher :one
-- What was taken off orders with a reward.
SELECT coalesce(sum(r.discount_minor), 0)::bigint AS spent_minor FROM vf.redemptions r
 WHERE r.voucher_id = @id AND r.project_id = @project_id AND r.status = 'redeemed' AND r.redeemed_at > '-infinity';

-- name: due :many
-- Operator: referrals with a reward whose delay is over.
SELECT DISTINCT w.project_id, w.referral_id AS id, p.currency FROM vf.referral_rewards w
  JOIN vf.projects p ON p.id = w.project_id
 WHERE w.status = 'pending' AND w.due_at <= clock_timestamp() LIMIT @limit::bigint;

-- name: rename :exec
-- The same of rewards.
UPDATE vf.referral_rewards w SET customer_id = @pseudonym
  FROM vf.referrals r
 WHERE r.project_id = w.project_id AND r.id = w.referral_id AND w.project_id = @project_id
   AND w.customer_id = @customer_id AND @pseudonym IN (r.referrer_id, r.referee_id);

-- name: rename_counts :exec
-- The same of the counts that caps go by.
UPDATE vf.referral_counts SET referrer_id = @pseudonym WHERE referrer_id = @customer_id AND project_id = @project_id;

-- name: postpone :exec
-- Lets what cannot be issued now wait.
UPDATE vf.referral_rewards SET due_at = clock_timestamp() + make_interval(secs => @wait_s::bigint)
 WHERE project_id = @project_id AND referral_id = @referral_id AND status = 'pending';
