-- What `verify` reads: one snapshot of the books, compared with itself. Nothing here locks or writes.
-- @project is NULL for all projects. Offenders come at most @rows_max of each kind; `offenders` counts all of them.

-- name: room :one
-- Operator: memory for grouping millions of rows without spilling, for this transaction only.
SELECT set_config('work_mem', @work_mem::text, true);

-- name: totals :one
-- Operator: how much there is to check, for the figures beside each invariant.
SELECT (SELECT count(*) FROM vf.vouchers k WHERE @project::uuid IS NULL OR k.project_id = @project) AS vouchers,
       (SELECT count(*) FROM vf.campaigns k WHERE @project::uuid IS NULL OR k.project_id = @project) AS campaigns,
       (SELECT count(*) FROM vf.flash_sales k WHERE @project::uuid IS NULL OR k.project_id = @project) AS sales,
       (SELECT count(*) FROM vf.leases k WHERE @project::uuid IS NULL OR k.project_id = @project) AS leases,
       (SELECT count(*) FROM vf.redemptions k WHERE @project::uuid IS NULL OR k.project_id = @project) AS redemptions,
       (SELECT count(*) FROM vf.redemptions k WHERE (@project::uuid IS NULL OR k.project_id = @project)
                                                AND k.status = 'redeemed') AS live,
       (SELECT count(*) FROM vf.customer_counts k WHERE @project::uuid IS NULL OR k.project_id = @project) AS customers,
       (SELECT count(*) FROM vf.gift_cards k WHERE @project::uuid IS NULL OR k.project_id = @project) AS gift_cards,
       (SELECT count(*) FROM vf.gift_card_transactions k
         WHERE @project::uuid IS NULL OR k.project_id = @project) AS gift_card_transactions,
       (SELECT count(*) FROM vf.referral_rewards k WHERE @project::uuid IS NULL OR k.project_id = @project) AS rewards,
       (SELECT count(*) FROM vf.audit_log k WHERE @project::uuid IS NULL OR k.project_id = @project) AS audit_entries,
       (SELECT count(*) FROM vf.quarantine k WHERE @project::uuid IS NULL OR k.project_id = @project) AS quarantined,
       (SELECT coalesce(sum(k.burned), 0)::bigint FROM vf.leases k
         WHERE @project::uuid IS NULL OR k.project_id = @project) AS burned,
       (SELECT coalesce(sum(k.read_count), 0)::bigint FROM vf.lease_progress k
         WHERE @project::uuid IS NULL OR k.project_id = @project) AS read_count,
       (SELECT coalesce(sum(k.replayed_count), 0)::bigint FROM vf.lease_progress k
         WHERE @project::uuid IS NULL OR k.project_id = @project) AS replayed_count,
       (SELECT coalesce(sum(k.same_key_count), 0)::bigint FROM vf.lease_progress k
         WHERE @project::uuid IS NULL OR k.project_id = @project) AS same_key_count;

-- name: counts :many
-- Operator: I1, I6 and I9 in one pass over the ledger: every counter, limit and number range against the rows
-- themselves. A lease holds its size while it is out and open_to once settled, less what was released or rolled back.
WITH ledger AS MATERIALIZED (
    SELECT k.project_id, k.lease_id, k.voucher_id, k.campaign_id, k.sale_id, k.granted_size IS NULL AS is_direct,
           count(*) AS row_count, count(*) FILTER (WHERE k.status = 'redeemed') AS live_count,
           max(k.seq) AS seq_max, count(*) FILTER (WHERE k.seq > k.granted_size) AS above_grant
      FROM vf.redemptions k
     WHERE @project::uuid IS NULL OR k.project_id = @project
     GROUP BY 1, 2, 3, 4, 5, 6
), hold AS MATERIALIZED (
    SELECT h.project_id, h.voucher_id, h.campaign_id, count(*) AS held FROM vf.holds h
     WHERE h.status = 'held' AND (@project::uuid IS NULL OR h.project_id = @project) GROUP BY 1, 2, 3
), direct AS MATERIALIZED (
    SELECT k.project_id, k.voucher_id, sum(k.live_count)::bigint AS live_count, max(k.seq_max) AS seq_max
      FROM ledger k WHERE k.is_direct GROUP BY 1, 2
), won AS MATERIALIZED (
    SELECT k.project_id, k.lease_id, sum(k.row_count)::bigint AS row_count, sum(k.live_count)::bigint AS live_count,
           max(k.seq_max) AS seq_max, sum(k.above_grant)::bigint AS above_grant
      FROM ledger k WHERE NOT k.is_direct GROUP BY 1, 2
), refused AS MATERIALIZED (
    SELECT q.project_id, q.lease_id, count(*) AS entry_count,
           count(*) FILTER (WHERE q.reason = 'unreadable') AS unread_count,
           count(DISTINCT q.seq) FILTER (WHERE q.seq > 0 AND NOT EXISTS (
               SELECT 1 FROM vf.redemptions r WHERE r.lease_id = q.lease_id AND r.seq = q.seq)) AS hole_count
      FROM vf.quarantine q GROUP BY 1, 2
), lease AS MATERIALIZED (
    SELECT l.*, coalesce(w.row_count, 0) AS row_count, coalesce(w.seq_max, 0) AS seq_max,
           coalesce(w.above_grant, 0) AS above_grant,
           CASE WHEN l.state = 'settled' THEN l.open_to - l.released ELSE l.size END
               - coalesce(w.row_count - w.live_count, 0) AS unit_count,
           (SELECT count(*) FROM vf.released_numbers x WHERE x.lease_id = l.id) AS released_rows,
           (SELECT count(*) FROM vf.released_numbers x JOIN vf.redemptions r ON r.lease_id = x.lease_id AND r.seq = x.seq
             WHERE x.lease_id = l.id) AS released_wins,
           coalesce((SELECT max(g.size) FROM vf.lease_grants g
                      WHERE g.lease_id = l.id AND g.project_id = l.project_id), 0) AS granted_max,
           p.accounted, p.read_count, p.inserted_count, p.replayed_count, p.same_key_count, p.quarantined_count,
           coalesce(q.entry_count, 0) AS entry_count, coalesce(q.unread_count, 0) AS unread_count, coalesce(q.hole_count, 0) AS refused_holes
      FROM vf.leases l
      LEFT JOIN won w ON w.lease_id = l.id AND w.project_id = l.project_id
      LEFT JOIN vf.lease_progress p ON p.lease_id = l.id AND p.project_id = l.project_id
      LEFT JOIN refused q ON q.lease_id = l.id AND q.project_id = l.project_id
     WHERE @project::uuid IS NULL OR l.project_id = @project
), voucher AS MATERIALIZED (
    SELECT v.*, coalesce(d.live_count, 0) + coalesce(h.held, 0) AS live_count, coalesce(d.seq_max, 0) AS seq_max,
           coalesce(l.unit_count, 0) AS unit_count, coalesce(h.held, 0) AS held
      FROM vf.vouchers v
      LEFT JOIN hold h ON h.project_id = v.project_id AND h.voucher_id = v.id
      LEFT JOIN direct d ON d.project_id = v.project_id AND d.voucher_id = v.id
      LEFT JOIN (SELECT k.project_id, k.voucher_id, sum(k.unit_count)::bigint AS unit_count
                   FROM lease k GROUP BY 1, 2) l ON l.project_id = v.project_id AND l.voucher_id = v.id
     WHERE @project::uuid IS NULL OR v.project_id = @project
), sale AS MATERIALIZED (
    SELECT s.*, coalesce(d.live_count, 0) AS live_count, coalesce(l.unit_count, 0) AS unit_count,
           coalesce(l.burned, 0) AS burned
      FROM vf.flash_sales s
      LEFT JOIN (SELECT k.project_id, k.sale_id, sum(k.live_count)::bigint AS live_count
                   FROM ledger k WHERE k.is_direct AND k.sale_id IS NOT NULL GROUP BY 1, 2) d
             ON d.project_id = s.project_id AND d.sale_id = s.id
      LEFT JOIN (SELECT k.project_id, k.sale_id, sum(k.unit_count)::bigint AS unit_count, sum(k.burned)::bigint AS burned
                   FROM lease k GROUP BY 1, 2) l ON l.project_id = s.project_id AND l.sale_id = s.id
     WHERE @project::uuid IS NULL OR s.project_id = @project
), campaign AS MATERIALIZED (
    SELECT c.*, coalesce(d.live_count, 0) + coalesce(h.held, 0) AS live_count,
           coalesce(l.unit_count, 0) AS unit_count, coalesce(h.held, 0) AS held
      FROM vf.campaigns c
      LEFT JOIN (SELECT k.project_id, k.campaign_id, sum(k.held)::bigint AS held FROM hold k GROUP BY 1, 2) h
             ON h.project_id = c.project_id AND h.campaign_id = c.id
      LEFT JOIN (SELECT k.project_id, k.campaign_id, sum(k.live_count)::bigint AS live_count
                   FROM ledger k WHERE k.is_direct AND k.campaign_id IS NOT NULL GROUP BY 1, 2) d
             ON d.project_id = c.project_id AND d.campaign_id = c.id
      LEFT JOIN (SELECT k.project_id, k.campaign_id, sum(k.unit_count)::bigint AS unit_count
                   FROM lease k WHERE k.campaign_id IS NOT NULL GROUP BY 1, 2) l
             ON l.project_id = c.project_id AND l.campaign_id = c.id
     WHERE @project::uuid IS NULL OR c.project_id = @project
), offender (invariant, what, project_id, prefix, subject, expected, found) AS (
    SELECT 'I1', 'a voucher''s direct_count is its live direct redemptions', k.project_id, 'vch', k.id,
           k.live_count, k.direct_count FROM voucher k WHERE k.direct_count <> k.live_count
    UNION ALL
    SELECT 'I1', 'a voucher''s held_count is its live holds', k.project_id, 'vch', k.id,
           k.held, k.held_count FROM voucher k WHERE k.held_count <> k.held
    UNION ALL
    SELECT 'I1', 'a campaign''s held_count is its live holds', k.project_id, 'cmp', k.id,
           k.held, k.held_count FROM campaign k WHERE k.held_count <> k.held
    UNION ALL
    SELECT 'I1', 'a voucher''s leased_count is what its leases hold', k.project_id, 'vch', k.id,
           k.unit_count, k.leased_count FROM voucher k WHERE k.leased_count <> k.unit_count
    UNION ALL
    SELECT 'I1', 'a voucher redeems at most max_redemptions', k.project_id, 'vch', k.id, k.max_redemptions,
           greatest(k.direct_count + k.leased_count, k.live_count + k.unit_count) FROM voucher k
     WHERE greatest(k.direct_count + k.leased_count, k.live_count + k.unit_count) > k.max_redemptions
    UNION ALL
    SELECT 'I1', 'a sale''s sold_count is its live direct redemptions', k.project_id, 'fls', k.id,
           k.live_count, k.sold_count FROM sale k WHERE k.sold_count <> k.live_count
    UNION ALL
    SELECT 'I1', 'a sale''s leased_count is what its leases hold', k.project_id, 'fls', k.id,
           k.unit_count, k.leased_count FROM sale k WHERE k.leased_count <> k.unit_count
    UNION ALL
    SELECT 'I1', 'a sale sells at most its stock', k.project_id, 'fls', k.id, k.stock,
           greatest(k.sold_count + k.leased_count, k.live_count + k.unit_count) FROM sale k
     WHERE greatest(k.sold_count + k.leased_count, k.live_count + k.unit_count) > k.stock
    UNION ALL
    SELECT 'I1', 'a sale''s burned_count is what its leases burned', k.project_id, 'fls', k.id,
           k.burned, k.burned_count FROM sale k WHERE k.burned_count <> k.burned
    UNION ALL
    SELECT 'I1', 'a campaign''s direct_count is its live direct redemptions', k.project_id, 'cmp', k.id,
           k.live_count, k.direct_count FROM campaign k WHERE k.direct_count <> k.live_count
    UNION ALL
    SELECT 'I1', 'a campaign''s leased_count is what its leases hold', k.project_id, 'cmp', k.id,
           k.unit_count, k.leased_count FROM campaign k WHERE k.leased_count <> k.unit_count
    UNION ALL
    SELECT 'I1', 'a campaign redeems at most max_redemptions', k.project_id, 'cmp', k.id, k.max_redemptions,
           greatest(k.direct_count + k.leased_count, k.live_count + k.unit_count) FROM campaign k
     WHERE greatest(k.direct_count + k.leased_count, k.live_count + k.unit_count) > k.max_redemptions
    UNION ALL
    SELECT 'I1', 'a lease''s size is its largest grant', k.project_id, 'lease', k.id, k.granted_max, k.size
      FROM lease k WHERE k.size <> k.granted_max
    UNION ALL
    SELECT 'I1', 'a lease has at most size redemptions', k.project_id, 'lease', k.id, k.size, k.row_count
      FROM lease k WHERE k.row_count > k.size
    UNION ALL
    SELECT 'I1', 'a lease''s numbers end at open_to', k.project_id, 'lease', k.id, k.open_to, k.seq_max
      FROM lease k WHERE k.seq_max > k.open_to
    UNION ALL
    SELECT 'I1', 'no number is above its grant', k.project_id, 'lease', k.id, 0, k.above_grant
      FROM lease k WHERE k.above_grant > 0
    UNION ALL
    SELECT 'I1', 'a redemption''s lease is in the books', k.project_id, 'lease', k.lease_id, 0, k.row_count
      FROM won k WHERE NOT EXISTS (SELECT 1 FROM lease l WHERE l.id = k.lease_id AND l.project_id = k.project_id)
    UNION ALL
    SELECT 'I1', 'a redemption''s voucher is in the books', k.project_id, 'vch', k.voucher_id, 0, k.row_count
      FROM ledger k WHERE NOT EXISTS (SELECT 1 FROM vf.vouchers v
                                       WHERE v.id = k.voucher_id AND v.project_id = k.project_id)
    UNION ALL
    SELECT 'I6', 'direct numbers are below next_number', k.project_id, 'vch', k.id, k.next_number - 1, k.seq_max
      FROM voucher k WHERE k.seq_max >= k.next_number
    UNION ALL
    SELECT 'I6', 'up to accounted every number is a row, a repeated key or quarantined', k.project_id, 'lease', k.id,
           k.same_key_count + k.refused_holes, k.accounted - k.row_count
      FROM lease k WHERE k.state <> 'settled' AND k.accounted - k.row_count <> k.same_key_count + k.refused_holes
    UNION ALL
    SELECT 'I6', 'no row is above accounted', k.project_id, 'lease', k.id, k.accounted, k.seq_max
      FROM lease k WHERE k.state <> 'settled' AND k.seq_max > k.accounted
    UNION ALL
    SELECT 'I6', 'a settled lease''s holes are burned or released', k.project_id, 'lease', k.id,
           k.open_to - k.row_count, k.burned + k.released
      FROM lease k WHERE k.state = 'settled' AND k.burned + k.released <> k.open_to - k.row_count
    UNION ALL
    SELECT 'I6', 'a released unit has its number', k.project_id, 'lease', k.id, k.released_rows, k.released
      FROM lease k WHERE k.released <> k.released_rows
    UNION ALL
    SELECT 'I6', 'a released number is no redemption', k.project_id, 'lease', k.id, 0, k.released_wins
      FROM lease k WHERE k.released_wins > 0
    UNION ALL
    SELECT 'I6', 'a settled lease returned what is above open_to', k.project_id, 'lease', k.id,
           k.size - k.open_to, k.returned FROM lease k WHERE k.state = 'settled' AND k.returned <> k.size - k.open_to
    UNION ALL
    SELECT 'I9', 'a lease''s progress is kept', k.project_id, 'lease', k.id, 1, 0 FROM lease k WHERE k.accounted IS NULL
    UNION ALL
    SELECT 'I9', 'read is inserted + replayed + same_key + quarantined', k.project_id, 'lease', k.id, k.read_count,
           k.inserted_count + k.replayed_count + k.same_key_count + k.quarantined_count FROM lease k
     WHERE k.read_count <> k.inserted_count + k.replayed_count + k.same_key_count + k.quarantined_count
    UNION ALL
    SELECT 'I9', 'inserted is the lease''s rows', k.project_id, 'lease', k.id, k.row_count, k.inserted_count
      FROM lease k WHERE k.inserted_count <> k.row_count
    UNION ALL
    SELECT 'I9', 'nothing is in quarantine that a fence does not explain', k.project_id, 'lease', k.id, 0,
           CASE WHEN k.fence_reason IS NULL THEN k.entry_count ELSE k.unread_count END FROM lease k
     WHERE CASE WHEN k.fence_reason IS NULL THEN k.entry_count ELSE k.unread_count END > 0
    UNION ALL
    SELECT 'I9', 'quarantined is the lease''s quarantine', k.project_id, 'lease', k.id, k.entry_count,
           k.quarantined_count FROM lease k WHERE k.quarantined_count <> k.entry_count
), numbered AS (
    SELECT k.*, count(*) OVER (PARTITION BY k.invariant, k.what) AS offenders,
           row_number() OVER (PARTITION BY k.invariant, k.what ORDER BY k.subject) AS place FROM offender k
)
SELECT k.invariant, k.what, k.project_id, k.prefix, k.subject, NULL::text AS detail, k.expected, k.found, k.offenders
  FROM numbered k WHERE k.place <= @rows_max::bigint ORDER BY k.invariant, k.what, k.place;

-- name: duplicate_numbers :many
-- Operator: I6, a number given out twice: (lease_id, seq), whatever index should have forbidden it.
SELECT 'I6' AS invariant, 'a number is given out once' AS what, k.project_id, 'lease' AS prefix, k.lease_id AS subject,
       'seq ' || k.seq AS detail, 1::bigint AS expected, count(*) AS found, count(*) OVER () AS offenders
  FROM vf.redemptions k
 WHERE @project::uuid IS NULL OR k.project_id = @project
 GROUP BY k.project_id, k.lease_id, k.seq HAVING count(*) > 1
 ORDER BY k.lease_id, k.seq LIMIT @rows_max::bigint;

-- name: duplicate_sale_numbers :many
-- Operator: I6, a sale-wide number answered twice, across all leases of the sale.
SELECT 'I6' AS invariant, 'a sale-wide number is given out once' AS what, k.project_id, 'fls' AS prefix,
       k.sale_id AS subject, 'seq ' || k.sale_seq AS detail, 1::bigint AS expected, count(*) AS found,
       count(*) OVER () AS offenders
  FROM vf.redemptions k
 WHERE k.sale_seq IS NOT NULL AND (@project::uuid IS NULL OR k.project_id = @project)
 GROUP BY k.project_id, k.sale_id, k.sale_seq HAVING count(*) > 1
 ORDER BY k.sale_id, k.sale_seq LIMIT @rows_max::bigint;

-- name: duplicate_keys :many
-- Operator: I3, one idempotency key with two redemptions of a voucher.
SELECT 'I3' AS invariant, 'an idempotency key has one redemption' AS what, k.project_id, 'vch' AS prefix,
       k.voucher_id AS subject, 'key ' || k.idempotency_key AS detail, 1::bigint AS expected, count(*) AS found,
       count(*) OVER () AS offenders
  FROM vf.redemptions k
 WHERE @project::uuid IS NULL OR k.project_id = @project
 GROUP BY k.project_id, k.voucher_id, k.idempotency_key HAVING count(*) > 1
 ORDER BY k.voucher_id, k.idempotency_key LIMIT @rows_max::bigint;

-- name: duplicate_ids :many
-- Operator: I3, one redemption id on two rows.
SELECT 'I3' AS invariant, 'a redemption id has one row' AS what, k.project_id, 'rdm' AS prefix, k.id AS subject,
       NULL::text AS detail, 1::bigint AS expected, count(*) AS found, count(*) OVER () AS offenders
  FROM vf.redemptions k
 WHERE @project::uuid IS NULL OR k.project_id = @project
 GROUP BY k.project_id, k.id HAVING count(*) > 1
 ORDER BY k.id LIMIT @rows_max::bigint;

-- name: customers :many
-- Operator: I5, live redemptions of a customer against the limit of the voucher and of the campaign, and against
-- customer_counts: that table speaks for direct redemptions and settled leases, an open lease's counts are in Redis.
WITH scope (project_id, id, prefix, limit_max) AS MATERIALIZED (
    SELECT v.project_id, v.id, 'vch', v.per_customer_limit FROM vf.vouchers v
     WHERE v.per_customer_limit IS NOT NULL AND (@project::uuid IS NULL OR v.project_id = @project)
    UNION ALL
    SELECT c.project_id, c.id, 'cmp', c.per_customer_limit FROM vf.campaigns c
     WHERE c.per_customer_limit IS NOT NULL AND (@project::uuid IS NULL OR c.project_id = @project)
), used AS MATERIALIZED (
    -- Grouped before anything is joined: a million rows are read once and shrink at once.
    SELECT k.project_id, k.voucher_id, k.campaign_id, k.lease_id, k.customer_id, count(*) AS live_count
      FROM vf.redemptions k
     WHERE k.status = 'redeemed' AND k.customer_id IS NOT NULL AND (@project::uuid IS NULL OR k.project_id = @project)
     GROUP BY 1, 2, 3, 4, 5
    UNION ALL
    -- A hold is taken of the limits as if it were redeemed.
    SELECT h.project_id, h.voucher_id, h.campaign_id, h.voucher_id, h.customer_id, count(*) FROM vf.holds h
     WHERE h.status = 'held' AND h.customer_id IS NOT NULL AND (@project::uuid IS NULL OR h.project_id = @project)
     GROUP BY 1, 2, 3, 4, 5
), held AS MATERIALIZED (
    SELECT s.project_id, s.id, s.prefix, s.limit_max, k.customer_id, sum(k.live_count)::bigint AS live_count,
           coalesce(sum(k.live_count) FILTER (WHERE l.id IS NULL OR l.state = 'settled'), 0)::bigint AS settled_count
      FROM (SELECT u.project_id, u.voucher_id AS id, u.lease_id, u.customer_id, u.live_count FROM used u
            UNION ALL
            SELECT u.project_id, u.campaign_id, u.lease_id, u.customer_id, u.live_count FROM used u
             WHERE u.campaign_id IS NOT NULL) k
      JOIN scope s ON s.id = k.id AND s.project_id = k.project_id
      LEFT JOIN vf.leases l ON l.id = k.lease_id AND l.project_id = k.project_id
     GROUP BY 1, 2, 3, 4, 5
), offender (what, project_id, prefix, subject, customer_id, expected, found) AS (
    SELECT 'a customer has at most per_customer_limit', h.project_id, h.prefix, h.id, h.customer_id, h.limit_max,
           h.live_count FROM held h WHERE h.live_count > h.limit_max
    UNION ALL
    SELECT 'customer_counts is the customer''s settled redemptions', s.project_id, s.prefix, s.id,
           coalesce(h.customer_id, k.customer_id), coalesce(h.settled_count, 0), coalesce(k.live_count, 0)
      FROM held h
      FULL JOIN (SELECT c.* FROM vf.customer_counts c
                  WHERE (@project::uuid IS NULL OR c.project_id = @project)
                    AND EXISTS (SELECT 1 FROM scope x WHERE x.id = c.scope_id AND x.project_id = c.project_id)) k
             ON k.scope_id = h.id AND k.project_id = h.project_id AND k.customer_id = h.customer_id
      JOIN scope s ON s.id = coalesce(h.id, k.scope_id) AND s.project_id = coalesce(h.project_id, k.project_id)
     WHERE coalesce(h.settled_count, 0) <> coalesce(k.live_count, 0)
), numbered AS (
    SELECT k.*, count(*) OVER (PARTITION BY k.what) AS offenders,
           row_number() OVER (PARTITION BY k.what ORDER BY k.subject, k.customer_id) AS place FROM offender k
)
SELECT 'I5' AS invariant, k.what, k.project_id, k.prefix, k.subject, 'customer ' || k.customer_id AS detail,
       k.expected, k.found, k.offenders
  FROM numbered k WHERE k.place <= @rows_max::bigint ORDER BY k.what, k.place;

-- name: budgets :many
-- Operator: I1, what each budget says is gone against its cap, and against what live redemptions took of it.
WITH live AS MATERIALIZED (
    SELECT r.project_id, r.detail FROM vf.redemptions r WHERE r.detail IS NOT NULL AND r.status = 'redeemed'
    UNION ALL
    SELECT h.project_id, h.detail FROM vf.holds h WHERE h.status = 'held'
), took AS MATERIALIZED (
    SELECT r.project_id, t.scope_id, t.label, t.subject, t.period, sum(t.used)::bigint AS used
      FROM live r
     CROSS JOIN LATERAL jsonb_populate_recordset(NULL::vf.budgets, r.detail -> 'takings') t
     WHERE @project::uuid IS NULL OR r.project_id = @project
     GROUP BY 1, 2, 3, 4, 5
), budget AS MATERIALIZED (
    SELECT coalesce(k.project_id, t.project_id) AS project_id, coalesce(k.scope_id, t.scope_id) AS scope_id,
           concat_ws(' ', coalesce(k.label, t.label), nullif(coalesce(k.subject, t.subject), ''),
                     nullif(coalesce(k.period, t.period), '')) AS detail,
           coalesce(k.used, 0) AS used, coalesce(t.used, 0) AS took, k.used_max
      FROM (SELECT b.* FROM vf.budgets b WHERE @project::uuid IS NULL OR b.project_id = @project) k
      FULL JOIN took t ON t.scope_id = k.scope_id AND t.project_id = k.project_id AND t.label = k.label
                      AND t.subject = k.subject AND t.period = k.period
), offender (what, project_id, subject, detail, expected, found) AS (
    SELECT 'a budget is what its live redemptions took', k.project_id, k.scope_id, k.detail, k.took, k.used
      FROM budget k WHERE k.used <> k.took
    UNION ALL
    SELECT 'a budget is never exceeded', k.project_id, k.scope_id, k.detail, k.used_max, greatest(k.used, k.took)
      FROM budget k WHERE greatest(k.used, k.took) > k.used_max
), numbered AS (
    SELECT k.*, count(*) OVER (PARTITION BY k.what) AS offenders,
           row_number() OVER (PARTITION BY k.what ORDER BY k.subject, k.detail) AS place FROM offender k
)
SELECT 'I1' AS invariant, k.what, k.project_id,
       CASE WHEN EXISTS (SELECT 1 FROM vf.campaigns c WHERE c.project_id = k.project_id AND c.id = k.subject)
            THEN 'cmp' ELSE 'vch' END AS prefix,
       k.subject, k.detail, k.expected, k.found, k.offenders
  FROM numbered k WHERE k.place <= @rows_max::bigint ORDER BY k.what, k.place;

-- name: gift_cards :many
-- Operator: I11, every gift card against its entries, and every transaction against the rules of double entry.
WITH entry AS MATERIALIZED (
    SELECT e.project_id, e.transaction_id, e.side, e.account, e.card_id, e.number, e.balance_minor,
           CASE e.side WHEN 'credit' THEN e.amount_minor ELSE -e.amount_minor END AS signed
      FROM vf.gift_card_entries e WHERE @project::uuid IS NULL OR e.project_id = @project
), chained AS (
    SELECT e.*, coalesce(lag(e.balance_minor) OVER w, 0) + e.signed AS follows,
           row_number() OVER w AS place
      FROM entry e WHERE e.account = 'liability'
    WINDOW w AS (PARTITION BY e.project_id, e.card_id ORDER BY e.number)
), held AS MATERIALIZED (
    SELECT e.project_id, e.card_id, sum(e.signed)::bigint AS balance, count(*) AS entries
      FROM entry e WHERE e.account = 'liability' GROUP BY 1, 2
), booked AS MATERIALIZED (
    SELECT t.project_id, t.id, t.card_id, t.kind, t.amount_minor, count(e.transaction_id) AS entries,
           coalesce(sum(e.signed), 0)::bigint AS total,
           t.kind || ' ' || coalesce(string_agg(e.side || ' ' || e.account, ', ' ORDER BY e.side), 'nothing') AS legs
      FROM vf.gift_card_transactions t
      LEFT JOIN entry e ON e.project_id = t.project_id AND e.transaction_id = t.id
     WHERE @project::uuid IS NULL OR t.project_id = @project
     GROUP BY 1, 2, 3, 4, 5
), spent AS MATERIALIZED (
    SELECT b.project_id, b.card_id, sum(CASE b.kind WHEN 'spend' THEN b.amount_minor ELSE -b.amount_minor END)::bigint AS n
      FROM booked b WHERE b.kind IN ('spend', 'refund') GROUP BY 1, 2
), offender (what, project_id, prefix, subject, detail, expected, found) AS (
    SELECT 'a gift card''s balance is the sum of its entries', c.project_id, 'gft', c.id, NULL, coalesce(h.balance, 0),
           c.balance_minor
      FROM vf.gift_cards c LEFT JOIN held h ON h.project_id = c.project_id AND h.card_id = c.id
     WHERE (@project::uuid IS NULL OR c.project_id = @project) AND c.balance_minor <> coalesce(h.balance, 0)
    UNION ALL
    SELECT 'a gift card''s entries are counted', c.project_id, 'gft', c.id, NULL, coalesce(h.entries, 0), c.entry_count
      FROM vf.gift_cards c LEFT JOIN held h ON h.project_id = c.project_id AND h.card_id = c.id
     WHERE (@project::uuid IS NULL OR c.project_id = @project) AND c.entry_count <> coalesce(h.entries, 0)
    UNION ALL
    SELECT 'a gift card''s spent is its spends less its refunds', c.project_id, 'gft', c.id, NULL, coalesce(s.n, 0),
           c.spent_minor
      FROM vf.gift_cards c LEFT JOIN spent s ON s.project_id = c.project_id AND s.card_id = c.id
     WHERE (@project::uuid IS NULL OR c.project_id = @project) AND c.spent_minor <> coalesce(s.n, 0)
    UNION ALL
    SELECT 'a gift card never holds less than nothing', c.project_id, 'gft', c.id, NULL, 0, c.balance_minor
      FROM vf.gift_cards c WHERE c.balance_minor < 0 AND (@project::uuid IS NULL OR c.project_id = @project)
    UNION ALL
    SELECT 'an entry''s balance follows from the one before', k.project_id, 'gft', k.card_id, 'entry ' || k.number,
           k.follows, k.balance_minor FROM chained k WHERE k.follows <> k.balance_minor
    UNION ALL
    SELECT 'entries are numbered without a hole', k.project_id, 'gft', k.card_id, NULL, k.place, k.number
      FROM chained k WHERE k.place <> k.number
    UNION ALL
    SELECT 'a transaction has a debit and a credit', b.project_id, 'gfe', b.id, b.legs, 2, b.entries
      FROM booked b WHERE b.entries <> 2
    UNION ALL
    SELECT 'a transaction''s entries sum to zero', b.project_id, 'gfe', b.id, b.legs, 0, b.total
      FROM booked b WHERE b.total <> 0
    UNION ALL
    SELECT 'a transaction''s accounts are those of its kind', b.project_id, 'gfe', b.id, b.legs, 1, 0
      FROM booked b WHERE b.entries = 2 AND b.legs NOT IN (
           'issue credit liability, debit sales', 'issue credit liability, debit promotion',
           'top_up credit liability, debit sales', 'top_up credit liability, debit promotion',
           'spend credit redemption, debit liability', 'refund credit liability, debit redemption',
           'expire credit breakage, debit liability', 'transfer credit liability, debit liability',
           'adjust credit liability, debit adjustment', 'adjust credit adjustment, debit liability')
    UNION ALL
    SELECT 'a reference has one transaction', t.project_id, 'prj', t.project_id, 'reference ' || t.reference, 1, count(*)
      FROM vf.gift_card_transactions t WHERE @project::uuid IS NULL OR t.project_id = @project
     GROUP BY t.project_id, t.reference HAVING count(*) > 1
), numbered AS (
    SELECT k.*, count(*) OVER (PARTITION BY k.what) AS offenders,
           row_number() OVER (PARTITION BY k.what ORDER BY k.subject, k.detail) AS place FROM offender k
)
SELECT 'I11' AS invariant, k.what, k.project_id, k.prefix, k.subject, k.detail, k.expected, k.found, k.offenders
  FROM numbered k WHERE k.place <= @rows_max::bigint ORDER BY k.what, k.place;

-- name: referrals :many
-- Operator: I11, what referrals earned against what was issued, counted and capped.
WITH reward AS MATERIALIZED (
    SELECT w.*, r.program_id, r.referrer_id, r.status AS of_status, r.converted_at FROM vf.referral_rewards w
      JOIN vf.referrals r ON r.project_id = w.project_id AND r.id = w.referral_id
     WHERE @project::uuid IS NULL OR w.project_id = @project
), given AS (
    SELECT w.project_id, w.gift_card_id AS id, count(*) AS n FROM reward w WHERE w.gift_card_id IS NOT NULL GROUP BY 1, 2
    UNION ALL
    SELECT w.project_id, w.voucher_id, count(*) FROM reward w WHERE w.voucher_id IS NOT NULL GROUP BY 1, 2
), counted AS (
    SELECT w.project_id, w.program_id, w.referrer_id, w.period, count(*) AS n FROM reward w
     WHERE w.side = 'referrer' AND w.status IN ('pending', 'issued') GROUP BY 1, 2, 3, 4
), offender (what, project_id, prefix, subject, detail, expected, found) AS (
    SELECT 'a referral rewards each side once', w.project_id, 'rfa', w.referral_id, w.side, 1, count(*)
      FROM reward w GROUP BY 1, 2, 3, 4, 5 HAVING count(*) > 1
    UNION ALL
    SELECT 'a reward is of one referral', g.project_id, 'reward', g.id, NULL, 1, g.n FROM given g WHERE g.n > 1
    UNION ALL
    SELECT 'what is rewarded was converted', w.project_id, 'rfa', w.referral_id, w.side, 1, 0
      FROM reward w WHERE w.converted_at IS NULL
    UNION ALL
    SELECT 'what was reversed keeps no reward', w.project_id, 'rfa', w.referral_id, w.side, 0, 1
      FROM reward w WHERE w.of_status = 'reversed' AND w.status IN ('pending', 'issued')
    UNION ALL
    SELECT 'a reward''s card was issued with its amount', w.project_id, 'rfa', w.referral_id, w.side, w.amount_minor,
           coalesce(t.amount_minor, 0)
      FROM reward w
      LEFT JOIN vf.gift_card_transactions t ON t.project_id = w.project_id AND t.card_id = w.gift_card_id
                                           AND t.kind = 'issue'
     WHERE w.gift_card_id IS NOT NULL AND t.amount_minor IS DISTINCT FROM w.amount_minor
    UNION ALL
    SELECT 'a cap counts the rewards that stand', k.project_id, 'rfp', k.program_id, k.referrer_id || ' ' || k.period,
           coalesce(c.n, 0), k.live_count
      FROM vf.referral_counts k
      LEFT JOIN counted c ON c.project_id = k.project_id AND c.program_id = k.program_id
                         AND c.referrer_id = k.referrer_id AND c.period = k.period
     WHERE (@project::uuid IS NULL OR k.project_id = @project) AND k.live_count <> coalesce(c.n, 0)
    UNION ALL
    SELECT 'a cap is never exceeded', k.project_id, 'rfp', k.program_id, k.referrer_id || ' ' || k.period, k.limit_max,
           k.live_count FROM vf.referral_counts k
     WHERE k.live_count > k.limit_max AND (@project::uuid IS NULL OR k.project_id = @project)
    UNION ALL
    SELECT 'a code counts its conversions', c.project_id, 'rfc', c.id, NULL,
           (SELECT count(*) FROM vf.referrals r
             WHERE r.project_id = c.project_id AND r.code_id = c.id AND r.converted_at IS NOT NULL), c.conversion_count
      FROM vf.referral_codes c
     WHERE (@project::uuid IS NULL OR c.project_id = @project) AND c.conversion_count <> (
           SELECT count(*) FROM vf.referrals r
            WHERE r.project_id = c.project_id AND r.code_id = c.id AND r.converted_at IS NOT NULL)
    UNION ALL
    SELECT 'a referee has one attribution', r.project_id, 'rfp', r.program_id, r.referee_id, 1, count(*)
      FROM vf.referrals r
     WHERE r.status IN ('attributed', 'converted', 'rewarded', 'reversed')
       AND (@project::uuid IS NULL OR r.project_id = @project)
     GROUP BY 2, 4, 5 HAVING count(*) > 1
), numbered AS (
    SELECT k.*, count(*) OVER (PARTITION BY k.what) AS offenders,
           row_number() OVER (PARTITION BY k.what ORDER BY k.subject, k.detail) AS place FROM offender k
)
SELECT 'I11' AS invariant, k.what, k.project_id, k.prefix, k.subject, k.detail, k.expected, k.found, k.offenders
  FROM numbered k WHERE k.place <= @rows_max::bigint ORDER BY k.what, k.place;

-- name: strangers :many
-- Operator: I12, rows whose parent is another project's, whatever key should have forbidden it.
WITH ledger AS MATERIALIZED (
    SELECT DISTINCT k.project_id, k.lease_id, k.voucher_id, k.campaign_id, k.sale_id FROM vf.redemptions k
), child (project_id, prefix, subject, parent, parent_id) AS (
    SELECT k.project_id, 'vch', k.id, 'campaign', k.campaign_id FROM vf.vouchers k
    UNION ALL SELECT k.project_id, 'fls', k.id, 'voucher', k.voucher_id FROM vf.flash_sales k
    UNION ALL SELECT k.project_id, 'lease', k.id, 'sale', k.sale_id FROM vf.leases k
    UNION ALL SELECT k.project_id, 'lease', k.id, 'voucher', k.voucher_id FROM vf.leases k
    UNION ALL SELECT k.project_id, 'grant', k.lease_id, 'lease', k.lease_id FROM vf.lease_grants k
    UNION ALL SELECT k.project_id, 'progress', k.lease_id, 'lease', k.lease_id FROM vf.lease_progress k
    UNION ALL SELECT k.project_id, 'quarantine', k.lease_id, 'lease', k.lease_id FROM vf.quarantine k
    UNION ALL SELECT DISTINCT k.project_id, 'count', k.scope_id, 'voucher', k.scope_id FROM vf.customer_counts k
    UNION ALL SELECT DISTINCT k.project_id, 'count', k.scope_id, 'campaign', k.scope_id FROM vf.customer_counts k
    UNION ALL SELECT k.project_id, 'redemptions', k.lease_id, 'voucher', k.voucher_id FROM ledger k
    UNION ALL SELECT k.project_id, 'redemptions', k.lease_id, 'campaign', k.campaign_id FROM ledger k
    UNION ALL SELECT k.project_id, 'redemptions', k.lease_id, 'sale', k.sale_id FROM ledger k
    UNION ALL SELECT k.project_id, 'redemptions', k.lease_id, 'lease', k.lease_id FROM ledger k
), owner (parent, id, project_id) AS (
    SELECT 'voucher', k.id, k.project_id FROM vf.vouchers k
    UNION ALL SELECT 'campaign', k.id, k.project_id FROM vf.campaigns k
    UNION ALL SELECT 'sale', k.id, k.project_id FROM vf.flash_sales k
    UNION ALL SELECT 'lease', k.id, k.project_id FROM vf.leases k
)
SELECT 'I12' AS invariant, 'a row''s parent is its own project''s' AS what, c.project_id, c.prefix, c.subject,
       c.parent || ' of another project' AS detail, 0::bigint AS expected, 1::bigint AS found,
       count(*) OVER () AS offenders
  FROM child c JOIN owner o ON o.parent = c.parent AND o.id = c.parent_id AND o.project_id <> c.project_id
 WHERE @project::uuid IS NULL OR c.project_id = @project
 ORDER BY c.prefix, c.subject, c.parent LIMIT @rows_max::bigint;

-- name: audit_logs :many
-- Operator: I14, every entry of an audit log against the chain, and every chain against its head.
WITH chain AS (
    SELECT a.project_id, a.id, a.number, a.hash,
           row_number() OVER w AS place,
           vf.audit_hash(coalesce(lag(a.hash) OVER w, ''), a) AS seal
      FROM vf.audit_log a
     WHERE @project::uuid IS NULL OR a.project_id = @project
    WINDOW w AS (PARTITION BY a.project_id ORDER BY a.number)
), offender (what, project_id, prefix, subject, detail, expected, found) AS (
    SELECT 'the audit log has no gap', c.project_id, 'aud', c.id, NULL::text, c.place, c.number
      FROM chain c WHERE c.number <> c.place
    UNION ALL
    SELECT 'an entry of the audit log is as it was written', c.project_id, 'aud', c.id,
           'number ' || c.number, 1, 0
      FROM chain c WHERE c.hash <> c.seal
    UNION ALL
    SELECT 'the audit log ends where it ended', p.id, 'prj', p.id, NULL, coalesce(h.number, 0), coalesce(l.number, 0)
      FROM vf.projects p
      LEFT JOIN vf.audit_heads h ON h.project_id = p.id
      LEFT JOIN (SELECT DISTINCT ON (c.project_id) c.project_id, c.number, c.hash FROM chain c
                  ORDER BY c.project_id, c.number DESC) l ON l.project_id = p.id
     WHERE (@project::uuid IS NULL OR p.id = @project) AND (h.number, h.hash) IS DISTINCT FROM (l.number, l.hash)
), numbered AS (
    SELECT k.*, count(*) OVER (PARTITION BY k.what) AS offenders,
           row_number() OVER (PARTITION BY k.what ORDER BY k.subject) AS place FROM offender k
)
SELECT 'I14' AS invariant, k.what, k.project_id, k.prefix, k.subject, k.detail, k.expected, k.found, k.offenders
  FROM numbered k WHERE k.place <= @rows_max::bigint ORDER BY k.what, k.place;

-- name: live_of_projects :many
-- Operator: I13, what the ledger itself says of the projects that redeemed most.
SELECT k.project_id, count(*) AS live_count, count(*) FILTER (WHERE k.sale_id IS NOT NULL) AS sale_count,
       sum(k.discount_minor - coalesce(k.returned_minor, 0))::bigint AS discount_minor
  FROM vf.redemptions k
 WHERE k.status = 'redeemed' AND (@project::uuid IS NULL OR k.project_id = @project)
 GROUP BY k.project_id ORDER BY count(*) DESC, k.project_id LIMIT @projects_max::bigint;

-- name: vouchers_of_projects :many
-- Operator: I13, how many vouchers there are of the projects that have most, as the overview divides them.
SELECT k.project_id, count(*) FILTER (WHERE k.status = 'active' AND NOT k.is_over) AS active_count,
       count(*) FILTER (WHERE k.status <> 'active') AS disabled_count,
       count(*) FILTER (WHERE k.status = 'active' AND k.is_over) AS expired_count
  FROM (SELECT v.project_id, v.status,
               coalesce(v.expires_at <= greatest(now(), (SELECT m.expired_to FROM vf.voucher_mark m)), false) AS is_over
          FROM vf.vouchers v WHERE @project::uuid IS NULL OR v.project_id = @project) k
 GROUP BY k.project_id ORDER BY count(*) DESC, k.project_id LIMIT @projects_max::bigint;

-- name: quarantine :many
-- Operator: why wins were refused by the ledger, and how many of each kind.
SELECT k.lease_id, k.reason, count(*) AS entries, min(k.seq) AS seq_min, max(k.seq) AS seq_max
  FROM vf.quarantine k WHERE @project::uuid IS NULL OR k.project_id = @project
 GROUP BY 1, 2 ORDER BY 1, 2 LIMIT @rows_max::bigint;

-- name: live_leases :many
-- Operator: every lease that is out, as PostgreSQL sees it, for the comparison with Redis.
SELECT l.project_id, l.id, l.state, l.size, l.open_to, l.seq_base, s.id AS sale_id, s.name, s.stock, s.status,
       p.last_id, p.accounted, p.same_key_count,
       coalesce((SELECT max(r.seq) FROM vf.redemptions r WHERE r.lease_id = l.id), 0) AS seq_max
  FROM vf.leases l
  JOIN vf.flash_sales s ON s.id = l.sale_id AND s.project_id = l.project_id
  JOIN vf.lease_progress p ON p.lease_id = l.id AND p.project_id = l.project_id
 WHERE l.state <> 'settled' AND (@project::uuid IS NULL OR l.project_id = @project)
 ORDER BY l.armed_at, l.id;

-- name: strict_sales :many
-- Operator: live strict sales: what is claimed is settled.
SELECT s.project_id, s.id, s.name, s.status, s.stock, s.sold_count
  FROM vf.flash_sales s
 WHERE s.durability = 'strict' AND s.status NOT IN ('scheduled', 'settled')
   AND (@project::uuid IS NULL OR s.project_id = @project)
 ORDER BY s.created_at, s.id;

-- name: sample :many
-- Operator: some wins of a lease by their numbers, to be compared with Redis's idempotency records.
SELECT k.seq, k.id, k.idempotency_key, k.fingerprint, k.customer_id, k.status FROM vf.redemptions k
 WHERE k.lease_id = @lease AND k.seq = ANY(@seqs::bigint[]) ORDER BY k.seq;

-- name: voucher_by_code :many
-- Operator: the vouchers a history names, and how many units each could sell at most: the smallest of the sale's
-- first stock, the voucher's limit and what the campaign's other vouchers leave.
SELECT v.project_id, v.id, v.code_norm, p.currency,
       (SELECT coalesce(sum(l.burned), 0)::bigint FROM vf.leases l
         WHERE l.voucher_id = v.id AND l.project_id = v.project_id) AS burned,
       least(v.max_redemptions, coalesce(s.first_stock, s.stock),
             (SELECT min(g.size) FROM vf.leases l JOIN vf.lease_grants g ON g.lease_id = l.id
               WHERE l.sale_id = s.id AND l.project_id = v.project_id AND l.seq_base = 0),
             c.max_redemptions - (SELECT count(*) FROM vf.redemptions r
                                   WHERE r.campaign_id = c.id AND r.voucher_id <> v.id AND r.status = 'redeemed'
                                     AND r.redeemed_at > '-infinity')) AS units
  FROM vf.vouchers v
  JOIN vf.projects p ON p.id = v.project_id
  LEFT JOIN vf.campaigns c ON c.id = v.campaign_id AND c.project_id = v.project_id
  LEFT JOIN LATERAL (SELECT k.id, k.stock, k.first_stock FROM vf.flash_sales k
                      WHERE k.voucher_id = v.id AND k.project_id = v.project_id
                      ORDER BY k.created_at DESC LIMIT 1) s ON true
 WHERE v.code_norm = @code AND (@project::uuid IS NULL OR v.project_id = @project)
 ORDER BY v.id LIMIT 2;

-- name: rows_of_voucher :many
-- Operator: one page of a voucher's redemptions, live or rolled back, in id order after @after.
SELECT k.id, k.idempotency_key, k.customer_id, coalesce(k.sale_seq, k.seq) AS seq, k.discount_minor, k.status
  FROM vf.redemptions k
 WHERE k.voucher_id = @voucher AND k.redeemed_at > '-infinity' AND k.id > @after
 ORDER BY k.id LIMIT @rows_max::bigint;

-- name: leases_of_voucher :many
-- Operator: a voucher's leases with what the ids of their wins begin with.
SELECT l.id, l.tag FROM vf.leases l WHERE l.voucher_id = @voucher AND l.project_id = @project ORDER BY l.armed_at;

-- name: burned_numbers :many
-- Operator: which of these numbers their settled leases have burned: below open_to, and without a row.
SELECT q.lease_id, q.seq
  FROM unnest(@leases::uuid[], @seqs::bigint[]) AS q (lease_id, seq)
  JOIN vf.leases l ON l.id = q.lease_id
 WHERE l.state = 'settled' AND q.seq <= l.open_to
   AND NOT EXISTS (SELECT 1 FROM vf.redemptions r WHERE r.lease_id = q.lease_id AND r.seq = q.seq)
 ORDER BY l.armed_at, q.seq;
