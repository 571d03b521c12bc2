-- Who redeems. The books know a customer by the shop's own id, registered or not.

-- name: register :exec
-- Registers a customer, or sets what is given of one who is registered.
INSERT INTO vf.customers AS k (project_id, id, customer_id, name, email, attributes)
VALUES (@project_id, @id, @customer_id, @customer_name, @email, coalesce(@attributes::jsonb, '{}'))
    ON CONFLICT (project_id, customer_id) DO UPDATE
       SET name = coalesce(excluded.name, k.name), email = coalesce(excluded.email, k.email),
           attributes = coalesce(@attributes::jsonb, k.attributes), updated_at = clock_timestamp();

-- name: by_name :one
-- One customer by the shop's id or the registration's, with what the ledger says; also one who never was registered.
SELECT c.id, coalesce(c.customer_id, r.customer_id) AS customer_id, c.name, c.email,
       coalesce(c.attributes, '{}') AS attributes, coalesce(r.redemption_count, 0) AS redemption_count,
       c.created_at, c.updated_at
  FROM (SELECT k.* FROM vf.customers k
         WHERE k.project_id = @project_id AND (k.customer_id = @customer_id OR k.id = @id)
         ORDER BY k.customer_id = @customer_id DESC LIMIT 1) c
  FULL JOIN (SELECT x.customer_id, count(*) FILTER (WHERE x.status = 'redeemed') AS redemption_count
               FROM vf.redemptions x
              WHERE x.customer_id = coalesce((SELECT k.customer_id FROM vf.customers k
                                               WHERE k.project_id = @project_id AND k.id = @id), @customer_id)
                AND x.project_id = @project_id AND x.redeemed_at > '-infinity'
              GROUP BY x.customer_id) r ON r.customer_id = c.customer_id;

-- name: page :many
-- Registered customers of the project, newest first, below a cursor, of one address.
SELECT c.id, c.customer_id, c.name, c.email, c.attributes, r.redemption_count, c.created_at, c.updated_at
  FROM vf.customers c
 CROSS JOIN LATERAL (
       SELECT count(*) FILTER (WHERE x.status = 'redeemed') AS redemption_count FROM vf.redemptions x
        WHERE x.customer_id = c.customer_id AND x.project_id = c.project_id AND x.redeemed_at > '-infinity') r
 WHERE c.project_id = @project_id AND (@after::uuid IS NULL OR c.id < @after)
   AND (@email::text IS NULL OR lower(c.email) = lower(@email))
 ORDER BY c.id DESC LIMIT @limit::bigint;

-- name: edit :exec
-- Changes what is given of a registered customer.
UPDATE vf.customers
   SET name = CASE WHEN @sets_name THEN @customer_name::text ELSE name END,
       email = CASE WHEN @sets_email THEN @email::text ELSE email END,
       attributes = coalesce(@attributes::jsonb, attributes), updated_at = clock_timestamp()
 WHERE project_id = @project_id AND id = @id;

-- name: redemptions :many
-- Everything a customer redeemed, newest first.
SELECT r.id, v.code, r.voucher_id, r.campaign_id, r.sale_id, r.customer_id, r.order_id, r.order_value_minor,
       r.discount_minor, r.remaining, coalesce(r.sale_seq, r.seq) AS seq, r.status, r.redeemed_at, r.rolled_back_at,
       r.rollback_reason, r.returned_minor, r.metadata, r.detail
  FROM vf.redemptions r JOIN vf.vouchers v ON v.project_id = r.project_id AND v.id = r.voucher_id
 WHERE r.customer_id = @customer_id AND r.project_id = @project_id AND r.redeemed_at > '-infinity'
 ORDER BY r.id DESC LIMIT @limit::bigint;

-- name: has_live_lease :one
-- Whether Redis has a copy of customers' names that will still come into the books, or is served for a moment longer.
SELECT EXISTS (SELECT 1 FROM vf.leases l
                WHERE l.project_id = @project_id
                  AND (l.state <> 'settled' OR l.settled_at > clock_timestamp() - interval '6 seconds'));

-- name: raise_crowds :exec
-- Voids what Redis may be told of the sold-out vouchers that a customer redeemed.
UPDATE vf.vouchers k SET crowd_version = k.crowd_version + 1
  FROM (SELECT v.id FROM vf.vouchers v
         WHERE v.project_id = @project_id
           AND (v.flash_sale_id IS NOT NULL OR v.direct_count + v.leased_count >= v.max_redemptions)
           AND v.id IN (SELECT r.voucher_id FROM vf.redemptions r
                         WHERE r.customer_id = @customer_id AND r.project_id = @project_id
                           AND r.redeemed_at > '-infinity')
         ORDER BY v.id FOR NO KEY UPDATE) theirs
 WHERE k.project_id = @project_id AND k.id = theirs.id;

-- name: rename_redemptions :exec
-- Puts a pseudonym into the books in place of a name, and empties what the shop wrote beside it.
UPDATE vf.redemptions SET customer_id = @pseudonym, metadata = NULL, rollback_reason = NULL
 WHERE customer_id = @customer_id AND project_id = @project_id AND redeemed_at > '-infinity';

-- name: rename_counts :exec
-- The same of the counts that limits go by.
UPDATE vf.customer_counts SET customer_id = @pseudonym WHERE customer_id = @customer_id AND project_id = @project_id;

-- name: rename_budgets :exec
-- The same of the budgets of one customer each.
UPDATE vf.budgets SET subject = @pseudonym WHERE subject = @customer_id AND project_id = @project_id;

-- name: rename_takings :exec
-- The same of what redemptions and holds say they took of those budgets.
UPDATE vf.redemptions r
   SET detail = jsonb_set(r.detail, '{takings}', (
           SELECT jsonb_agg(CASE WHEN t ->> 'subject' = @customer_id
                                 THEN jsonb_set(t, '{subject}', to_jsonb(@pseudonym::text)) ELSE t END)
             FROM jsonb_array_elements(r.detail -> 'takings') t))
 WHERE r.customer_id = @pseudonym AND r.project_id = @project_id AND r.redeemed_at > '-infinity'
   AND r.detail ? 'takings';

-- name: release_holds :exec
-- Ends the holds of a customer who is about to be forgotten.
SELECT vf.end_hold(h.project_id, h.id, 'released') FROM vf.holds h
 WHERE h.project_id = @project_id AND h.customer_id = @customer_id AND h.status = 'held';

-- name: rename_holds :exec
-- The same of the holds that were, without what they held.
UPDATE vf.holds SET customer_id = @pseudonym, detail = '{}'
 WHERE customer_id = @customer_id AND project_id = @project_id;

-- name: rename_holder :exec
-- The same of whose vouchers are.
UPDATE vf.vouchers SET holder = @pseudonym WHERE holder = @customer_id AND project_id = @project_id;

-- name: rename_member :exec
-- The same of the campaigns they joined.
UPDATE vf.campaign_members SET customer_id = @pseudonym WHERE customer_id = @customer_id AND project_id = @project_id;

-- name: leave_segments :exec
-- Takes a customer off all lists.
DELETE FROM vf.segment_members WHERE customer_id = @customer_id AND project_id = @project_id;

-- name: cards :many
-- The gift cards that are a customer's, and who they were for.
SELECT c.id, c.recipient FROM vf.gift_cards c WHERE c.customer_id = @customer_id AND c.project_id = @project_id;

-- name: forget_reasons :exec
-- Empties what the shop wrote beside what their cards paid; call it once the cards have the pseudonym.
UPDATE vf.gift_card_transactions t SET reason = NULL
 WHERE t.project_id = @project_id AND t.reason IS NOT NULL
   AND t.card_id IN (SELECT c.id FROM vf.gift_cards c
                      WHERE c.customer_id = @pseudonym AND c.project_id = @project_id);

-- name: rename_events :exec
-- Puts the pseudonym into what happened, without the shop's own words; call it once redemptions and cards have it.
UPDATE vf.events e
   SET data = replace(e.data::text, to_json(@customer_id::text)::text, to_json(@pseudonym::text)::text)::jsonb - 'reason'
 WHERE e.project_id = @project_id
   AND (position(to_json(@customer_id::text)::text IN e.data::text) > 0
        OR e.data ? 'reason' AND e.subject IN (
            SELECT r.id FROM vf.redemptions r
             WHERE r.customer_id = @pseudonym AND r.project_id = @project_id AND r.redeemed_at > '-infinity'
             UNION ALL
            SELECT c.id FROM vf.gift_cards c WHERE c.customer_id = @pseudonym AND c.project_id = @project_id));

-- name: rename_outbox :exec
-- The same of what is on its way there.
UPDATE vf.outbox o
   SET data = replace(o.data::text, to_json(@customer_id::text)::text, to_json(@pseudonym::text)::text)::jsonb - 'reason'
 WHERE o.project_id = @project_id
   AND (position(to_json(@customer_id::text)::text IN o.data::text) > 0
        OR o.data ? 'reason' AND o.subject IN (
            SELECT r.id FROM vf.redemptions r
             WHERE r.customer_id = @pseudonym AND r.project_id = @project_id AND r.redeemed_at > '-infinity'
             UNION ALL
            SELECT c.id FROM vf.gift_cards c WHERE c.customer_id = @pseudonym AND c.project_id = @project_id));

-- name: forget_answers :exec
-- Empties answers that are kept for a retry and tell of a customer; `told`: as JSON has it.
UPDATE vf.idempotency_keys k SET body = '{"erased":true}'
 WHERE k.project_id = @project_id
   AND EXISTS (SELECT 1 FROM unnest(@told::text[]) AS t (told) WHERE position(convert_to(t.told, 'UTF8') IN k.body) > 0);

-- name: forget_echoes :exec
-- Empties what receivers of webhooks answered, where a customer is in it.
UPDATE vf.delivery_attempts a SET body = NULL
 WHERE a.project_id = @project_id
   AND EXISTS (SELECT 1 FROM unnest(@texts::text[]) AS t (text) WHERE position(t.text IN a.body) > 0);

-- name: forget_quarantine :exec
-- Empties entries of streams that could not be read, or not be written, where a customer is in them.
UPDATE vf.quarantine q SET entry = '{}'
 WHERE q.project_id = @project_id AND position(@customer_id::text IN q.entry::text) > 0;

-- name: forget :exec
-- Deletes a registration.
DELETE FROM vf.customers WHERE project_id = @project_id AND customer_id = @customer_id;
