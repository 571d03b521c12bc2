-- name: counts :one
-- Campaigns, vouchers and flash sales of the project as they stand now.
SELECT p.time_zone,
       (SELECT count(*) FROM vf.campaigns c
         WHERE c.project_id = p.id AND c.status = 'active'
           AND (c.expires_at IS NULL OR c.expires_at > now())) AS active_campaigns,
       (SELECT count(*) FROM vf.vouchers v
         WHERE v.project_id = p.id AND v.status = 'active'
           AND (v.expires_at IS NULL OR v.expires_at > now())) AS active_vouchers,
       r.redemptions_total, r.sale_wins, s.sales_open, s.sales_scheduled
  FROM vf.projects p
 CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE f.status = 'open' AND (f.ends_at IS NULL OR f.ends_at > now()))
                  AS sales_open,
              count(*) FILTER (WHERE f.status = 'scheduled') AS sales_scheduled
         FROM vf.flash_sales f WHERE f.project_id = p.id) s
 CROSS JOIN LATERAL (
       SELECT count(*) AS redemptions_total, count(k.sale_id) AS sale_wins
         FROM vf.redemptions k WHERE k.project_id = p.id AND k.status = 'redeemed') r
 WHERE p.id = @project_id;

-- name: today :one
-- The live redemptions of the project's day and the voucher most redeemed in it.
WITH day AS (
    SELECT r.voucher_id, count(*) AS redemptions, sum(r.discount_minor) AS discount_minor
      FROM vf.redemptions r
     WHERE r.project_id = @project_id AND r.status = 'redeemed'
       AND r.redeemed_at >= (
           SELECT date_trunc('day', now() AT TIME ZONE p.time_zone) AT TIME ZONE p.time_zone
             FROM vf.projects p WHERE p.id = @project_id)
     GROUP BY r.voucher_id)
SELECT coalesce(sum(d.redemptions), 0)::bigint AS redemptions,
       coalesce(sum(d.discount_minor), 0)::bigint AS discount_minor,
       (SELECT e.voucher_id FROM day e ORDER BY e.redemptions DESC, e.voucher_id DESC LIMIT 1)
           AS top_voucher_id
  FROM day d;

-- name: top_code :one
-- The code of a voucher, or with null of the one most redeemed ever; nothing before the first redemption.
SELECT v.code
  FROM vf.vouchers v
 WHERE v.project_id = @project_id
   AND (v.id = @voucher_id
        OR @voucher_id::uuid IS NULL AND v.direct_count + v.leased_count > 0)
 ORDER BY v.direct_count + v.leased_count DESC, v.id DESC
 LIMIT 1;
