-- name: create :exec
-- Stores a new campaign.
INSERT INTO vf.campaigns (
    project_id, id, name, type, discount_type, discount_bp, discount_minor, min_order_minor,
    max_redemptions, per_customer_limit, starts_at, expires_at, metadata, promotion,
    expires_after_days)
VALUES (
    @project_id, @id, @campaign_name, @type, @discount_type, @discount_bp, @discount_minor,
    @min_order_minor, @max_redemptions, @per_customer_limit, @starts_at, @expires_at, @metadata,
    @promotion, @expires_after_days);

-- name: by_id :one
-- One campaign, with the units that are out at fast sales and not sold as far as the ledger knows.
SELECT c.id, c.name, c.type, c.status, c.discount_type, c.discount_bp, c.discount_minor,
       c.min_order_minor, c.max_redemptions, c.per_customer_limit, c.starts_at, c.expires_at,
       c.metadata, c.promotion, c.expires_after_days, c.direct_count, c.held_count, c.leased_count,
       u.unsold_count, c.terms_version,
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
       u.unsold_count, c.terms_version,
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
        OR @status = CASE WHEN c.expires_at <= now() THEN 'ended' ELSE c.status END)
 ORDER BY c.id DESC
 LIMIT @limit::bigint;

-- name: edit :exec
-- Changes name, dates and metadata.
UPDATE vf.campaigns
   SET name = coalesce(@campaign_name::text, name),
       starts_at = CASE WHEN @sets_starts THEN @starts_at::timestamptz ELSE starts_at END,
       expires_at = CASE WHEN @sets_expires THEN @expires_at::timestamptz ELSE expires_at END,
       metadata = coalesce(@metadata::jsonb, metadata),
       terms_version = terms_version + (@sets_starts::boolean OR @sets_expires::boolean)::integer,
       updated_at = clock_timestamp()
 WHERE project_id = @project_id AND id = @id;

-- name: switch :exec
-- Pauses or resumes a campaign that has not ended.
UPDATE vf.campaigns
   SET status = @status, terms_version = terms_version + 1, updated_at = clock_timestamp()
 WHERE project_id = @project_id AND id = @id AND status NOT IN ('ended', @status);

-- name: time_zone :one
-- Whose clock the project's schedules and periods go by where nothing else is said.
SELECT p.time_zone FROM vf.projects p WHERE p.id = @project_id;
