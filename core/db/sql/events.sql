-- What happened, and the outbox it is published from.

-- name: publish :one
-- Operator: moves what waits in the outbox to the events.
SELECT row_count, first_id, last_id FROM vf.publish_events(@rows_max, @events_max);

-- name: page :many
-- Rows of events, newest first, from the one of a cursor down.
SELECT e.id, e.type, e.subject, e.data, e.at, e.count, e.first_seq, e.seqs
  FROM vf.events e
 WHERE e.project_id = @project_id AND (@before::uuid IS NULL OR e.id <= @before)
   AND (@type::text IS NULL OR e.type = @type)
 ORDER BY e.id DESC LIMIT @limit::bigint;

-- name: by_id :one
-- One row of events.
SELECT e.id, e.type, e.subject, e.data, e.at, e.count, e.first_seq, e.seqs
  FROM vf.events e WHERE e.project_id = @project_id AND e.id = @id;

-- name: by_ids :many
-- Some rows of events.
SELECT e.id, e.type, e.subject, e.data, e.at, e.count, e.first_seq, e.seqs
  FROM vf.events e WHERE e.project_id = @project_id AND e.id = ANY (@ids::uuid[]);

-- name: redemptions :many
-- What events of redemptions say, by lease and number; nothing of it changes later but that a customer is erased.
SELECT r.lease_id, r.seq, r.id, r.voucher_id, v.code, r.campaign_id, r.sale_id, r.sale_seq, r.customer_id, r.order_id,
       r.order_value_minor, r.discount_minor, r.metadata, r.redeemed_at
  FROM unnest(@lease_ids::uuid[], @seqs::bigint[]) AS q (lease_id, seq)
  JOIN vf.redemptions r ON r.lease_id = q.lease_id AND r.seq = q.seq AND r.project_id = @project_id
  JOIN vf.vouchers v ON v.project_id = r.project_id AND v.id = r.voucher_id;

-- name: tell_expired :exec
-- Operator: tells of vouchers whose time is over and that still had a use, some thousand at a time and never half of those
-- that expired at one instant. A second is left for changes that are under way.
WITH clock AS (
    SELECT c.expired_to, clock_timestamp() - interval '1 second' AS until FROM vf.event_clock c
       FOR NO KEY UPDATE SKIP LOCKED
), step AS (
    SELECT c.expired_to, coalesce((
               SELECT v.expires_at FROM vf.projects p CROSS JOIN LATERAL (
                      SELECT k.expires_at FROM vf.vouchers k
                       WHERE k.project_id = p.id AND k.expires_at > c.expired_to AND k.expires_at <= c.until
                       ORDER BY k.expires_at LIMIT 1000) v
                ORDER BY v.expires_at OFFSET 999 LIMIT 1), c.until) AS until
      FROM clock c
), told AS (
    INSERT INTO vf.outbox (project_id, event, subject, data)
    SELECT v.project_id, 'voucher.expired', v.id, jsonb_build_object('code', v.code, 'campaign_id', v.campaign_id)
      FROM step s CROSS JOIN vf.projects p CROSS JOIN LATERAL (
           SELECT k.project_id, k.id, k.code, k.campaign_id, k.expires_at FROM vf.vouchers k
            WHERE k.project_id = p.id AND k.expires_at > s.expired_to AND k.expires_at <= s.until
              AND k.status = 'active' AND NOT k.is_pooled
              AND (k.max_redemptions IS NULL OR k.direct_count + k.leased_count < k.max_redemptions)) v
     ORDER BY v.expires_at
)
UPDATE vf.event_clock c SET expired_to = s.until FROM step s WHERE s.until > c.expired_to;

-- name: forget :exec
-- Operator: deletes events that are older than they are kept, a bounded number at a time. Ids begin with their time.
DELETE FROM vf.events e
 WHERE e.ctid = ANY (ARRAY(
       SELECT x.ctid FROM vf.events x
        WHERE x.id < (lpad(to_hex(floor(extract(epoch FROM clock_timestamp() - make_interval(days => @keep_days::integer))
                                        * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
        LIMIT 10000));
