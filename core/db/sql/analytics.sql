-- name: counts :one
-- Campaigns, vouchers and flash sales of the project as they stand now. Totals come from the counts that every
-- redemption changes in its own transaction, less the units that are out at Redis unsold or were burned there.
SELECT p.time_zone,
       (SELECT count(*) FROM vf.campaigns c
         WHERE c.project_id = p.id AND c.status = 'active'
           AND (c.expires_at IS NULL OR c.expires_at > now())) AS active_campaigns,
       v.active_vouchers,
       v.taken - l.unsold - s.burned AS redemptions_total,
       s.sales_open, s.sales_scheduled,
       s.taken - l.unsold - s.burned AS sale_wins
  FROM vf.projects p
 CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE k.status = 'active'
                                 AND (k.expires_at IS NULL OR k.expires_at > now()))
                  AS active_vouchers,
              coalesce(sum(k.direct_count + k.leased_count), 0)::bigint AS taken
         FROM vf.vouchers k WHERE k.project_id = p.id) v
 CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE f.status = 'open' AND (f.ends_at IS NULL OR f.ends_at > now()))
                  AS sales_open,
              count(*) FILTER (WHERE f.status = 'scheduled') AS sales_scheduled,
              coalesce(sum(f.sold_count + f.leased_count), 0)::bigint AS taken,
              coalesce(sum(f.burned_count), 0)::bigint AS burned
         FROM vf.flash_sales f WHERE f.project_id = p.id) s
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(k.size - g.inserted_count), 0)::bigint AS unsold
         FROM vf.leases k
         JOIN vf.lease_progress g ON g.lease_id = k.id AND g.project_id = k.project_id
        WHERE k.project_id = p.id AND k.state <> 'settled') l
 WHERE p.id = @project_id;

-- name: today :one
-- The live redemptions of the project's day and the voucher most redeemed in it, from the ledger.
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
  LEFT JOIN vf.leases l ON l.project_id = v.project_id AND l.voucher_id = v.id
        AND l.state <> 'settled'
  LEFT JOIN vf.lease_progress p ON p.lease_id = l.id AND p.project_id = l.project_id
 CROSS JOIN LATERAL (
       SELECT v.direct_count + v.leased_count - coalesce(l.size - p.inserted_count, 0) AS redeemed) r
 WHERE v.project_id = @project_id
   AND (v.id = @voucher_id OR @voucher_id::uuid IS NULL AND r.redeemed > 0)
 ORDER BY r.redeemed DESC, v.id DESC
 LIMIT 1;
