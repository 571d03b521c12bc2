-- What owners were told of: parts of quotas and budgets that are used.

-- name: tell_quotas :many
-- Operator: writes down which parts of its quotas an account has used in a month, each once, and returns what is new.
WITH used AS MATERIALIZED (
    SELECT a.id, a.plan, q.calls_max, q.redemptions_max, sum(h.call_count) AS calls, sum(h.redemption_count) AS redemptions
      FROM vf.accounts a
      JOIN unnest(@plans::text[], @calls::bigint[], @redemptions::bigint[]) AS q (plan, calls_max, redemptions_max)
        ON q.plan = a.plan
     CROSS JOIN LATERAL vf.usage_by_hour(a.id, NULL, @from_at::timestamptz, @to_at::timestamptz) h
     GROUP BY a.id, a.plan, q.calls_max, q.redemptions_max
)
INSERT INTO vf.notices AS n (project_id, subject, period, percent)
SELECT p.id, s.subject, @month::text || ' ' || u.plan, x.percent
  FROM used u
  JOIN vf.projects p ON p.account_id = u.id AND p.status = 'active'
 CROSS JOIN LATERAL (VALUES ('api_calls', u.calls, u.calls_max), ('redemptions', u.redemptions, u.redemptions_max))
       AS s (subject, used, used_max)
 CROSS JOIN LATERAL unnest(p.mail_at_percent) AS x (percent)
 WHERE s.used * 100 >= x.percent * s.used_max
 ORDER BY 1, 2, 3, 4
    ON CONFLICT (project_id, subject, period, percent) DO NOTHING
RETURNING n.project_id, n.subject, n.period, n.percent, '' AS name;

-- name: tell_budgets :many
-- Operator: writes down which parts of budgets for all customers are used in these periods, each once, and returns what is
-- new.
WITH told AS (
    INSERT INTO vf.notices AS n (project_id, subject, period, percent)
    SELECT b.project_id, b.scope_id::text || '/' || b.label, b.period, x.percent
      FROM vf.budgets b
      JOIN vf.projects p ON p.id = b.project_id AND p.status = 'active'
     CROSS JOIN LATERAL unnest(p.mail_at_percent) AS x (percent)
     WHERE b.subject = '' AND b.period = ANY (@periods::text[]) AND b.used_max > 0 AND b.used::numeric * 100 >= x.percent::numeric * b.used_max
     ORDER BY 1, 2, 3, 4
        ON CONFLICT (project_id, subject, period, percent) DO NOTHING
    RETURNING n.project_id, n.subject, n.period, n.percent
)
SELECT t.project_id, t.subject, t.period, t.percent,
       coalesce((SELECT 'campaign ' || c.name FROM vf.campaigns c
                  WHERE c.project_id = t.project_id AND c.id = split_part(t.subject, '/', 1)::uuid),
                (SELECT 'voucher ' || v.code FROM vf.vouchers v
                  WHERE v.project_id = t.project_id AND v.id = split_part(t.subject, '/', 1)::uuid), '') AS name
  FROM told t;

-- name: owners :many
-- Operator: who owns projects, with their e-mails.
SELECT m.project_id, u.email, p.name AS project_name
  FROM vf.memberships m
  JOIN vf.users u ON u.id = m.user_id
  JOIN vf.projects p ON p.id = m.project_id
 WHERE m.role = 'owner' AND m.project_id = ANY (@projects::uuid[])
 ORDER BY m.project_id, u.email;
