-- Gift cards: a ledger of its own. Nothing of the redeem path reads or locks these.

-- Of a code only an HMAC and the last four are kept. spent_minor: what was spent and not refunded. entry_count: how
-- many entries of the ledger it has, which number its next.
CREATE TABLE vf.gift_cards (
    project_id     uuid NOT NULL REFERENCES vf.projects (id),
    id             uuid NOT NULL,
    code_digest    bytea NOT NULL CHECK (length(code_digest) = 32),
    last_four      text NOT NULL CHECK (length(last_four) = 4),
    pin_digest     bytea CHECK (length(pin_digest) = 32),
    currency       text NOT NULL CHECK (currency ~ '^[A-Z]{3}\Z'),
    status         text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
    balance_minor  bigint NOT NULL,
    spent_minor    bigint NOT NULL DEFAULT 0,
    entry_count    bigint NOT NULL DEFAULT 1 CHECK (entry_count > 0),
    expires_at     timestamptz,
    customer_id    text,
    recipient      jsonb,
    metadata       jsonb NOT NULL DEFAULT '{}',
    batch_id       uuid,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, id),
    CONSTRAINT gift_cards_code_key UNIQUE (project_id, code_digest),
    CONSTRAINT gift_cards_never_over CHECK (balance_minor BETWEEN 0 AND 1000000000000000),
    CONSTRAINT gift_cards_refund CHECK (spent_minor >= 0)
) WITH (fillfactor = 70);
CREATE INDEX gift_cards_due ON vf.gift_cards (expires_at) WHERE balance_minor > 0;
CREATE INDEX gift_cards_of_customer ON vf.gift_cards (customer_id, project_id, id) WHERE customer_id IS NOT NULL;
CREATE INDEX gift_cards_of_batch ON vf.gift_cards (batch_id, id) WHERE batch_id IS NOT NULL;

-- Append-only: what happened to a card, once for each reference. asked_minor: more than amount_minor where the caller
-- took what was left. refund_of: the spend a refund gives back.
CREATE TABLE vf.gift_card_transactions (
    project_id    uuid NOT NULL,
    id            uuid NOT NULL,
    card_id       uuid NOT NULL,
    kind          text NOT NULL
                  CHECK (kind IN ('issue', 'top_up', 'spend', 'refund', 'expire', 'adjust', 'transfer')),
    amount_minor  bigint NOT NULL CHECK (amount_minor > 0),
    asked_minor   bigint NOT NULL CHECK (asked_minor >= amount_minor),
    currency      text NOT NULL,
    reference     text NOT NULL CHECK (length(reference) BETWEEN 1 AND 255),
    fingerprint   bytea NOT NULL,
    to_card_id    uuid,
    refund_of     uuid,
    order_id      text,
    reason        text,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, id),
    CONSTRAINT gift_card_transactions_reference_key UNIQUE (project_id, reference),
    CONSTRAINT gift_card_transactions_amount UNIQUE (project_id, id, amount_minor),
    CONSTRAINT gift_card_transactions_card FOREIGN KEY (project_id, card_id) REFERENCES vf.gift_cards (project_id, id),
    CONSTRAINT gift_card_transactions_to_card FOREIGN KEY (project_id, to_card_id)
        REFERENCES vf.gift_cards (project_id, id),
    CONSTRAINT gift_card_transactions_refund_of FOREIGN KEY (project_id, refund_of)
        REFERENCES vf.gift_card_transactions (project_id, id),
    CONSTRAINT gift_card_transactions_transfer CHECK ((kind = 'transfer') = (to_card_id IS NOT NULL)
                                                      AND to_card_id <> card_id),
    CONSTRAINT gift_card_transactions_refund CHECK (refund_of IS NULL OR kind = 'refund')
);
CREATE INDEX gift_card_transactions_by_day ON vf.gift_card_transactions (project_id, created_at);
CREATE INDEX gift_card_transactions_refunds ON vf.gift_card_transactions (refund_of, project_id)
    WHERE refund_of IS NOT NULL;

-- Append-only double entry: each transaction debits one account and credits another with its own amount, which the
-- foreign key holds, so what is written sums to zero. liability is what the shop owes to the holder of card_id: its
-- entries are numbered from 1 and say the balance after each, so that none can be missing or come twice.
CREATE TABLE vf.gift_card_entries (
    project_id      uuid NOT NULL,
    transaction_id  uuid NOT NULL,
    side            text NOT NULL CHECK (side IN ('debit', 'credit')),
    account         text NOT NULL
                    CHECK (account IN ('liability', 'sales', 'promotion', 'redemption', 'breakage', 'adjustment')),
    amount_minor    bigint NOT NULL,
    card_id         uuid,
    number          bigint CHECK (number > 0),
    balance_minor   bigint CHECK (balance_minor >= 0),
    PRIMARY KEY (project_id, transaction_id, side),
    CONSTRAINT gift_card_entries_number_key UNIQUE (card_id, number, project_id),
    CONSTRAINT gift_card_entries_amount FOREIGN KEY (project_id, transaction_id, amount_minor)
        REFERENCES vf.gift_card_transactions (project_id, id, amount_minor),
    CONSTRAINT gift_card_entries_card FOREIGN KEY (project_id, card_id) REFERENCES vf.gift_cards (project_id, id),
    CONSTRAINT gift_card_entries_liability
        CHECK (num_nonnulls(card_id, number, balance_minor) = CASE account WHEN 'liability' THEN 3 ELSE 0 END)
);

-- Which redemptions a card paid together with: it is refunded when none of them is left.
CREATE TABLE vf.gift_card_payments (
    project_id      uuid NOT NULL,
    redemption_id   uuid NOT NULL,
    transaction_id  uuid NOT NULL,
    PRIMARY KEY (redemption_id, transaction_id, project_id),
    CONSTRAINT gift_card_payments_transaction FOREIGN KEY (project_id, transaction_id)
        REFERENCES vf.gift_card_transactions (project_id, id)
);
CREATE INDEX gift_card_payments_of_transaction ON vf.gift_card_payments (transaction_id, project_id);

-- Look-ups by code that found nothing, by minute: of an API key, an address, or a card whose PIN was wrong (scope).
CREATE UNLOGGED TABLE vf.failed_lookups (
    project_id     uuid NOT NULL,
    scope          text NOT NULL,
    minute         timestamptz NOT NULL,
    failure_count  bigint NOT NULL,
    PRIMARY KEY (scope, minute, project_id)
);

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['gift_cards', 'gift_card_transactions', 'gift_card_entries', 'gift_card_payments',
                             'failed_lookups']
    LOOP
        EXECUTE format('ALTER TABLE vf.%I ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE vf.%I FORCE ROW LEVEL SECURITY', t);
        EXECUTE format(
            'CREATE POLICY of_project ON vf.%I TO vf_app '
            'USING (project_id = (SELECT nullif(current_setting(''app.project_id'', true), '''')::uuid)) '
            'WITH CHECK (project_id = (SELECT nullif(current_setting(''app.project_id'', true), '''')::uuid))', t);
        EXECUTE format('CREATE POLICY of_operator ON vf.%I TO vf_worker USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE ON vf.%I TO vf_app, vf_worker', t);
    END LOOP;
END $$;
REVOKE UPDATE ON vf.gift_card_transactions, vf.gift_card_entries, vf.gift_card_payments FROM vf_app, vf_worker;
GRANT DELETE ON vf.failed_lookups TO vf_worker;

-- Moves money onto a card or off it, once for each reference: top_up, spend, refund, expire (all that is left, once its
-- time is over), adjust (p_amount may be negative) or transfer (to p_to_card). With p_is_partial a spend takes what is
-- left. Answers done, replayed or mismatch with the transaction, or a refusal, and then nothing was written. Refunds go
-- to any card, also one that may not spend. Locks the cards in id order.
CREATE FUNCTION vf.move_gift_card(
    p_project uuid, p_card uuid, p_kind text, p_amount bigint, p_is_partial boolean, p_account text,
    p_id uuid, p_reference text, p_fingerprint bytea, p_to_card uuid, p_refund_of uuid, p_order_id text, p_reason text)
RETURNS TABLE (outcome text, transaction_id uuid)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    c vf.gift_cards;
    d vf.gift_cards;
    s vf.gift_card_transactions;
    t vf.gift_card_transactions;
    v_at timestamptz;
    v_is_out boolean := p_kind IN ('spend', 'expire', 'transfer') OR p_amount < 0;
    v_amount bigint;
    v_refundable bigint;
    v_outcome text;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    PERFORM 1 FROM vf.gift_cards k WHERE k.project_id = p_project AND k.id IN (p_card, p_to_card)
      ORDER BY k.id FOR NO KEY UPDATE;
    v_at := clock_timestamp();
    SELECT * INTO t FROM vf.gift_card_transactions k WHERE k.project_id = p_project AND k.reference = p_reference;
    IF t.id IS NOT NULL THEN
        RETURN QUERY SELECT CASE WHEN t.fingerprint = p_fingerprint THEN 'replayed' ELSE 'mismatch' END, t.id;
        RETURN;
    END IF;
    SELECT * INTO c FROM vf.gift_cards k WHERE k.project_id = p_project AND k.id = p_card;
    SELECT * INTO d FROM vf.gift_cards k WHERE k.project_id = p_project AND k.id = p_to_card;
    IF p_refund_of IS NOT NULL THEN
        SELECT * INTO s FROM vf.gift_card_transactions k
         WHERE k.project_id = p_project AND k.id = p_refund_of AND k.card_id = p_card AND k.kind = 'spend';
        SELECT s.amount_minor - coalesce(sum(k.amount_minor), 0) INTO v_refundable FROM vf.gift_card_transactions k
         WHERE k.refund_of = p_refund_of AND k.project_id = p_project;
    END IF;
    v_amount := CASE WHEN p_kind = 'expire' THEN c.balance_minor
                     WHEN p_is_partial THEN least(p_amount, c.balance_minor)
                     ELSE abs(p_amount) END;
    v_outcome := CASE
        WHEN c.id IS NULL OR p_to_card IS NOT NULL AND d.id IS NULL THEN 'not_found'
        WHEN p_refund_of IS NOT NULL AND s.id IS NULL THEN 'no_transaction'
        WHEN p_kind = 'expire' AND (c.expires_at > v_at OR c.expires_at IS NULL OR c.balance_minor = 0) THEN 'not_due'
        WHEN p_kind IN ('spend', 'top_up', 'transfer') AND (c.status <> 'active' OR d.status <> 'active')
             THEN 'gift_card_inactive'
        WHEN p_kind IN ('spend', 'top_up', 'transfer') AND (c.expires_at <= v_at OR d.expires_at <= v_at)
             THEN 'gift_card_expired'
        WHEN c.currency <> d.currency THEN 'currency_mismatch'
        WHEN v_is_out AND (c.balance_minor < v_amount OR v_amount = 0) THEN 'insufficient_balance'
        WHEN p_kind = 'refund' AND (v_amount > c.spent_minor OR v_amount > v_refundable) THEN 'refund_too_large'
        WHEN NOT v_is_out AND c.balance_minor + v_amount > 1000000000000000
          OR d.balance_minor + v_amount > 1000000000000000 THEN 'balance_too_large'
    END;
    IF v_outcome IS NOT NULL THEN
        RETURN QUERY SELECT v_outcome, NULL::uuid;
        RETURN;
    END IF;
    INSERT INTO vf.gift_card_transactions (project_id, id, card_id, kind, amount_minor, asked_minor, currency, reference,
           fingerprint, to_card_id, refund_of, order_id, reason, created_at)
    VALUES (p_project, p_id, p_card, p_kind, v_amount, CASE p_kind WHEN 'spend' THEN p_amount ELSE v_amount END,
            c.currency, p_reference, p_fingerprint, p_to_card, p_refund_of, p_order_id, p_reason, v_at)
        ON CONFLICT (project_id, reference) DO NOTHING;
    IF NOT FOUND THEN
        -- Another card's transaction took the reference in between.
        RETURN QUERY SELECT 'mismatch', k.id FROM vf.gift_card_transactions k
                      WHERE k.project_id = p_project AND k.reference = p_reference;
        RETURN;
    END IF;
    UPDATE vf.gift_cards k
       SET balance_minor = k.balance_minor + CASE WHEN v_is_out THEN -v_amount ELSE v_amount END,
           spent_minor = k.spent_minor + CASE p_kind WHEN 'spend' THEN v_amount WHEN 'refund' THEN -v_amount ELSE 0 END,
           entry_count = k.entry_count + 1, updated_at = v_at
     WHERE k.project_id = p_project AND k.id = p_card AND (NOT v_is_out OR k.balance_minor >= v_amount)
    RETURNING k.* INTO STRICT c;
    IF p_to_card IS NOT NULL THEN
        UPDATE vf.gift_cards k
           SET balance_minor = k.balance_minor + v_amount, entry_count = k.entry_count + 1, updated_at = v_at
         WHERE k.project_id = p_project AND k.id = p_to_card
        RETURNING k.* INTO STRICT d;
    END IF;
    INSERT INTO vf.gift_card_entries (project_id, transaction_id, side, account, amount_minor, card_id, number,
                                      balance_minor)
    VALUES (p_project, p_id, CASE WHEN v_is_out THEN 'debit' ELSE 'credit' END, 'liability', v_amount, p_card,
            c.entry_count, c.balance_minor),
           (p_project, p_id, CASE WHEN v_is_out THEN 'credit' ELSE 'debit' END,
            CASE p_kind WHEN 'transfer' THEN 'liability' WHEN 'top_up' THEN p_account WHEN 'expire' THEN 'breakage'
                        WHEN 'adjust' THEN 'adjustment' ELSE 'redemption' END,
            v_amount, d.id, d.entry_count, d.balance_minor);
    INSERT INTO vf.outbox (project_id, event, subject, data)
    VALUES (p_project, 'gift_card.' || CASE p_kind WHEN 'top_up' THEN 'topped_up' WHEN 'spend' THEN 'redeemed'
                WHEN 'refund' THEN 'refunded' WHEN 'expire' THEN 'expired' WHEN 'adjust' THEN 'adjusted'
                ELSE 'transferred' END, p_card,
            jsonb_build_object('transaction', p_id, 'amount_minor', v_amount, 'balance_minor', c.balance_minor,
                               'currency', c.currency));
    RETURN QUERY SELECT 'done', p_id;
END $$;

-- Refunds what cards paid beside a redemption that was rolled back, once none of the redemptions they paid together
-- with is left; whoever rolls back the last of them waits here for the others. Answers the refunds.
CREATE FUNCTION vf.refund_gift_cards(p_project uuid, p_redemption uuid, p_reason text)
RETURNS SETOF uuid
LANGUAGE plpgsql
AS $$
DECLARE
    t record;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    PERFORM 1 FROM vf.gift_cards k
      WHERE k.project_id = p_project AND k.id IN (
            SELECT s.card_id FROM vf.gift_card_payments p
              JOIN vf.gift_card_transactions s ON s.project_id = p.project_id AND s.id = p.transaction_id
             WHERE p.redemption_id = p_redemption AND p.project_id = p_project)
      ORDER BY k.id FOR NO KEY UPDATE;
    FOR t IN
        SELECT s.id, s.card_id, s.order_id, s.fingerprint, least(c.spent_minor,
               s.amount_minor - coalesce((SELECT sum(f.amount_minor) FROM vf.gift_card_transactions f
                                           WHERE f.refund_of = s.id AND f.project_id = s.project_id), 0))::bigint AS rest
          FROM vf.gift_card_payments p
          JOIN vf.gift_card_transactions s ON s.project_id = p.project_id AND s.id = p.transaction_id
          JOIN vf.gift_cards c ON c.project_id = s.project_id AND c.id = s.card_id
         WHERE p.redemption_id = p_redemption AND p.project_id = p_project
           AND NOT EXISTS (
               SELECT 1 FROM vf.gift_card_payments o
                 JOIN vf.redemptions r ON r.project_id = o.project_id AND r.id = o.redemption_id
                                      AND r.redeemed_at > '-infinity'
                WHERE o.transaction_id = p.transaction_id AND o.project_id = p_project AND r.status = 'redeemed')
         ORDER BY s.card_id
    LOOP
        -- What was spent may have been refunded by hand in the meantime, in part or whole.
        CONTINUE WHEN t.rest <= 0;
        RETURN QUERY
        SELECT m.transaction_id
          FROM vf.move_gift_card(p_project, t.card_id, 'refund', t.rest, false, NULL, gen_random_uuid(),
                   'vf:rollback:' || t.id, t.fingerprint, NULL, t.id, t.order_id, p_reason) m
         WHERE m.outcome = 'done';
    END LOOP;
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
