-- name: create :exec
-- Stores a new campaign.
INSERT INTO vf.campaigns (
    project_id, id, name, type, discount_type, discount_bp, discount_minor, min_order_minor,
    max_redemptions, per_customer_limit, starts_at, expires_at, metadata, promotion,
    expires_after_days, kind, code, issuing, status, started_at)
VALUES (
    @project_id, @id, @campaign_name, @type, @discount_type, @discount_bp, @discount_minor,
    @min_order_minor, @max_redemptions, @per_customer_limit, @starts_at, @expires_at, @metadata,
    @promotion, @expires_after_days, @kind, @code, @issuing, @status,
    CASE WHEN @status = 'active' AND coalesce(@starts_at <= now(), true) THEN now() END);

-- name: by_id :one
-- One campaign, with the units that are out at fast sales and not sold as far as the ledger knows.
SELECT c.id, c.name, c.type, c.status, c.discount_type, c.discount_bp, c.discount_minor,
       c.min_order_minor, c.max_redemptions, c.per_customer_limit, c.starts_at, c.expires_at,
       c.metadata, c.promotion, c.expires_after_days, c.direct_count, c.held_count, c.leased_count,
       u.unsold_count, c.terms_version, c.kind, c.code, c.issuing, c.started_at, c.ended_at,
       c.created_at, c.updated_at
  FROM vf.campaigns c
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(l.size - p.accounted), 0)::bigint AS unsold_count
         FROM vf.leases l
         JOIN vf.lease_progress p ON p.lease_id = l.id AND p.project_id = l.project_id
        WHERE l.project_id = c.project_id AND l.campaign_id = c.id AND l.state <> 'settled') u
 WHERE c.project_id = @project_id AND c.id = @id;

-- name: page :many
-- Campaigns of the project, newest first, below a cursor, of one shown status.
SELECT c.id, c.name, c.type, c.status, c.discount_type, c.discount_bp, c.discount_minor,
       c.min_order_minor, c.max_redemptions, c.per_customer_limit, c.starts_at, c.expires_at,
       c.metadata, c.promotion, c.expires_after_days, c.direct_count, c.held_count, c.leased_count,
       u.unsold_count, c.terms_version, c.kind, c.code, c.issuing, c.started_at, c.ended_at,
       c.created_at, c.updated_at
  FROM vf.campaigns c
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(l.size - p.accounted), 0)::bigint AS unsold_count
         FROM vf.leases l
         JOIN vf.lease_progress p ON p.lease_id = l.id AND p.project_id = l.project_id
        WHERE l.project_id = c.project_id AND l.campaign_id = c.id AND l.state <> 'settled') u
 WHERE c.project_id = @project_id
   AND (@after::uuid IS NULL OR c.id < @after)
   AND (@status::text IS NULL
        OR @status = CASE WHEN c.expires_at <= now() THEN 'ended'
                          WHEN c.status = 'active' AND c.starts_at > now() THEN 'scheduled' ELSE c.status END)
 ORDER BY c.id DESC
 LIMIT @limit::bigint;

-- name: lock :exec
-- Has others that would change a campaign wait: edits, the clock, a fast sale that is armed, redeems.
SELECT 1 FROM vf.campaigns c WHERE c.project_id = @project_id AND c.id = @id FOR NO KEY UPDATE;

-- name: edit :exec
-- Writes what may change of a campaign. A start that moves into the future is told of again, and so is an end.
UPDATE vf.campaigns
   SET name = @campaign_name, metadata = @metadata, starts_at = @starts_at, expires_at = @expires_at,
       max_redemptions = @max_redemptions, min_order_minor = @min_order_minor, discount_bp = @discount_bp,
       discount_minor = @discount_minor, promotion = @promotion, expires_after_days = @expires_after_days,
       started_at = CASE WHEN @starts_at::timestamptz > now() THEN NULL ELSE started_at END,
       ended_at = CASE WHEN status <> 'ended' AND coalesce(@expires_at::timestamptz > now(), true) THEN NULL
                       ELSE ended_at END,
       terms_version = terms_version + @is_new_version::boolean::integer, updated_at = clock_timestamp()
 WHERE project_id = @project_id AND id = @id;

-- name: issued :one
-- How many codes a campaign has, and how many of them have a discount of their own.
SELECT count(*) AS codes, count(v.discount_type) AS with_own_discount
  FROM vf.vouchers v WHERE v.project_id = @project_id AND v.campaign_id = @id;

-- name: has_live_lease :one
-- Whether a fast sale sells units of a campaign without asking here.
SELECT EXISTS (SELECT 1 FROM vf.leases l
                WHERE l.project_id = @project_id AND l.campaign_id = @id AND l.state <> 'settled');

-- name: switch :exec
-- Moves a campaign from one of some states to another.
UPDATE vf.campaigns
   SET status = @status, terms_version = terms_version + 1, updated_at = clock_timestamp(),
       started_at = CASE WHEN @status = 'active' AND coalesce(starts_at <= now(), true)
                         THEN coalesce(started_at, now()) ELSE started_at END,
       ended_at = CASE WHEN @status = 'ended' THEN coalesce(ended_at, now()) ELSE ended_at END
 WHERE project_id = @project_id AND id = @id AND status = ANY (@from_statuses::text[]);

-- name: record :exec
-- Writes what became of a campaign, in the transaction in which it did.
INSERT INTO vf.outbox (project_id, event, subject, data) VALUES (@project_id, @event, @id, @data);

-- name: tell_started :exec
-- Operator: tells of campaigns whose start has come.
WITH due AS (
    SELECT c.project_id, c.id FROM vf.campaigns c
     WHERE c.started_at IS NULL AND c.status = 'active' AND coalesce(c.starts_at <= now(), true)
     ORDER BY c.id LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED
), told AS (
    UPDATE vf.campaigns c SET started_at = now() FROM due d
     WHERE c.project_id = d.project_id AND c.id = d.id RETURNING c.project_id, c.id
)
INSERT INTO vf.outbox (project_id, event, subject) SELECT t.project_id, 'campaign.started', t.id FROM told t;

-- name: tell_ended :exec
-- Operator: tells of campaigns whose end has come.
WITH due AS (
    SELECT c.project_id, c.id FROM vf.campaigns c
     WHERE c.ended_at IS NULL AND c.started_at IS NOT NULL AND c.expires_at <= now() AND c.expires_at >= c.started_at
     ORDER BY c.id LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED
), told AS (
    UPDATE vf.campaigns c SET ended_at = now() FROM due d
     WHERE c.project_id = d.project_id AND c.id = d.id RETURNING c.project_id, c.id
)
INSERT INTO vf.outbox (project_id, event, subject) SELECT t.project_id, 'campaign.ended', t.id FROM told t;

-- name: time_zone :one
-- Whose clock the project's schedules and periods go by where nothing else is said.
SELECT p.time_zone FROM vf.projects p WHERE p.id = @project_id;
