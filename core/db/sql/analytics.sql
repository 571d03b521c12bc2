-- Figures: kept by the worker from events, and what it has not come to yet added to them as they are read.

-- name: now :one
-- The live redemptions of the project, those of its day, and the code most redeemed in it, else ever.
WITH day AS (
    SELECT date_trunc('day', now() AT TIME ZONE p.time_zone) AT TIME ZONE p.time_zone AS start
      FROM vf.projects p WHERE p.id = @project_id
), tail AS MATERIALIZED (
    SELECT f.voucher_id, f.at >= d.start AS is_today, f.redeemed - f.undone AS live,
           f.discount_minor - f.undone_discount_minor - f.returned_minor AS discount_minor
      FROM day d, vf.facts(@project_id, coalesce((SELECT m.event_id FROM vf.figures_mark m),
                                                 '00000000-0000-0000-0000-000000000000'),
                           'ffffffff-ffff-ffff-ffff-ffffffffffff', true) f
), today AS (
    SELECT f.redeemed - f.undone AS live, f.discount_minor - f.undone_discount_minor - f.returned_minor AS discount_minor
      FROM day d, vf.figures f
     WHERE f.project_id = @project_id AND f.scope_id = @project_id AND f.grain_s = 900 AND f.bucket >= d.start
    UNION ALL
    SELECT t.live, t.discount_minor FROM tail t WHERE t.is_today
), top_today AS (
    SELECT v.voucher_id FROM (
           SELECT f.scope_id AS voucher_id, f.redeemed - f.undone AS live FROM day d, vf.figures f
            WHERE f.project_id = @project_id AND f.kind = 'v' AND f.grain_s = 900 AND f.bucket >= d.start
           UNION ALL
           SELECT t.voucher_id, t.live FROM tail t WHERE t.is_today) v
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
           SELECT t.voucher_id, sum(t.live) + coalesce((
                  SELECT f.redeemed - f.undone FROM vf.figures f
                   WHERE f.project_id = @project_id AND f.scope_id = t.voucher_id AND f.grain_s = 0), 0)
             FROM tail t GROUP BY t.voucher_id) v
     WHERE v.live > 0 ORDER BY v.live DESC, v.voucher_id DESC LIMIT 1
)
SELECT (SELECT coalesce(sum(t.live), 0)::bigint FROM today t) AS redemptions_today,
       (SELECT coalesce(sum(t.discount_minor), 0)::bigint FROM today t) AS discount_today_minor,
       coalesce((SELECT f.redeemed - f.undone FROM vf.figures f
                  WHERE f.project_id = @project_id AND f.scope_id = @project_id AND f.grain_s = 0), 0)
       + (SELECT coalesce(sum(t.live), 0)::bigint FROM tail t) AS redemptions_total,
       coalesce((SELECT f.discount_minor - f.undone_discount_minor - f.returned_minor FROM vf.figures f
                  WHERE f.project_id = @project_id AND f.scope_id = @project_id AND f.grain_s = 0), 0)
       + (SELECT coalesce(sum(t.discount_minor), 0)::bigint FROM tail t) AS discount_total_minor,
       (SELECT m.event_id IS NOT NULL FROM vf.figures_mark m) AS has_begun,
       (SELECT v.code
          FROM (SELECT coalesce((SELECT o.voucher_id FROM top_today o), (SELECT e.voucher_id FROM top_ever e)) AS id
                OFFSET 0) t
         CROSS JOIN LATERAL (SELECT k.code FROM vf.vouchers k
                              WHERE k.project_id = @project_id AND k.id = t.id OFFSET 0) v) AS top_code;

-- name: points :many
-- What a scope adds up to between two instants, by the second, minute, hour, day, week or month of a time zone. An hour
-- begins where the zone's minutes are 0, so that the hour that comes twice in autumn is two.
WITH rows AS (
    SELECT f.bucket AS at, f.redeemed, f.discount_minor, f.order_value_minor, f.undone, f.undone_discount_minor,
           f.undone_value_minor, f.returned_minor, f.rolled_back
      FROM vf.figures f
     WHERE f.project_id = @project_id AND f.scope_id = @scope_id AND f.grain_s = @grain_s::integer
       AND f.bucket >= @from_at::timestamptz AND f.bucket < @to_at::timestamptz
    UNION ALL
    SELECT date_bin(make_interval(secs => @grain_s::integer), t.at, 'epoch'), t.redeemed, t.discount_minor,
           t.order_value_minor, t.undone, t.undone_discount_minor, t.undone_value_minor, t.returned_minor, t.rolled_back
      FROM vf.facts(@project_id, coalesce((SELECT m.event_id FROM vf.figures_mark m),
                                          '00000000-0000-0000-0000-000000000000'),
                    'ffffffff-ffff-ffff-ffff-ffffffffffff', true) t
     WHERE @scope_id IN (t.project_id, t.campaign_id, t.sale_id) AND t.at >= @from_at AND t.at < @to_at
)
SELECT CASE WHEN @unit::text IN ('second', 'minute') THEN date_trunc(@unit, r.at)
            WHEN @unit = 'hour' THEN date_trunc('minute', r.at)
                 - make_interval(mins => extract(minute FROM r.at AT TIME ZONE @time_zone::text)::integer)
            ELSE date_trunc(@unit, r.at AT TIME ZONE @time_zone) AT TIME ZONE @time_zone END AS at,
       sum(r.redeemed)::bigint AS redeemed, sum(r.discount_minor)::bigint AS discount_minor,
       sum(r.order_value_minor)::bigint AS order_value_minor, sum(r.undone)::bigint AS undone,
       sum(r.undone_discount_minor)::bigint AS undone_discount_minor,
       sum(r.undone_value_minor)::bigint AS undone_value_minor, sum(r.returned_minor)::bigint AS returned_minor,
       sum(r.rolled_back)::bigint AS rolled_back
  FROM rows r GROUP BY 1 ORDER BY 1;

-- name: ever :one
-- What a campaign adds up to in all.
WITH rows AS (
    SELECT f.redeemed, f.discount_minor, f.order_value_minor, f.undone, f.undone_discount_minor, f.undone_value_minor,
           f.returned_minor, f.rolled_back
      FROM vf.figures f WHERE f.project_id = @project_id AND f.scope_id = @scope_id AND f.grain_s = 0
    UNION ALL
    SELECT t.redeemed, t.discount_minor, t.order_value_minor, t.undone, t.undone_discount_minor, t.undone_value_minor,
           t.returned_minor, t.rolled_back
      FROM vf.facts(@project_id, coalesce((SELECT m.event_id FROM vf.figures_mark m),
                                          '00000000-0000-0000-0000-000000000000'),
                    'ffffffff-ffff-ffff-ffff-ffffffffffff', true) t
     WHERE t.campaign_id = @scope_id
)
SELECT now() AS at, coalesce(sum(r.redeemed), 0)::bigint AS redeemed,
       coalesce(sum(r.discount_minor), 0)::bigint AS discount_minor,
       coalesce(sum(r.order_value_minor), 0)::bigint AS order_value_minor, coalesce(sum(r.undone), 0)::bigint AS undone,
       coalesce(sum(r.undone_discount_minor), 0)::bigint AS undone_discount_minor,
       coalesce(sum(r.undone_value_minor), 0)::bigint AS undone_value_minor,
       coalesce(sum(r.returned_minor), 0)::bigint AS returned_minor, coalesce(sum(r.rolled_back), 0)::bigint AS rolled_back
  FROM rows r;

-- name: today :one
-- The day it is in a time zone.
SELECT to_char(now() AT TIME ZONE @time_zone::text, 'YYYY-MM-DD') AS day;

-- name: roll_up :one
-- Operator: adds the next events to the figures.
SELECT vf.roll_up(@rows_max, @events_max) AS row_count;

-- name: begin :one
-- Operator: adds what was redeemed before there were events.
SELECT vf.begin_figures() AS is_done;

-- name: forget :exec
-- Operator: deletes seconds, minutes and vouchers' quarters that nobody can ask for any more, a bounded number at a time.
DELETE FROM vf.figures f
 WHERE f.ctid = ANY (ARRAY(
       SELECT x.ctid FROM vf.figures x
        WHERE (x.grain_s IN (1, 60) OR x.kind = 'v' AND x.grain_s = 900)
          AND x.grain_s IN (1, 60, 900) AND x.bucket < clock_timestamp() - make_interval(days => @keep_days::integer)
        LIMIT 10000));

-- name: top :many
-- What was redeemed most between two instants: codes (kind v), campaigns (c) or flash sales (s).
WITH rows AS (
    SELECT f.scope_id, f.redeemed - f.undone AS live,
           f.discount_minor - f.undone_discount_minor - f.returned_minor AS discount_minor,
           f.order_value_minor - f.undone_value_minor AS order_value_minor
      FROM vf.figures f
     WHERE f.project_id = @project_id AND f.kind = @kind::text AND f.grain_s = 900
       AND f.bucket >= @from_at::timestamptz AND f.bucket < @to_at::timestamptz
    UNION ALL
    SELECT CASE @kind WHEN 'v' THEN t.voucher_id WHEN 'c' THEN t.campaign_id ELSE t.sale_id END, t.redeemed - t.undone,
           t.discount_minor - t.undone_discount_minor - t.returned_minor, t.order_value_minor - t.undone_value_minor
      FROM vf.facts(@project_id, coalesce((SELECT m.event_id FROM vf.figures_mark m),
                                          '00000000-0000-0000-0000-000000000000'),
                    'ffffffff-ffff-ffff-ffff-ffffffffffff', true) t
     WHERE t.at >= @from_at AND t.at < @to_at
), places AS MATERIALIZED (
    SELECT r.scope_id, sum(r.live)::bigint AS live, sum(r.discount_minor)::bigint AS discount_minor,
           sum(r.order_value_minor)::bigint AS order_value_minor
      FROM rows r WHERE r.scope_id IS NOT NULL
     GROUP BY 1 HAVING sum(r.live) > 0 ORDER BY 2 DESC, 1 DESC LIMIT @limit::bigint
)
SELECT p.scope_id, coalesce(v.code, c.name, s.name) AS name, p.live, p.discount_minor, p.order_value_minor
  FROM places p
  LEFT JOIN vf.vouchers v ON v.project_id = @project_id AND v.id = p.scope_id
  LEFT JOIN vf.campaigns c ON c.project_id = @project_id AND c.id = p.scope_id
  LEFT JOIN vf.flash_sales s ON s.project_id = @project_id AND s.id = p.scope_id
 ORDER BY p.live DESC, p.scope_id DESC;
