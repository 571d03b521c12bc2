-- The project at a glance, and the counts of vouchers that are kept for it.

-- name: counts :one
-- Campaigns, vouchers and flash sales of the project as they stand now.
SELECT p.time_zone,
       (SELECT count(*) FROM vf.campaigns c
         WHERE c.project_id = p.id AND c.status = 'active'
           AND (c.expires_at IS NULL OR c.expires_at > now())) AS active_campaigns,
       v.active_count AS active_vouchers, v.disabled_count AS disabled_vouchers, v.expired_count AS expired_vouchers,
       s.sales_open, s.sales_scheduled,
       s.taken - l.unsold - s.burned AS sale_wins
  FROM vf.projects p
 CROSS JOIN LATERAL vf.vouchers_of(p.id) v
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

-- name: count_vouchers :one
-- Operator: counts the next changes of vouchers, and those whose time is over since.
SELECT vf.count_vouchers(@rows_max, @pause_s) AS change_count;

-- name: begin :one
-- Operator: counts every voucher there is, once.
SELECT vf.begin_voucher_counts() AS is_done;
