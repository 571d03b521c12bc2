-- Fraud alerts, what was decided about them, and the rules of a project.

-- name: rules :one
-- What a project changed of the rules.
SELECT k.rules, k.version, k.updated_at FROM vf.fraud_rules k WHERE k.project_id = @project_id;

-- name: set_rules :exec
-- Replaces what a project changed of the rules; a version tells the worker.
INSERT INTO vf.fraud_rules AS k (project_id, rules) VALUES (@project_id, @rules)
    ON CONFLICT (project_id) DO UPDATE
       SET rules = excluded.rules, version = k.version + 1, updated_at = clock_timestamp()
     WHERE k.rules <> excluded.rules;

-- name: page :many
-- Alerts, newest first, below a cursor, narrowed by whatever is not null.
SELECT a.id, a.rule, a.subject_kind, a.subject, coalesce(v.code, c.name) AS subject_name, a.window_at, a.at, a.score,
       a.observed, a.expected, a.reasons, a.redemption_ids, a.action, a.status, a.note, a.decided_by, a.decided_at,
       a.created_at, b.is_blocked
  FROM (SELECT k.* FROM vf.fraud_alerts k
         WHERE k.project_id = @project_id AND (@after::uuid IS NULL OR k.id < @after)
           AND (@status::text IS NULL OR k.status = @status) AND (@rule::text IS NULL OR k.rule = @rule)
           AND (@action::text IS NULL OR k.action = @action) AND (@kind::text IS NULL OR k.subject_kind = @kind)
           AND (@subject::text IS NULL OR k.subject = @subject)
         ORDER BY k.id DESC LIMIT @limit::bigint) a
  LEFT JOIN LATERAL (SELECT k.code, k.code_norm FROM vf.vouchers k
                      WHERE k.project_id = a.project_id AND a.subject_kind = 'code'
                        AND k.id = CASE WHEN a.subject_kind = 'code' THEN a.subject::uuid END) v ON true
  LEFT JOIN LATERAL (SELECT k.name FROM vf.campaigns k
                      WHERE k.project_id = a.project_id AND a.subject_kind = 'campaign'
                        AND k.id = CASE WHEN a.subject_kind = 'campaign' THEN a.subject::uuid END) c ON true
 CROSS JOIN LATERAL (SELECT EXISTS (
       SELECT 1 FROM vf.blocks k
        WHERE k.project_id = a.project_id AND k.kind = a.subject_kind AND k.value = coalesce(v.code_norm, a.subject)
          AND (k.expires_at IS NULL OR k.expires_at > now())) AS is_blocked) b
 ORDER BY a.id DESC;

-- name: by_id :one
-- One alert.
SELECT a.id, a.rule, a.subject_kind, a.subject, coalesce(v.code, c.name) AS subject_name, a.window_at, a.at, a.score,
       a.observed, a.expected, a.reasons, a.redemption_ids, a.action, a.status, a.note, a.decided_by, a.decided_at,
       a.created_at, b.is_blocked
  FROM vf.fraud_alerts a
  LEFT JOIN LATERAL (SELECT k.code, k.code_norm FROM vf.vouchers k
                      WHERE k.project_id = a.project_id AND a.subject_kind = 'code'
                        AND k.id = CASE WHEN a.subject_kind = 'code' THEN a.subject::uuid END) v ON true
  LEFT JOIN LATERAL (SELECT k.name FROM vf.campaigns k
                      WHERE k.project_id = a.project_id AND a.subject_kind = 'campaign'
                        AND k.id = CASE WHEN a.subject_kind = 'campaign' THEN a.subject::uuid END) c ON true
 CROSS JOIN LATERAL (SELECT EXISTS (
       SELECT 1 FROM vf.blocks k
        WHERE k.project_id = a.project_id AND k.kind = a.subject_kind AND k.value = coalesce(v.code_norm, a.subject)
          AND (k.expires_at IS NULL OR k.expires_at > now())) AS is_blocked) b
 WHERE a.project_id = @project_id AND a.id = @id;

-- name: by_ids :many
-- Some alerts.
SELECT a.id, a.rule, a.subject_kind, a.subject, coalesce(v.code, c.name) AS subject_name, a.window_at, a.at, a.score,
       a.observed, a.expected, a.reasons, a.redemption_ids, a.action, a.status, a.note, a.decided_by, a.decided_at,
       a.created_at, b.is_blocked
  FROM vf.fraud_alerts a
  LEFT JOIN LATERAL (SELECT k.code, k.code_norm FROM vf.vouchers k
                      WHERE k.project_id = a.project_id AND a.subject_kind = 'code'
                        AND k.id = CASE WHEN a.subject_kind = 'code' THEN a.subject::uuid END) v ON true
  LEFT JOIN LATERAL (SELECT k.name FROM vf.campaigns k
                      WHERE k.project_id = a.project_id AND a.subject_kind = 'campaign'
                        AND k.id = CASE WHEN a.subject_kind = 'campaign' THEN a.subject::uuid END) c ON true
 CROSS JOIN LATERAL (SELECT EXISTS (
       SELECT 1 FROM vf.blocks k
        WHERE k.project_id = a.project_id AND k.kind = a.subject_kind AND k.value = coalesce(v.code_norm, a.subject)
          AND (k.expires_at IS NULL OR k.expires_at > now())) AS is_blocked) b
 WHERE a.project_id = @project_id AND a.id = ANY (@ids::uuid[]);

-- name: decide :exec
-- Moves an alert on, unless it is decided for good.
UPDATE vf.fraud_alerts
   SET status = @status, note = coalesce(@note::text, note), decided_by = @decided_by, decided_at = clock_timestamp()
 WHERE project_id = @project_id AND id = @id
   AND (status = 'open' OR status = 'acknowledged' AND @status IN ('dismissed', 'confirmed'));

-- name: totals :many
-- Alerts of a span of days by status, rule and action.
WITH span AS MATERIALIZED (
    SELECT a.status, a.rule, a.action FROM vf.fraud_alerts a
     WHERE a.project_id = @project_id AND a.at >= (@from_day::date)::timestamp AT TIME ZONE @time_zone::text
       AND a.at < (@to_day::date + 1)::timestamp AT TIME ZONE @time_zone
)
SELECT x.kind, x.name, count(*) AS alerts
  FROM span s CROSS JOIN LATERAL (VALUES ('status', s.status), ('rule', s.rule), ('action', s.action)) AS x (kind, name)
 GROUP BY x.kind, x.name ORDER BY x.kind, x.name;

-- name: days :many
-- Alerts by the day of a time zone; days without any are left out.
SELECT to_char(a.at AT TIME ZONE @time_zone::text, 'YYYY-MM-DD') AS day, count(*) AS alerts,
       count(*) FILTER (WHERE a.status = 'confirmed') AS confirmed
  FROM vf.fraud_alerts a
 WHERE a.project_id = @project_id AND a.at >= (@from_day::date)::timestamp AT TIME ZONE @time_zone
   AND a.at < (@to_day::date + 1)::timestamp AT TIME ZONE @time_zone
 GROUP BY 1 ORDER BY 1;

-- name: top :many
-- Whom most alerts of a span are about that nobody dismissed.
SELECT t.kind, t.subject, coalesce(v.code, c.name) AS subject_name, t.alerts, t.score
  FROM (SELECT a.subject_kind AS kind, a.subject, count(*) AS alerts, max(a.score) AS score
          FROM vf.fraud_alerts a
         WHERE a.project_id = @project_id AND a.status <> 'dismissed'
           AND a.at >= (@from_day::date)::timestamp AT TIME ZONE @time_zone::text
           AND a.at < (@to_day::date + 1)::timestamp AT TIME ZONE @time_zone
         GROUP BY 1, 2 ORDER BY max(a.score) DESC, count(*) DESC, a.subject LIMIT @limit::bigint) t
  LEFT JOIN LATERAL (SELECT k.code FROM vf.vouchers k
                      WHERE k.project_id = @project_id AND t.kind = 'code'
                        AND k.id = CASE WHEN t.kind = 'code' THEN t.subject::uuid END) v ON true
  LEFT JOIN LATERAL (SELECT k.name FROM vf.campaigns k
                      WHERE k.project_id = @project_id AND t.kind = 'campaign'
                        AND k.id = CASE WHEN t.kind = 'campaign' THEN t.subject::uuid END) c ON true
 ORDER BY t.score DESC, t.alerts DESC, t.subject;

-- name: discount_at_risk :one
-- What the redemptions that alerts of a span name, and that stand, took off; those of dismissed alerts are left out.
SELECT coalesce(sum(r.discount_minor - coalesce(r.returned_minor, 0)), 0)::bigint AS minor
  FROM (SELECT DISTINCT unnest(a.redemption_ids) AS id FROM vf.fraud_alerts a
         WHERE a.project_id = @project_id AND a.status <> 'dismissed'
           AND a.at >= (@from_day::date)::timestamp AT TIME ZONE @time_zone::text
           AND a.at < (@to_day::date + 1)::timestamp AT TIME ZONE @time_zone) x
  JOIN vf.redemptions r ON r.project_id = @project_id AND r.id = x.id AND r.redeemed_at > '-infinity'
 WHERE r.status = 'redeemed';

-- name: block_counts :many
-- How many of each kind are blocked now.
SELECT k.kind AS name, count(*) AS alerts FROM vf.blocks k
 WHERE k.project_id = @project_id AND (k.expires_at IS NULL OR k.expires_at > now()) GROUP BY k.kind;

-- name: rename_alerts :exec
-- Puts a pseudonym in place of a customer's name.
UPDATE vf.fraud_alerts SET subject = @pseudonym
 WHERE project_id = @project_id AND subject_kind = 'customer' AND subject = @customer_id;
