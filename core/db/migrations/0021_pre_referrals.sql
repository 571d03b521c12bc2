-- Referrals

-- rules: rewards, tiers, caps, windows and delays (core/rules/rewards.py).
CREATE TABLE vf.referral_programs (
    project_id       uuid NOT NULL REFERENCES vf.projects (id),
    id               uuid NOT NULL,
    name             text NOT NULL,
    status           text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'paused', 'ended')),
    conversion       text NOT NULL CHECK (conversion IN ('sign_up', 'first_redemption', 'first_order')),
    min_order_minor  bigint CHECK (min_order_minor > 0),
    rules            jsonb NOT NULL,
    metadata         jsonb NOT NULL DEFAULT '{}',
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, id),
    CONSTRAINT referral_programs_minimum CHECK (min_order_minor IS NULL OR conversion = 'first_order')
);

-- A customer's code in a program. conversion_count: how many conversions it has had; a conversion's place among them
-- decides its tier and is never given twice.
CREATE TABLE vf.referral_codes (
    project_id        uuid NOT NULL,
    id                uuid NOT NULL,
    program_id        uuid NOT NULL,
    customer_id       text NOT NULL,
    code              text NOT NULL,
    code_norm         text NOT NULL,
    conversion_count  bigint NOT NULL DEFAULT 0 CHECK (conversion_count >= 0),
    created_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, id),
    CONSTRAINT referral_codes_code_key UNIQUE (project_id, code_norm),
    CONSTRAINT referral_codes_customer_key UNIQUE (project_id, program_id, customer_id),
    CONSTRAINT referral_codes_program FOREIGN KEY (project_id, program_id)
        REFERENCES vf.referral_programs (project_id, id)
);

-- Somebody referred somebody. place: which conversion of its code it was. review: of a rejected one, until review_until.
CREATE TABLE vf.referrals (
    project_id         uuid NOT NULL,
    id                 uuid NOT NULL,
    program_id         uuid NOT NULL,
    code_id            uuid NOT NULL,
    referrer_id        text NOT NULL,
    referee_id         text,
    status             text NOT NULL CHECK (status IN ('invited', 'attributed', 'converted', 'rewarded', 'rejected',
                                                       'reversed')),
    reason             text,
    because            jsonb,
    review             text CHECK (review IN ('open', 'approved', 'rejected', 'lapsed')),
    review_until       timestamptz,
    attributed_at      timestamptz,
    expires_at         timestamptz,
    converted_at       timestamptz,
    ended_at           timestamptz,
    place              bigint,
    order_id           text,
    order_value_minor  bigint,
    redemption_id      uuid,
    created_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, id),
    CONSTRAINT referrals_code FOREIGN KEY (project_id, code_id) REFERENCES vf.referral_codes (project_id, id),
    CONSTRAINT referrals_program FOREIGN KEY (project_id, program_id)
        REFERENCES vf.referral_programs (project_id, id),
    CONSTRAINT referrals_place_key UNIQUE (code_id, place, project_id),
    CONSTRAINT referrals_self CHECK (status IN ('invited', 'rejected') OR referee_id <> referrer_id),
    CONSTRAINT referrals_review CHECK ((review IS NULL) = (review_until IS NULL)),
    CONSTRAINT referrals_converted CHECK ((converted_at IS NULL) = (place IS NULL)
        AND (status NOT IN ('converted', 'rewarded', 'reversed') OR converted_at IS NOT NULL))
);
CREATE UNIQUE INDEX referrals_one_attribution ON vf.referrals (referee_id, program_id, project_id)
    WHERE status IN ('attributed', 'converted', 'rewarded', 'reversed');
CREATE INDEX referrals_of_referrer ON vf.referrals (referrer_id, project_id, id);
CREATE INDEX referrals_of_referee ON vf.referrals (referee_id, project_id, id) WHERE referee_id IS NOT NULL;
CREATE INDEX referrals_of_redemption ON vf.referrals (redemption_id, project_id) WHERE redemption_id IS NOT NULL;
CREATE INDEX referrals_in_review ON vf.referrals (review_until) WHERE review = 'open';

-- What is known of a person, as keyed hashes: two customers who share one are taken for one. An invited one who has no
-- id yet is known by the referral's.
CREATE TABLE vf.referral_identifiers (
    project_id   uuid NOT NULL REFERENCES vf.projects (id),
    customer_id  text NOT NULL,
    kind         text NOT NULL CHECK (kind IN ('email', 'phone', 'device', 'payment', 'address')),
    digest       bytea NOT NULL CHECK (length(digest) = 32),
    PRIMARY KEY (digest, kind, customer_id, project_id)
);
CREATE INDEX referral_identifiers_of_customer ON vf.referral_identifiers (customer_id, project_id);

-- What each side of a conversion gets: once, by the key. due_at: when the delay is over. debt_minor: what was spent of
-- a reward before it was taken back.
CREATE TABLE vf.referral_rewards (
    project_id    uuid NOT NULL,
    referral_id   uuid NOT NULL,
    side          text NOT NULL CHECK (side IN ('referrer', 'referee')),
    customer_id   text NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('voucher', 'gift_card')),
    status        text NOT NULL CHECK (status IN ('pending', 'issued', 'capped', 'cancelled', 'reversed', 'debt')),
    campaign_id   uuid,
    amount_minor  bigint CHECK (amount_minor > 0),
    period        text NOT NULL,
    voucher_id    uuid,
    gift_card_id  uuid,
    debt_minor    bigint CHECK (debt_minor > 0),
    due_at        timestamptz NOT NULL,
    issued_at     timestamptz,
    ended_at      timestamptz,
    PRIMARY KEY (project_id, referral_id, side),
    CONSTRAINT referral_rewards_referral FOREIGN KEY (project_id, referral_id) REFERENCES vf.referrals (project_id, id),
    CONSTRAINT referral_rewards_campaign FOREIGN KEY (project_id, campaign_id) REFERENCES vf.campaigns (project_id, id),
    CONSTRAINT referral_rewards_voucher FOREIGN KEY (project_id, voucher_id) REFERENCES vf.vouchers (project_id, id),
    CONSTRAINT referral_rewards_card FOREIGN KEY (project_id, gift_card_id) REFERENCES vf.gift_cards (project_id, id),
    CONSTRAINT referral_rewards_kind CHECK ((kind = 'voucher') = (campaign_id IS NOT NULL)
                                            AND (kind = 'gift_card') = (amount_minor IS NOT NULL)),
    CONSTRAINT referral_rewards_issued CHECK (num_nonnulls(voucher_id, gift_card_id)
                                              = (status IN ('issued', 'reversed', 'debt'))::int),
    CONSTRAINT referral_rewards_debt CHECK ((status = 'debt') = (debt_minor IS NOT NULL))
);
CREATE INDEX referral_rewards_due ON vf.referral_rewards (due_at) WHERE status = 'pending';

-- How many rewards a referrer has of a program in a period, where that is capped; period is empty for ever.
CREATE TABLE vf.referral_counts (
    project_id   uuid NOT NULL REFERENCES vf.projects (id),
    program_id   uuid NOT NULL,
    referrer_id  text NOT NULL,
    period       text NOT NULL,
    live_count   bigint NOT NULL CHECK (live_count >= 0),
    limit_max    bigint NOT NULL,
    PRIMARY KEY (referrer_id, period, program_id, project_id),
    CONSTRAINT referral_counts_never_over CHECK (live_count <= limit_max)
);

-- Append-only: what happened to a referral and its rewards.
CREATE TABLE vf.referral_history (
    project_id   uuid NOT NULL,
    id           uuid NOT NULL DEFAULT gen_random_uuid(),
    referral_id  uuid NOT NULL,
    event        text NOT NULL,
    detail       jsonb NOT NULL DEFAULT '{}',
    at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, id),
    CONSTRAINT referral_history_referral FOREIGN KEY (project_id, referral_id) REFERENCES vf.referrals (project_id, id)
);
CREATE INDEX referral_history_of_referral ON vf.referral_history (referral_id, at);

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['referral_programs', 'referral_codes', 'referrals', 'referral_identifiers',
                             'referral_rewards', 'referral_counts', 'referral_history']
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
REVOKE UPDATE ON vf.referral_history FROM vf_app, vf_worker;
GRANT DELETE ON vf.referral_identifiers TO vf_app, vf_worker;
