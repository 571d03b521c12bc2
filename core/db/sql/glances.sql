-- A project's figures as its start page shows them.

-- name: look :one
-- Sums of all times, by the day and by the minute, and the code most redeemed today, else ever: what the worker has added
-- up, and what it has not come to yet, which is looked for before it is read.
WITH tail AS MATERIALIZED (
    SELECT f.voucher_id, f.at, f.redeemed, f.undone, f.order_value_minor - f.undone_value_minor AS order_value_minor,
           f.discount_minor - f.undone_discount_minor - f.returned_minor AS discount_minor, f.rolled_back
      FROM vf.facts(@project_id, coalesce((SELECT m.event_id FROM vf.figures_mark m),
                                          '00000000-0000-0000-0000-000000000000'),
                    'ffffffff-ffff-ffff-ffff-ffffffffffff', true) f
     WHERE EXISTS (SELECT 1 FROM vf.events e
                    WHERE e.project_id = @project_id AND e.type IN ('voucher.redeemed', 'redemption.rolled_back')
                      AND e.id > coalesce((SELECT m.event_id FROM vf.figures_mark m),
                                          '00000000-0000-0000-0000-000000000000'))
        OR EXISTS (SELECT 1 FROM vf.outbox o
                    WHERE o.project_id = @project_id AND o.event IN ('voucher.redeemed', 'redemption.rolled_back'))
), own AS (
    SELECT CASE f.grain_s WHEN 0 THEN 'ever' WHEN 60 THEN 'minute' ELSE 'day' END AS part,
           CASE f.grain_s WHEN 0 THEN to_timestamp(0) WHEN 60 THEN f.bucket
                ELSE date_trunc('day', f.bucket AT TIME ZONE @time_zone::text) AT TIME ZONE @time_zone END AS at,
           f.redeemed, f.undone, f.discount_minor - f.undone_discount_minor - f.returned_minor AS discount_minor,
           f.order_value_minor - f.undone_value_minor AS order_value_minor, f.rolled_back
      FROM (VALUES (0, '-infinity'::timestamptz), (60, @minutes_from::timestamptz), (900, @days_from::timestamptz))
           AS g (grain_s, from_at)
     CROSS JOIN LATERAL (SELECT * FROM vf.figures k
                          WHERE k.project_id = @project_id AND k.scope_id = @project_id AND k.grain_s = g.grain_s
                            AND k.bucket >= g.from_at OFFSET 0) f
    UNION ALL
    SELECT p.part, CASE p.part WHEN 'ever' THEN to_timestamp(0) WHEN 'minute' THEN date_trunc('minute', t.at)
                        ELSE date_trunc('day', t.at AT TIME ZONE @time_zone) AT TIME ZONE @time_zone END,
           t.redeemed, t.undone, t.discount_minor, t.order_value_minor, t.rolled_back
      FROM tail t
      JOIN (VALUES ('ever', '-infinity'::timestamptz), ('minute', @minutes_from), ('day', @days_from)) p (part, from_at)
        ON t.at >= p.from_at
), sums AS (
    SELECT o.part, o.at, sum(o.redeemed - o.undone)::bigint AS redemptions, sum(o.discount_minor)::bigint AS discount_minor,
           sum(o.order_value_minor)::bigint AS order_value_minor, sum(o.redeemed)::bigint AS redeemed,
           sum(o.rolled_back)::bigint AS rolled_back
      FROM own o GROUP BY 1, 2
), top_today AS (
    SELECT v.voucher_id FROM (
           SELECT f.scope_id AS voucher_id, f.redeemed - f.undone AS live FROM vf.figures f
            WHERE f.project_id = @project_id AND f.kind = 'v' AND f.grain_s = 900 AND f.bucket >= @today_at::timestamptz
           UNION ALL
           SELECT t.voucher_id, t.redeemed - t.undone FROM tail t WHERE t.at >= @today_at) v
     GROUP BY v.voucher_id HAVING sum(v.live) > 0 ORDER BY sum(v.live) DESC, v.voucher_id DESC LIMIT 1
), top_ever AS (
    SELECT v.voucher_id FROM (
           (SELECT f.scope_id AS voucher_id, f.redeemed - f.undone AS live FROM vf.figures f
             WHERE f.project_id = @project_id AND f.grain_s = 0 AND f.kind = 'v' AND f.bucket = '-infinity'
               AND f.redeemed - f.undone > 1
             ORDER BY f.redeemed - f.undone DESC, f.scope_id DESC LIMIT 1)
           UNION ALL
           (SELECT f.scope_id, 1 FROM vf.figures f
             WHERE f.project_id = @project_id AND f.grain_s = 0 AND f.kind = 'v' AND f.redeemed - f.undone = 1 LIMIT 1)
           UNION ALL
           SELECT t.voucher_id, sum(t.redeemed - t.undone) + coalesce((
                  SELECT f.redeemed - f.undone FROM vf.figures f
                   WHERE f.project_id = @project_id AND f.scope_id = t.voucher_id AND f.grain_s = 0), 0)
             FROM tail t GROUP BY t.voucher_id) v
     WHERE v.live > 0 ORDER BY v.live DESC, v.voucher_id DESC LIMIT 1
)
SELECT coalesce((SELECT jsonb_agg(s ORDER BY s.at) FROM sums s), '[]') AS figures,
       (SELECT v.code
          FROM (SELECT coalesce((SELECT o.voucher_id FROM top_today o), (SELECT e.voucher_id FROM top_ever e)) AS id
                OFFSET 0) t
         CROSS JOIN LATERAL (SELECT k.code FROM vf.vouchers k
                              WHERE k.project_id = @project_id AND k.id = t.id OFFSET 0) v) AS top_code;
