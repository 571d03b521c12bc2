-- A drawn year into the tables it belongs to. Rows come as JSON in the form of each table.

-- name: state :one
-- Operator: whether the year's project is there, was deleted, or is still to be made.
SELECT CASE WHEN EXISTS (SELECT 1 FROM vf.projects p WHERE p.id = @project_id) THEN 'there'
            WHEN EXISTS (SELECT 1 FROM vf.deleted_projects d WHERE d.id = @project_id) THEN 'deleted'
            ELSE 'missing' END AS state;

-- name: owner :one
-- Operator: the demo user and their account.
SELECT u.account_id, u.id AS user_id FROM vf.users u WHERE u.email = @email;

-- name: project :exec
-- Operator: the project itself, owned by the demo user.
WITH made AS (
    INSERT INTO vf.projects (id, account_id, name, currency, time_zone, created_at)
    VALUES (@id, @account_id, @project_name, @currency, @time_zone, @created_at) RETURNING id
)
INSERT INTO vf.memberships (project_id, user_id, role) SELECT m.id, @user_id, 'owner' FROM made m;

-- name: customers :exec
-- Operator: registered customers.
INSERT INTO vf.customers (project_id, id, customer_id, name, email, attributes, created_at, updated_at)
SELECT @project_id, t.id, t.customer_id, t.name, t.email, t.attributes, t.created_at, t.created_at
  FROM jsonb_populate_recordset(NULL::vf.customers, @rows) t;

-- name: segments :exec
-- Operator: groups of customers.
INSERT INTO vf.segments (project_id, id, name, rule, created_at, updated_at)
SELECT @project_id, t.id, t.name, t.rule, t.created_at, t.created_at
  FROM jsonb_populate_recordset(NULL::vf.segments, @rows) t;

-- name: segment_members :exec
-- Operator: who is on a list.
INSERT INTO vf.segment_members (project_id, segment_id, customer_id, added_at)
SELECT @project_id, t.segment_id, t.customer_id, t.added_at
  FROM jsonb_populate_recordset(NULL::vf.segment_members, @rows) t;

-- name: campaigns :exec
-- Operator: campaigns, with what their redemptions will add up to.
INSERT INTO vf.campaigns (project_id, id, name, status, discount_type, discount_bp, discount_minor, min_order_minor,
       max_redemptions, starts_at, expires_at, promotion, direct_count, started_at, ended_at, created_at, updated_at)
SELECT @project_id, t.id, t.name, t.status, t.discount_type, t.discount_bp, t.discount_minor, t.min_order_minor,
       t.max_redemptions, t.starts_at, t.expires_at, t.promotion, t.direct_count, t.started_at, t.ended_at,
       t.created_at, t.created_at
  FROM jsonb_populate_recordset(NULL::vf.campaigns, @rows) t;

-- name: vouchers :exec
-- Operator: vouchers, likewise.
INSERT INTO vf.vouchers (project_id, id, code, code_norm, campaign_id, status, discount_type, discount_bp,
       discount_minor, min_order_minor, max_redemptions, per_customer_limit, expires_at, metadata, promotion,
       direct_count, leased_count, next_number, sale_only, created_at, updated_at)
SELECT @project_id, t.id, t.code, t.code_norm, t.campaign_id, t.status, t.discount_type, t.discount_bp,
       t.discount_minor, t.min_order_minor, t.max_redemptions, t.per_customer_limit, t.expires_at, t.metadata,
       t.promotion, t.direct_count, t.leased_count, t.next_number, t.sale_only, t.created_at, t.created_at
  FROM jsonb_populate_recordset(NULL::vf.vouchers, @rows) t;

-- name: sales :exec
-- Operator: flash sales.
INSERT INTO vf.flash_sales (project_id, id, voucher_id, name, status, stock, first_stock, leased_count, starts_at,
       ends_at, opened_at, closed_at, created_at, updated_at)
SELECT @project_id, t.id, t.voucher_id, t.name, t.status, t.stock, t.stock, t.leased_count, t.starts_at, t.ends_at,
       t.opened_at, t.closed_at, t.created_at, coalesce(t.closed_at, t.created_at)
  FROM jsonb_populate_recordset(NULL::vf.flash_sales, @rows) t;

-- name: leases :exec
-- Operator: settled leases of those sales, what each was granted, and how its stream was read.
WITH made AS (
    INSERT INTO vf.leases (project_id, id, tag, sale_id, voucher_id, state, size, open_to, backlog_max, seq_base,
           run_id, pg_lineage, returned, armed_at, opened_at, settled_at)
    SELECT @project_id, t.id, t.tag, t.sale_id, t.voucher_id, 'settled', t.size, t.open_to, 4096, 0, 'demo-data',
           vf.lineage(), t.returned, t.armed_at, t.opened_at, t.settled_at
      FROM jsonb_populate_recordset(NULL::vf.leases, @rows) t
    RETURNING project_id, id, size, open_to, armed_at
), granted AS (
    INSERT INTO vf.lease_grants (project_id, lease_id, size, granted_at)
    SELECT m.project_id, m.id, m.size, m.armed_at FROM made m
)
INSERT INTO vf.lease_progress (project_id, lease_id, accounted, read_count, inserted_count)
SELECT m.project_id, m.id, m.open_to, m.open_to, m.open_to FROM made m;

-- name: redemptions :exec
-- Operator: the ledger, through its triggers.
INSERT INTO vf.redemptions (project_id, lease_id, seq, granted_size, id, voucher_id, campaign_id, sale_id, sale_seq,
       idempotency_key, fingerprint, customer_id, order_id, order_value_minor, discount_minor, remaining, status,
       redeemed_at, rolled_back_at, rollback_reason, detail)
SELECT @project_id, t.lease_id, t.seq, t.granted_size, t.id, t.voucher_id, t.campaign_id, t.sale_id, t.sale_seq,
       t.idempotency_key, t.fingerprint, t.customer_id, t.order_id, t.order_value_minor, t.discount_minor,
       t.remaining, t.status, t.redeemed_at, t.rolled_back_at, t.rollback_reason, t.detail
  FROM jsonb_populate_recordset(NULL::vf.redemptions, @rows) t;

-- name: count_customers :exec
-- Operator: how often each customer has used what is limited for each customer, as the ledger has it.
INSERT INTO vf.customer_counts (project_id, scope_id, customer_id, live_count, limit_max, last_redemption_id)
SELECT r.project_id, v.id, r.customer_id, count(*), v.per_customer_limit, (array_agg(r.id ORDER BY r.seq DESC))[1]
  FROM vf.redemptions r JOIN vf.vouchers v ON v.project_id = r.project_id AND v.id = r.voucher_id
 WHERE r.project_id = @project_id AND r.status = 'redeemed' AND v.per_customer_limit IS NOT NULL
 GROUP BY r.project_id, v.id, r.customer_id, v.per_customer_limit;

-- name: budgets :exec
-- Operator: what is gone of budgets.
INSERT INTO vf.budgets (project_id, scope_id, label, subject, period, used, used_max)
SELECT @project_id, t.scope_id, t.label, t.subject, t.period, t.used, t.used_max
  FROM jsonb_populate_recordset(NULL::vf.budgets, @rows) t;

-- name: cards :exec
-- Operator: gift cards, with what their entries will add up to.
INSERT INTO vf.gift_cards (project_id, id, code_digest, last_four, currency, balance_minor, spent_minor, entry_count,
       expires_at, customer_id, created_at, updated_at)
SELECT @project_id, t.id, t.code_digest, t.last_four, t.currency, t.balance_minor, t.spent_minor, t.entry_count,
       t.expires_at, t.customer_id, t.created_at, t.created_at
  FROM jsonb_populate_recordset(NULL::vf.gift_cards, @rows) t;

-- name: transactions :exec
-- Operator: what happened to gift cards.
INSERT INTO vf.gift_card_transactions (project_id, id, card_id, kind, amount_minor, asked_minor, currency, reference,
       fingerprint, refund_of, order_id, created_at)
SELECT @project_id, t.id, t.card_id, t.kind, t.amount_minor, t.asked_minor, t.currency, t.reference, t.fingerprint,
       t.refund_of, t.order_id, t.created_at
  FROM jsonb_populate_recordset(NULL::vf.gift_card_transactions, @rows) t;

-- name: entries :exec
-- Operator: both sides of that.
INSERT INTO vf.gift_card_entries (project_id, transaction_id, side, account, amount_minor, card_id, number,
       balance_minor)
SELECT @project_id, t.transaction_id, t.side, t.account, t.amount_minor, t.card_id, t.number, t.balance_minor
  FROM jsonb_populate_recordset(NULL::vf.gift_card_entries, @rows) t;

-- name: programs :exec
-- Operator: referral programs.
INSERT INTO vf.referral_programs (project_id, id, name, conversion, min_order_minor, rules, created_at, updated_at)
SELECT @project_id, t.id, t.name, t.conversion, t.min_order_minor, t.rules, t.created_at, t.created_at
  FROM jsonb_populate_recordset(NULL::vf.referral_programs, @rows) t;

-- name: referral_codes :exec
-- Operator: customers' codes in them.
INSERT INTO vf.referral_codes (project_id, id, program_id, customer_id, code, code_norm, conversion_count, created_at)
SELECT @project_id, t.id, t.program_id, t.customer_id, t.code, t.code_norm, t.conversion_count, t.created_at
  FROM jsonb_populate_recordset(NULL::vf.referral_codes, @rows) t;

-- name: referrals :exec
-- Operator: who referred whom.
INSERT INTO vf.referrals (project_id, id, program_id, code_id, referrer_id, referee_id, status, reason, because, review,
       review_until, attributed_at, expires_at, converted_at, ended_at, place, order_id, order_value_minor, created_at)
SELECT @project_id, t.id, t.program_id, t.code_id, t.referrer_id, t.referee_id, t.status, t.reason, t.because, t.review,
       t.review_until, t.attributed_at, t.expires_at, t.converted_at, t.ended_at, t.place, t.order_id,
       t.order_value_minor, t.created_at
  FROM jsonb_populate_recordset(NULL::vf.referrals, @rows) t;

-- name: rewards :exec
-- Operator: what both got.
INSERT INTO vf.referral_rewards (project_id, referral_id, side, customer_id, kind, status, amount_minor, period,
       gift_card_id, due_at, issued_at)
SELECT @project_id, t.referral_id, t.side, t.customer_id, t.kind, t.status, t.amount_minor, t.period, t.gift_card_id,
       t.due_at, t.issued_at
  FROM jsonb_populate_recordset(NULL::vf.referral_rewards, @rows) t;

-- name: referral_history :exec
-- Operator: how far referrals have come.
INSERT INTO vf.referral_history (project_id, id, referral_id, event, detail, at)
SELECT @project_id, t.id, t.referral_id, t.event, t.detail, t.at
  FROM jsonb_populate_recordset(NULL::vf.referral_history, @rows) t;

-- name: figures :exec
-- Operator: adds the year to the figures, unless they have still to begin: then they begin with it. Fine grains are of the
-- days for which they are kept.
WITH begun AS (
    SELECT k.event_id FROM vf.figures_mark k WHERE k.event_id IS NOT NULL FOR NO KEY UPDATE
), fact AS (
    SELECT r.campaign_id, r.sale_id, r.voucher_id, r.redeemed_at AS at, 1 AS redeemed, r.discount_minor AS discount,
           r.order_value_minor AS order_value, (r.status = 'rolled_back')::integer AS undone, 0 AS rolled_back
      FROM vf.redemptions r WHERE r.project_id = @project_id
    UNION ALL
    SELECT r.campaign_id, r.sale_id, r.voucher_id, r.rolled_back_at, 0, 0, 0, 0, 1
      FROM vf.redemptions r WHERE r.project_id = @project_id AND r.status = 'rolled_back'
)
INSERT INTO vf.figures (project_id, scope_id, kind, grain_s, bucket, redeemed, discount_minor, order_value_minor, undone,
       undone_discount_minor, undone_value_minor, returned_minor, rolled_back)
SELECT @project_id, s.scope_id, s.kind, g.grain_s,
       CASE g.grain_s WHEN 0 THEN '-infinity' ELSE date_bin(make_interval(secs => g.grain_s), f.at, 'epoch') END,
       sum(f.redeemed), sum(f.discount), sum(f.order_value), sum(f.undone), sum(f.undone * f.discount),
       sum(f.undone * f.order_value), 0, sum(f.rolled_back)
  FROM begun CROSS JOIN fact f
 CROSS JOIN LATERAL (VALUES (@project_id::uuid, 'p'), (f.campaign_id, 'c'), (f.sale_id, 's'), (f.voucher_id, 'v'))
       AS s (scope_id, kind)
  JOIN (VALUES (0, 'pcsv'), (1, 's'), (60, 'pcs'), (900, 'pcsv')) AS g (grain_s, kinds)
    ON position(s.kind IN g.kinds) > 0
 WHERE s.scope_id IS NOT NULL
   AND (f.at > now() - make_interval(days => @keep_days::integer) OR g.grain_s = 0 OR g.grain_s = 900 AND s.kind <> 'v')
 GROUP BY 1, 2, 3, 4, 5;

-- name: audit :exec
-- Operator: who made the campaigns and sales of the year.
INSERT INTO vf.audit_log (project_id, id, actor, action, target, after, at)
SELECT @project_id, t.id, @actor, t.action, t.target, t.after, t.at
  FROM jsonb_populate_recordset(NULL::vf.audit_log, @rows) t
 ORDER BY t.at, t.id;
