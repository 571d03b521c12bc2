-- Gift cards and their ledger. What moves money is vf.move_gift_card's; a new card's first entry is written with it.

-- name: issue :one
-- Makes cards with what they are worth, and returns how many: fewer where a code is taken.
WITH asked AS (
    SELECT q.* FROM unnest(@ids::uuid[], @transactions::uuid[], @references::text[], @digests::bytea[],
                           @last_fours::text[], @pins::bytea[])
        AS q (id, transaction_id, reference, digest, last_four, pin)
), made AS (
    INSERT INTO vf.gift_cards (project_id, id, code_digest, last_four, pin_digest, currency, balance_minor, expires_at,
                               customer_id, recipient, metadata, batch_id)
    SELECT @project_id, a.id, a.digest, a.last_four, a.pin, @currency, @amount_minor::bigint, @expires_at, @customer_id,
           @recipient, @metadata, @batch_id
      FROM asked a
        ON CONFLICT (project_id, code_digest) DO NOTHING
    RETURNING id
), done AS (
    INSERT INTO vf.gift_card_transactions (project_id, id, card_id, kind, amount_minor, asked_minor, currency, reference,
                                           fingerprint, order_id, reason)
    SELECT @project_id, a.transaction_id, a.id, 'issue', @amount_minor, @amount_minor, @currency, a.reference,
           @fingerprint, @order_id, @reason
      FROM asked a JOIN made m ON m.id = a.id
    RETURNING id, card_id
), entries AS (
    INSERT INTO vf.gift_card_entries (project_id, transaction_id, side, account, amount_minor, card_id, number,
                                      balance_minor)
    SELECT @project_id, d.id, 'credit', 'liability', @amount_minor, d.card_id, 1, @amount_minor FROM done d
    UNION ALL
    SELECT @project_id, d.id, 'debit', @account, @amount_minor, NULL, NULL, NULL FROM done d
), told AS (
    INSERT INTO vf.outbox (project_id, event, subject, data)
    SELECT @project_id, 'gift_card.issued', coalesce(@batch_id::uuid, (SELECT m.id FROM made m LIMIT 1)),
           jsonb_build_object('count', (SELECT count(*) FROM made), 'amount_minor', @amount_minor::bigint,
                              'currency', @currency::text)
     WHERE EXISTS (SELECT 1 FROM made)
)
SELECT count(*) AS made_count FROM made;

-- name: lock_reference :one
-- Makes others with the same reference of a new card wait until this transaction ends.
SELECT pg_advisory_xact_lock(hashtextextended('gift card ' || @project_id::uuid::text || ' ' || @reference::text, 0))
       IS NOT NULL;

-- name: by_reference :one
-- The transaction that took a reference.
SELECT t.id, t.card_id, t.kind, t.fingerprint FROM vf.gift_card_transactions t
 WHERE t.project_id = @project_id AND t.reference = @reference;

-- name: by_id :one
-- One card.
SELECT c.id, c.last_four, c.pin_digest, c.currency, c.status, c.balance_minor, c.spent_minor, c.expires_at,
       coalesce(c.expires_at <= clock_timestamp(), false) AS is_expired, c.customer_id, c.recipient, c.metadata, c.batch_id,
       c.created_at, c.updated_at
  FROM vf.gift_cards c WHERE c.project_id = @project_id AND c.id = @id;

-- name: by_digest :one
-- One card by its code.
SELECT c.id, c.last_four, c.pin_digest, c.currency, c.status, c.balance_minor, c.spent_minor, c.expires_at,
       coalesce(c.expires_at <= clock_timestamp(), false) AS is_expired, c.customer_id, c.recipient, c.metadata, c.batch_id,
       c.created_at, c.updated_at
  FROM vf.gift_cards c WHERE c.project_id = @project_id AND c.code_digest = @digest;

-- name: page :many
-- Cards of the project, newest first, below a cursor, narrowed by what is given.
SELECT c.id, c.last_four, c.pin_digest, c.currency, c.status, c.balance_minor, c.spent_minor, c.expires_at,
       coalesce(c.expires_at <= clock_timestamp(), false) AS is_expired, c.customer_id, c.recipient, c.metadata, c.batch_id,
       c.created_at, c.updated_at
  FROM vf.gift_cards c
 WHERE c.project_id = @project_id AND (@after::uuid IS NULL OR c.id < @after)
   AND (@customer_id::text IS NULL OR c.customer_id = @customer_id)
   AND (@last_four::text IS NULL OR c.last_four = @last_four)
   AND (@batch_id::uuid IS NULL OR c.batch_id = @batch_id)
   AND (@status::text IS NULL OR @status = CASE WHEN c.status = 'disabled' THEN 'disabled'
                                                WHEN c.expires_at <= clock_timestamp() THEN 'expired'
                                                ELSE 'active' END)
 ORDER BY c.id DESC LIMIT @limit::bigint;

-- name: edit :exec
-- Changes what is given of a card; never its money.
UPDATE vf.gift_cards
   SET expires_at = CASE WHEN @sets_expires_at THEN @expires_at::timestamptz ELSE expires_at END,
       customer_id = CASE WHEN @sets_customer_id THEN @customer_id::text ELSE customer_id END,
       recipient = CASE WHEN @sets_recipient THEN @recipient::jsonb ELSE recipient END,
       metadata = coalesce(@metadata::jsonb, metadata), updated_at = clock_timestamp()
 WHERE project_id = @project_id AND id = @id;

-- name: switch :exec
-- Disables or enables a card.
UPDATE vf.gift_cards SET status = @status, updated_at = clock_timestamp()
 WHERE project_id = @project_id AND id = @id AND status <> @status;

-- name: recode :exec
-- Gives cards new codes; the old ones are nobody's from now on.
UPDATE vf.gift_cards c
   SET code_digest = q.digest, last_four = q.last_four, pin_digest = q.pin, updated_at = clock_timestamp()
  FROM unnest(@ids::uuid[], @digests::bytea[], @last_fours::text[], @pins::bytea[]) AS q (id, digest, last_four, pin)
 WHERE c.project_id = @project_id AND c.id = q.id;

-- name: of_batch :many
-- The cards of a batch that nobody has used yet, in the order they were made; locked.
SELECT c.id, c.pin_digest IS NOT NULL AS has_pin FROM vf.gift_cards c
 WHERE c.batch_id = @batch_id AND c.project_id = @project_id AND c.entry_count = 1 ORDER BY c.id
   FOR NO KEY UPDATE;

-- name: lock :exec
-- Locks cards in the one order that everybody locks them in.
SELECT 1 FROM vf.gift_cards c WHERE c.project_id = @project_id AND c.id = ANY (@ids::uuid[])
 ORDER BY c.id FOR NO KEY UPDATE;

-- name: move :one
-- Moves money, once for each reference.
SELECT m.outcome, m.transaction_id
  FROM vf.move_gift_card(@project_id, @card_id, @kind, @amount_minor, @is_partial, @account, @id, @reference,
                         @fingerprint, @to_card_id, @refund_of, @order_id, @reason) m;

-- name: transaction :one
-- One transaction as its card sees it.
SELECT t.id, t.card_id, t.kind, t.amount_minor, t.asked_minor, e.side, e.balance_minor, t.currency, t.reference,
       t.to_card_id, t.refund_of, t.order_id, t.reason, t.created_at
  FROM vf.gift_card_transactions t
  JOIN vf.gift_card_entries e ON e.project_id = t.project_id AND e.transaction_id = t.id AND e.card_id = t.card_id
 WHERE t.project_id = @project_id AND t.id = @id;

-- name: transactions :many
-- What happened to a card, the last first, below a cursor; a transfer is seen from this card.
SELECT t.id, t.card_id, t.kind, t.amount_minor, t.asked_minor, e.side, e.balance_minor, t.currency, t.reference,
       t.to_card_id, t.refund_of, t.order_id, t.reason, t.created_at
  FROM vf.gift_card_entries e
  JOIN vf.gift_card_transactions t ON t.project_id = e.project_id AND t.id = e.transaction_id
 WHERE e.card_id = @card_id AND e.project_id = @project_id
   AND (@after::uuid IS NULL OR e.number < (SELECT k.number FROM vf.gift_card_entries k
                                             WHERE k.project_id = @project_id AND k.transaction_id = @after
                                               AND k.card_id = @card_id))
 ORDER BY e.number DESC LIMIT @limit::bigint;

-- name: entries :many
-- What transactions of the project did to cards, the last first, below a cursor and within a time.
WITH page AS MATERIALIZED (
    SELECT t.id, t.card_id, t.kind, t.amount_minor, t.asked_minor, t.currency, t.reference, t.to_card_id, t.refund_of,
           t.order_id, t.reason, t.created_at
      FROM vf.gift_card_transactions t
     WHERE t.project_id = @project_id
       AND (@after_at::timestamptz IS NULL OR t.created_at <= @after_at
            AND (t.created_at, t.id) < (@after_at, @after_id::uuid))
       AND (@from_at::timestamptz IS NULL OR t.created_at >= @from_at)
       AND (@to_at::timestamptz IS NULL OR t.created_at < @to_at)
     ORDER BY t.created_at DESC, t.id DESC LIMIT @limit::bigint)
SELECT t.id, t.card_id, t.kind, t.amount_minor, t.asked_minor, e.side, e.balance_minor, t.currency, t.reference,
       t.to_card_id, t.refund_of, t.order_id, t.reason, t.created_at, e.card_id AS seen_from
  FROM page t
 CROSS JOIN LATERAL (SELECT x.side, x.balance_minor, x.card_id FROM vf.gift_card_entries x
                      WHERE x.project_id = @project_id AND x.transaction_id = t.id AND x.card_id IS NOT NULL
                     OFFSET 0) e
 ORDER BY t.created_at DESC, t.id DESC, e.side;

-- name: pay_with :exec
-- Says which redemptions a spend paid together with.
INSERT INTO vf.gift_card_payments (project_id, redemption_id, transaction_id)
SELECT @project_id, r, @transaction_id FROM unnest(@redemptions::uuid[]) r;

-- name: refund_redemption :many
-- Refunds what cards paid beside a redemption that was rolled back, if none of its others is left.
SELECT r AS transaction_id FROM vf.refund_gift_cards(@project_id, @redemption_id, @reason) r;

-- name: forget_recipient :exec
-- Puts a pseudonym in place of a customer's name, and forgets who got the card.
UPDATE vf.gift_cards SET customer_id = @pseudonym, recipient = NULL, metadata = '{}'
 WHERE customer_id = @customer_id AND project_id = @project_id;

-- name: due :many
-- Operator: cards whose time is over and that still hold money.
SELECT c.project_id, c.id, c.entry_count FROM vf.gift_cards c
 WHERE c.balance_minor > 0 AND c.expires_at <= clock_timestamp() ORDER BY c.expires_at LIMIT @limit::bigint;
