-- What is owed to the holders of gift cards, from the entries of the liability account alone.

-- name: clock :one
-- The project's time zone, and which day it is there.
SELECT p.time_zone, to_char(clock_timestamp() AT TIME ZONE p.time_zone, 'YYYY-MM-DD') AS today
  FROM vf.projects p WHERE p.id = @project_id;

-- name: sums :many
-- What moved the liability on each day, by currency and kind; what was before the first day has none. A transfer
-- between two cards moves nothing.
SELECT t.currency,
       CASE WHEN t.created_at >= @from_day::date::timestamp AT TIME ZONE @time_zone::text
            THEN to_char(t.created_at AT TIME ZONE @time_zone, 'YYYY-MM-DD') END AS day,
       CASE t.kind WHEN 'issue' THEN 'issued' WHEN 'top_up' THEN 'topped_up' WHEN 'spend' THEN 'redeemed'
                   WHEN 'refund' THEN 'refunded' WHEN 'expire' THEN 'expired' ELSE 'adjusted' END AS moved,
       sum(CASE e.side WHEN 'credit' THEN e.amount_minor ELSE -e.amount_minor END)::bigint AS amount_minor
  FROM vf.gift_card_transactions t
  JOIN vf.gift_card_entries e ON e.project_id = t.project_id AND e.transaction_id = t.id AND e.account = 'liability'
 WHERE t.project_id = @project_id AND t.kind <> 'transfer'
   AND t.created_at < (@to_day::date + 1)::timestamp AT TIME ZONE @time_zone
 GROUP BY 1, 2, 3;

-- name: ages :many
-- What was outstanding at the end of a day, by currency and by how long ago the cards were issued.
SELECT c.currency, (SELECT count(*) FROM unnest(@ages::bigint[]) a
                     WHERE (@to_day::date - (c.issued_at AT TIME ZONE @time_zone::text)::date) > a) AS place,
       count(*) AS card_count, sum(c.balance_minor)::bigint AS outstanding_minor
  FROM (SELECT DISTINCT ON (e.card_id) t.currency, e.balance_minor, i.created_at AS issued_at
          FROM vf.gift_card_entries e
          JOIN vf.gift_card_transactions t ON t.project_id = e.project_id AND t.id = e.transaction_id
          JOIN vf.gift_card_transactions i ON i.project_id = e.project_id AND i.card_id = e.card_id AND i.kind = 'issue'
         WHERE e.project_id = @project_id AND e.account = 'liability'
           AND t.created_at < (@to_day::date + 1)::timestamp AT TIME ZONE @time_zone
         ORDER BY e.card_id, e.number DESC) c
 WHERE c.balance_minor > 0
 GROUP BY 1, 2;
