-- What the fraud rules look at, and what they find.

-- name: mark :one
-- Operator: how far the rules have looked, locked; no row while another worker looks.
SELECT m.event_id, m.signal_number FROM vf.fraud_mark m FOR NO KEY UPDATE SKIP LOCKED;

-- name: ahead :one
-- Operator: up to where the next look goes. Events are left for a moment, so that what was refused just before them is there;
-- of a backlog, events and signals of the same time are looked at together.
WITH bounds AS MATERIALIZED (
    SELECT (lpad(to_hex(floor(extract(epoch FROM clock_timestamp() - @hold::interval) * 1000)::bigint), 12, '0')
            || repeat('0', 20))::uuid AS before_id
), events AS MATERIALIZED (
    SELECT x.id, sum(x.count) OVER (ORDER BY x.id) - x.count AS seen
      FROM (SELECT e.id, e.count FROM vf.events e, bounds b
             WHERE e.id > @event_id AND e.id < b.before_id ORDER BY e.id LIMIT @rows_max::bigint) x
), signals AS MATERIALIZED (
    SELECT s.number, s.at FROM vf.fraud_signals s WHERE s.number > @signal_number
     ORDER BY s.number LIMIT @facts_max::bigint
), ends AS MATERIALIZED (
    SELECT k.id, to_timestamp(('x' || left(replace(k.id::text, '-', ''), 12))::bit(48)::bigint / 1000.0) AS at,
           EXISTS (SELECT 1 FROM vf.events e, bounds b WHERE e.id > k.id AND e.id < b.before_id) AS is_backlog,
           (SELECT max(s.at) FROM signals s HAVING count(*) = @facts_max) AS signals_at
      FROM (SELECT max(e.id::text)::uuid AS id FROM events e WHERE e.seen < @facts_max) k
)
SELECT coalesce((SELECT max(e.id::text)::uuid FROM events e
                  WHERE e.id <= k.id AND (k.signals_at IS NULL OR e.id <= (
                        lpad(to_hex(floor(extract(epoch FROM k.signals_at) * 1000)::bigint), 12, '0')
                        || repeat('f', 20))::uuid)), @event_id) AS event_id,
       coalesce((SELECT max(s.number) FROM signals s WHERE NOT k.is_backlog OR s.at <= k.at), @signal_number)
           AS signal_number
  FROM ends k;

-- name: stay :one
-- Operator: says nothing, so that a transaction is not ended for being idle.
SELECT true AS is_here;

-- name: projects :many
-- Operator: whose events and signals are ahead.
SELECT e.project_id AS id, coalesce(r.version, 0) AS version
  FROM (SELECT k.project_id FROM vf.events k WHERE k.id > @event_id AND k.id <= @to_event_id
        UNION
        SELECT k.project_id FROM vf.fraud_signals k
         WHERE k.number > @signal_number AND k.number <= @to_signal_number) e
  JOIN vf.projects p ON p.id = e.project_id AND p.status <> 'deleting'
  LEFT JOIN vf.fraud_rules r ON r.project_id = e.project_id
 ORDER BY e.project_id;

-- name: pages :many
-- Events of a project after one up to another, of redemptions and referrals, in pages of so many facts; of more than the
-- limit the newest.
SELECT min(k.id::text)::uuid AS first_id, max(k.id::text)::uuid AS last_id
  FROM (SELECT x.id, sum(x.count) OVER (ORDER BY x.id DESC) - x.count AS after
          FROM (SELECT e.id, e.count FROM vf.events e
                 WHERE e.project_id = @project_id AND e.id > @event_id AND e.id <= @to_event_id
                   AND e.type IN ('voucher.redeemed', 'redemption.rolled_back', 'referral.attributed', 'referral.rejected')
                 ORDER BY e.id DESC LIMIT @limit::bigint) x) k
 WHERE k.after < @limit GROUP BY div(k.after, @page::bigint) ORDER BY 1;

-- name: facts :many
-- What happened in a project from one event to another, of redemptions and referrals.
-- A customer is new who had redeemed nothing a day before. Ids rise with time, so the first few are asked and not all: a shop
-- may have one customer for all its guests.
WITH told AS MATERIALIZED (
    SELECT e.id, e.type, e.subject, e.data, e.at, e.first_seq, e.last_seq, e.seqs
      FROM vf.events e
     WHERE e.project_id = @project_id AND e.id >= @first_id AND e.id <= @last_id
       AND e.type IN ('voucher.redeemed', 'redemption.rolled_back', 'referral.attributed', 'referral.rejected')
)
SELECT 'redeemed' AS kind, r.id, r.redeemed_at AS at, r.customer_id, r.voucher_id, r.campaign_id,
       r.sale_id IS NOT NULL AS is_sale, r.order_value_minor, r.discount_minor, r.metadata ->> '_address' AS address,
       r.metadata ->> '_device' AS device,
       r.customer_id IS NULL OR r.sale_id IS NULL AND NOT EXISTS (
           SELECT 1 FROM (SELECT k.redeemed_at FROM vf.redemptions k
                           WHERE k.customer_id = r.customer_id AND k.project_id = r.project_id AND k.redeemed_at > '-infinity'
                           ORDER BY k.id LIMIT 20) o
            WHERE o.redeemed_at < r.redeemed_at - interval '1 day') AS is_new,
       NULL AS reason, NULL AS referrer_id, '{}'::text[] AS traits
  FROM told t JOIN vf.redemptions r ON r.lease_id = t.subject AND r.seq BETWEEN t.first_seq AND t.last_seq
 WHERE t.type = 'voucher.redeemed' AND r.project_id = @project_id AND (t.seqs IS NULL OR r.seq = ANY (t.seqs))
UNION ALL
SELECT 'rolled_back', r.id, t.at, r.customer_id, r.voucher_id, r.campaign_id, r.sale_id IS NOT NULL, r.order_value_minor,
       r.discount_minor, r.metadata ->> '_address', r.metadata ->> '_device', false, NULL, NULL, '{}'
  FROM told t JOIN vf.redemptions r ON r.project_id = @project_id AND r.id = t.subject AND r.redeemed_at > '-infinity'
 WHERE t.type = 'redemption.rolled_back' AND NOT t.data ? 'amount_minor'
UNION ALL
SELECT 'referred', f.id, t.at, f.referee_id, NULL, NULL, false, 0, 0, NULL, NULL, false, t.data ->> 'reason', f.referrer_id,
       ARRAY(SELECT k.kind || ' ' || encode(k.digest, 'hex') FROM vf.referral_identifiers k
              WHERE k.customer_id = f.referee_id AND k.project_id = f.project_id
                AND k.kind IN ('device', 'payment', 'address') ORDER BY 1)
  FROM told t JOIN vf.referrals f ON f.project_id = @project_id AND f.id = t.subject
 WHERE t.type = 'referral.attributed' OR t.type = 'referral.rejected' AND t.data ->> 'reason' = 'ring';

-- name: signals :many
-- What was refused in a project after one number up to another, since an instant; of more than the limit the newest.
SELECT s.number, s.at, s.reason, s.code, s.customer_id, s.address, s.device
  FROM vf.fraud_signals s
 WHERE s.project_id = @project_id AND s.number > @signal_number AND s.number <= @to_signal_number
   AND s.at >= @from_at::timestamptz AND s.at < @to_at::timestamptz
 ORDER BY s.number DESC LIMIT @limit::bigint;

-- name: write :one
-- Operator: writes an alert, once for a subject and window; one that is there grows with what was seen.
INSERT INTO vf.fraud_alerts AS k (project_id, id, rule, subject_kind, subject, window_at, at, score, observed, expected,
                                  reasons, redemption_ids, action)
VALUES (@project_id, @id, @rule, @subject_kind, @subject, @window_at, @at, @score, @observed, @expected, @reasons,
        @redemption_ids::uuid[], @action)
    ON CONFLICT (subject, rule, window_at, subject_kind, project_id) DO UPDATE
       SET at = excluded.at, score = greatest(k.score, excluded.score), observed = excluded.observed,
           expected = excluded.expected, reasons = excluded.reasons, redemption_ids = excluded.redemption_ids
     WHERE excluded.observed > k.observed
RETURNING k.id;

-- name: tell :exec
-- Tells of an alert.
INSERT INTO vf.outbox (project_id, event, subject, data)
VALUES (@project_id, 'fraud.alert', @id, jsonb_build_object('rule', @rule::text, 'score', @score::integer));

-- name: move_mark :exec
-- Operator: writes down how far the rules have looked.
UPDATE vf.fraud_mark SET event_id = @event_id, signal_number = @signal_number;
