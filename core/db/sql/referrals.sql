-- Who referred whom, and what both got for it. Whoever changes a referral or its rewards locks its row first.

-- name: lock :one
-- Makes other attributions of the project wait until this transaction ends: a ring has no row of its own to lock.
SELECT pg_advisory_xact_lock(hashtextextended('referrals ' || @project_id::uuid::text, 0)) IS NOT NULL;

-- name: code :one
-- A code that may be used, whoever asks.
SELECT c.id, c.program_id, c.customer_id, c.code, c.conversion_count, c.created_at FROM vf.referral_codes c
 WHERE c.project_id = @project_id AND c.code_norm = @code_norm;

-- name: take :one
-- One referral, locked.
SELECT r.id, r.program_id, r.code_id, c.code, r.referrer_id, r.referee_id, r.status, r.reason, r.because, r.review,
       r.review_until, r.attributed_at, r.expires_at, coalesce(r.expires_at <= clock_timestamp(), false) AS is_over,
       r.converted_at, r.ended_at, r.order_id, r.order_value_minor, r.redemption_id, r.created_at
  FROM vf.referrals r JOIN vf.referral_codes c ON c.project_id = r.project_id AND c.id = r.code_id
 WHERE r.project_id = @project_id AND r.id = @id FOR NO KEY UPDATE OF r;

-- name: by_id :one
-- One referral.
SELECT r.id, r.program_id, r.code_id, c.code, r.referrer_id, r.referee_id, r.status, r.reason, r.because, r.review,
       r.review_until, r.attributed_at, r.expires_at, coalesce(r.expires_at <= clock_timestamp(), false) AS is_over,
       r.converted_at, r.ended_at, r.order_id, r.order_value_minor, r.redemption_id, r.created_at
  FROM vf.referrals r JOIN vf.referral_codes c ON c.project_id = r.project_id AND c.id = r.code_id
 WHERE r.project_id = @project_id AND r.id = @id;

-- name: page :many
-- Referrals of the project, newest first, below a cursor, narrowed by what is given.
SELECT r.id, r.program_id, r.code_id, c.code, r.referrer_id, r.referee_id, r.status, r.reason, r.because, r.review,
       r.review_until, r.attributed_at, r.expires_at, coalesce(r.expires_at <= clock_timestamp(), false) AS is_over,
       r.converted_at, r.ended_at, r.order_id, r.order_value_minor, r.redemption_id, r.created_at
  FROM vf.referrals r JOIN vf.referral_codes c ON c.project_id = r.project_id AND c.id = r.code_id
 WHERE r.project_id = @project_id AND (@after::uuid IS NULL OR r.id < @after)
   AND (@program_id::uuid IS NULL OR r.program_id = @program_id)
   AND (@referrer_id::text IS NULL OR r.referrer_id = @referrer_id)
   AND (@referee_id::text IS NULL OR r.referee_id = @referee_id)
   AND (@status::text IS NULL OR r.status = @status) AND (@review::text IS NULL OR r.review = @review)
 ORDER BY r.id DESC LIMIT @limit::bigint;

-- name: attributions :many
-- The attributions of a referee that count, in one program or all.
SELECT r.id, r.program_id, r.code_id, r.status FROM vf.referrals r
 WHERE r.referee_id = @referee_id AND r.project_id = @project_id
   AND (@program_id::uuid IS NULL OR r.program_id = @program_id)
   AND r.status IN ('attributed', 'converted', 'rewarded', 'reversed') ORDER BY r.id;

-- name: in_review :one
-- The rejected attribution of a referee to a code that somebody has still to look at, if there is one.
SELECT r.id FROM vf.referrals r
 WHERE r.referee_id = @referee_id AND r.project_id = @project_id AND r.code_id = @code_id AND r.review = 'open'
 ORDER BY r.id LIMIT 1;

-- name: know :exec
-- Keeps what is known of a person.
INSERT INTO vf.referral_identifiers (project_id, customer_id, kind, digest)
SELECT @project_id, @customer_id, q.kind, q.digest FROM unnest(@kinds::text[], @digests::bytea[]) AS q (kind, digest)
    ON CONFLICT DO NOTHING;

-- name: emails :many
-- The addresses that customers are registered with.
SELECT c.customer_id, c.email FROM vf.customers c
 WHERE c.project_id = @project_id AND c.customer_id = ANY (@customers::text[]) AND c.email IS NOT NULL;

-- name: shared :many
-- The kinds of identifiers that two customers share.
SELECT DISTINCT i.kind FROM vf.referral_identifiers i
  JOIN vf.referral_identifiers o ON o.digest = i.digest AND o.kind = i.kind AND o.project_id = i.project_id
 WHERE i.project_id = @project_id AND i.customer_id = @one AND o.customer_id = @other ORDER BY 1;

-- name: invited :one
-- An invitation with this code to somebody of whom the same is known as of a customer.
SELECT r.id, r.created_at FROM vf.referrals r
 WHERE r.code_id = @code_id AND r.project_id = @project_id AND r.status = 'invited' AND EXISTS (
       SELECT 1 FROM vf.referral_identifiers i
         JOIN vf.referral_identifiers o ON o.digest = i.digest AND o.kind = i.kind AND o.project_id = i.project_id
        WHERE i.project_id = @project_id AND i.customer_id = r.id::text AND o.customer_id = @referee_id)
 ORDER BY r.id LIMIT 1;

-- name: referrers :many
-- Who referred a customer, who referred them, and so on.
WITH RECURSIVE chain (customer_id, depth) AS (
    SELECT @customer_id::text, 0
    UNION
    SELECT r.referrer_id, c.depth + 1 FROM chain c
      JOIN vf.referrals r ON r.referee_id = c.customer_id AND r.project_id = @project_id
                         AND r.status IN ('attributed', 'converted', 'rewarded')
     WHERE c.depth < @depth_max::bigint
)
SELECT c.customer_id FROM chain c WHERE c.depth > 0 ORDER BY c.depth;

-- name: tree :many
-- Everybody a customer has referred, whom these have, and so on, nearest first.
WITH RECURSIVE tree AS (
    SELECT r.id, r.program_id, r.referrer_id, r.referee_id, r.status, 1 AS depth FROM vf.referrals r
     WHERE r.referrer_id = @customer_id AND r.project_id = @project_id
    UNION ALL
    SELECT r.id, r.program_id, r.referrer_id, r.referee_id, r.status, t.depth + 1 FROM tree t
      JOIN vf.referrals r ON r.referrer_id = t.referee_id AND r.project_id = @project_id
     WHERE t.depth < @depth_max::bigint AND t.status IN ('attributed', 'converted', 'rewarded')
)
SELECT t.id, t.program_id, t.referrer_id, t.referee_id, t.status, t.depth FROM tree t
 ORDER BY t.depth, t.id LIMIT @limit::bigint;

-- name: has_redeemed :one
-- Whether a customer has redeemed anything before.
SELECT EXISTS (SELECT 1 FROM vf.redemptions r WHERE r.customer_id = @customer_id AND r.project_id = @project_id
                  AND r.redeemed_at > '-infinity' AND r.status = 'redeemed');

-- name: create :exec
-- Writes a referral down: invited, attributed, or rejected and to be looked at.
INSERT INTO vf.referrals (project_id, id, program_id, code_id, referrer_id, referee_id, status, reason, because, review,
                          review_until, attributed_at, expires_at)
VALUES (@project_id, @id, @program_id, @code_id, @referrer_id, @referee_id, @status, @reason, @because, @review,
        clock_timestamp() + make_interval(hours => @review_hours::integer),
        CASE WHEN @status = 'attributed' THEN clock_timestamp() END,
        CASE WHEN @status = 'attributed' THEN clock_timestamp() + make_interval(days => @window_days::integer) END);

-- name: attribute :exec
-- Attributes an invitation to who followed it, or a rejected one to whom it was approved for.
UPDATE vf.referrals
   SET status = 'attributed', referee_id = @referee_id, review = @review, attributed_at = clock_timestamp(),
       expires_at = clock_timestamp() + make_interval(days => @window_days::integer)
 WHERE project_id = @project_id AND id = @id AND status IN ('invited', 'rejected');

-- name: reject :exec
-- Ends an attribution that another has replaced, or a review.
UPDATE vf.referrals
   SET status = 'rejected', reason = coalesce(@reason, reason), review = coalesce(@review, review),
       ended_at = clock_timestamp()
 WHERE project_id = @project_id AND id = @id AND status IN ('attributed', 'rejected');

-- name: count_conversion :one
-- Gives a conversion its place among those of its code.
UPDATE vf.referral_codes SET conversion_count = conversion_count + 1
 WHERE project_id = @project_id AND id = @id RETURNING conversion_count;

-- name: convert :exec
-- Converts an attribution, once.
UPDATE vf.referrals
   SET status = 'converted', converted_at = clock_timestamp(), place = @place, order_id = @order_id,
       order_value_minor = @order_value_minor, redemption_id = @redemption_id
 WHERE project_id = @project_id AND id = @id AND status = 'attributed' AND expires_at > clock_timestamp();

-- name: set_status :exec
-- Marks a converted referral rewarded, or reversed.
UPDATE vf.referrals SET status = @status, ended_at = CASE @status WHEN 'reversed' THEN clock_timestamp() END,
       reason = coalesce(@reason, reason)
 WHERE project_id = @project_id AND id = @id AND status IN ('converted', 'rewarded');

-- name: of_redemption :many
-- Referrals that a redemption converted.
SELECT r.id FROM vf.referrals r
 WHERE r.redemption_id = @redemption_id AND r.project_id = @project_id AND r.status IN ('converted', 'rewarded');

-- name: record :exec
-- Writes down what happened, for the history and for whoever is told of events.
WITH kept AS (
    INSERT INTO vf.referral_history (project_id, referral_id, event, detail)
    VALUES (@project_id, @referral_id, @event, @detail)
)
INSERT INTO vf.outbox (project_id, event, subject, data)
VALUES (@project_id, 'referral.' || @event::text, @referral_id, @detail);

-- name: history :many
-- What happened to a referral, in order.
SELECT h.event, h.detail, h.at FROM vf.referral_history h
 WHERE h.referral_id = @referral_id AND h.project_id = @project_id ORDER BY h.at, h.id;

-- name: due_reviews :many
-- Operator: rejected attributions that nobody has looked at in time.
SELECT r.project_id, r.id, p.currency FROM vf.referrals r
  JOIN vf.projects p ON p.id = r.project_id
 WHERE r.review = 'open' AND r.review_until <= clock_timestamp() LIMIT @limit::bigint;

-- name: rename_referrals :exec
-- Puts a pseudonym in place of a customer's name on both sides.
UPDATE vf.referrals
   SET referrer_id = CASE referrer_id WHEN @customer_id THEN @pseudonym ELSE referrer_id END,
       referee_id = CASE referee_id WHEN @customer_id THEN @pseudonym ELSE referee_id END
 WHERE project_id = @project_id AND (referrer_id = @customer_id OR referee_id = @customer_id);

-- name: rename_facts :exec
-- The same of what spoke against an attribution, also one between others.
UPDATE vf.referrals r
   SET because = CASE WHEN r.because ? 'ring' THEN jsonb_set(r.because, '{ring}', (
           SELECT jsonb_agg(CASE p.name WHEN @customer_id THEN @pseudonym ELSE p.name END ORDER BY p.place)
             FROM jsonb_array_elements_text(r.because -> 'ring') WITH ORDINALITY AS p (name, place)))
       ELSE jsonb_set(r.because, '{customer_id}', to_jsonb(@pseudonym::text)) END
 WHERE r.project_id = @project_id
   AND (r.because ->> 'customer_id' = @customer_id OR r.because -> 'ring' ? @customer_id);

-- name: rename_codes :exec
-- The same of codes.
UPDATE vf.referral_codes SET customer_id = @pseudonym WHERE project_id = @project_id AND customer_id = @customer_id;

-- name: forget_identifiers :exec
-- Deletes what is known of a person, also from before they followed an invitation.
DELETE FROM vf.referral_identifiers i
 WHERE i.project_id = @project_id
   AND (i.customer_id = @customer_id OR i.customer_id IN (
        SELECT r.id::text FROM vf.referrals r WHERE r.referee_id = @customer_id AND r.project_id = @project_id));
