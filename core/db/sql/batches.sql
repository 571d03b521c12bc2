-- Many vouchers of one kind. What they have in common is kept with the batch, as columns of vf.vouchers.

-- name: create :exec
-- Stores a new batch, of which nothing is made yet.
INSERT INTO vf.batches (project_id, id, campaign_id, count_wanted, pattern, terms)
VALUES (@project_id, @id, @campaign_id, @count_wanted, @pattern, @terms);

-- name: fill :exec
-- Adds vouchers to a batch; a code that is taken is left out, and the caller draws another.
INSERT INTO vf.vouchers (
    project_id, id, code, code_norm, batch_id, campaign_id, discount_type, discount_bp, discount_minor,
    min_order_minor, max_redemptions, per_customer_limit, starts_at, expires_at, metadata, promotion,
    holder)
SELECT b.project_id, q.id, q.code, q.norm, b.id, t.campaign_id, t.discount_type, t.discount_bp, t.discount_minor,
       t.min_order_minor, t.max_redemptions, t.per_customer_limit, t.starts_at, t.expires_at, t.metadata, t.promotion,
       t.holder
  FROM vf.batches b
 CROSS JOIN LATERAL jsonb_populate_record(NULL::vf.vouchers, b.terms) t
 CROSS JOIN unnest(@ids::uuid[], @codes::text[], @norms::text[]) AS q (id, code, norm)
 WHERE b.project_id = @project_id AND b.id = @batch_id
    ON CONFLICT (project_id, code_norm) DO NOTHING;

-- name: count :exec
-- Counts what was added; the last of them finishes the batch.
WITH counted AS (
    UPDATE vf.batches
       SET made_count = made_count + @more::bigint,
           status = CASE WHEN made_count + @more = count_wanted THEN 'done' ELSE status END,
           finished_at = CASE WHEN made_count + @more = count_wanted THEN clock_timestamp() END
     WHERE project_id = @project_id AND id = @id
    RETURNING project_id, id, status, made_count, campaign_id
)
INSERT INTO vf.outbox (project_id, event, subject, data)
SELECT b.project_id, 'batch.completed', b.id, jsonb_build_object('made', b.made_count, 'campaign_id', b.campaign_id)
  FROM counted b WHERE b.status = 'done';

-- name: by_id :one
-- One batch.
SELECT b.project_id, b.id, b.campaign_id, b.status, b.count_wanted, b.made_count, b.pattern, b.created_at, b.finished_at
  FROM vf.batches b WHERE b.project_id = @project_id AND b.id = @id;

-- name: page :many
-- Batches of the project, newest first, below a cursor.
SELECT b.project_id, b.id, b.campaign_id, b.status, b.count_wanted, b.made_count, b.pattern, b.created_at, b.finished_at
  FROM vf.batches b
 WHERE b.project_id = @project_id AND (@after::uuid IS NULL OR b.id < @after)
 ORDER BY b.id DESC LIMIT @limit::bigint;

-- name: switch :exec
-- Cancels a running batch or lets a cancelled one go on.
UPDATE vf.batches SET status = @status
 WHERE project_id = @project_id AND id = @id AND status <> 'done';

-- name: codes :many
-- Codes of a batch in the order they were made, after a code of it.
SELECT v.code FROM vf.vouchers v
 WHERE v.batch_id = @batch_id AND v.project_id = @project_id
   AND (@after::text IS NULL OR v.id > (SELECT k.id FROM vf.vouchers k
                                         WHERE k.project_id = @project_id AND k.code_norm = @after))
 ORDER BY v.id LIMIT @limit::bigint;

-- name: due :many
-- Operator: batches that still lack vouchers, the oldest first.
SELECT b.project_id, b.id, b.campaign_id, b.status, b.count_wanted, b.made_count, b.pattern, b.created_at, b.finished_at
  FROM vf.batches b WHERE b.status = 'running' ORDER BY b.id LIMIT 20;

-- name: take :one
-- How many vouchers a running batch lacks, with its row locked; no row where somebody else is at it.
SELECT b.count_wanted - b.made_count AS missing FROM vf.batches b
 WHERE b.project_id = @project_id AND b.id = @id AND b.status = 'running'
   FOR NO KEY UPDATE SKIP LOCKED;
