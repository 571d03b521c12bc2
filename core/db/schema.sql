-- The schema as a reader wants it. Production gets here by core/db/migrations; a test proves both equal.
-- Money is bigint minor units, rates are basis points, instants are timestamptz, ids are uuid.
-- Every tenant table has project_id, RLS enabled and forced, and two policies: the project named by
-- app.project_id for vf_app, everything for vf_worker (reconciler, worker, verify: they act for all projects).

CREATE SCHEMA vf AUTHORIZATION vf_owner;
GRANT USAGE ON SCHEMA vf TO vf_app, vf_worker, vf_definer;

-- ---------------------------------------------------------------------------------------------
-- Who: accounts, users, projects, keys

CREATE TABLE vf.accounts (
    id          uuid PRIMARY KEY,
    name        text NOT NULL,
    plan        text NOT NULL DEFAULT 'free'
                CHECK (plan IN ('free', 'starter', 'growth', 'scale', 'enterprise')),
    created_at  timestamptz NOT NULL DEFAULT now()
);

-- totp_nonce: what the second factor's secret is made of, together with the server's; totp_since: when it was confirmed.
-- totp_step: the last time step whose code was taken. recovery_codes: HMACs of those that are left.
CREATE TABLE vf.users (
    id             uuid PRIMARY KEY,
    account_id     uuid NOT NULL REFERENCES vf.accounts (id),
    email          text NOT NULL CHECK (email = lower(email)),
    password_hash  text NOT NULL,
    created_at     timestamptz NOT NULL DEFAULT now(),
    name           text,
    totp_nonce      bytea,
    totp_since      timestamptz,
    totp_step       bigint NOT NULL DEFAULT 0,
    recovery_codes  bytea[] NOT NULL DEFAULT '{}',
    email_confirmed_at  timestamptz,
    CONSTRAINT users_email_key UNIQUE (email)
);

-- The tenant: one client of an agency, one currency. mail_at_percent: at which parts of a quota or budget a mail is sent.
CREATE TABLE vf.projects (
    id          uuid PRIMARY KEY,
    account_id  uuid NOT NULL REFERENCES vf.accounts (id),
    name        text NOT NULL,
    currency    text NOT NULL DEFAULT 'EUR' CHECK (currency ~ '^[A-Z]{3}\Z'),
    time_zone   text NOT NULL DEFAULT 'UTC',
    created_at  timestamptz NOT NULL DEFAULT now(),
    status             text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'archived', 'deleting')),
    rollback_window_s  bigint NOT NULL DEFAULT 1800 CHECK (rollback_window_s >= 0),
    mail_at_percent    bigint[] NOT NULL DEFAULT '{80,100}',
    archived_at        timestamptz,
    deleting_at        timestamptz,
    CONSTRAINT projects_archived CHECK (status <> 'archived' OR archived_at IS NOT NULL),
    CONSTRAINT projects_deleting CHECK ((status = 'deleting') = (deleting_at IS NOT NULL))
);

-- Projects that are gone, with nothing left of them but this.
CREATE TABLE vf.deleted_projects (
    id           uuid PRIMARY KEY,
    account_id   uuid NOT NULL REFERENCES vf.accounts (id),
    name         text NOT NULL,
    deleting_at  timestamptz NOT NULL,
    deleted_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What a person may do in a project. A project keeps at least one owner, who may be asked for it.
CREATE TABLE vf.memberships (
    project_id  uuid NOT NULL REFERENCES vf.projects (id),
    user_id     uuid NOT NULL REFERENCES vf.users (id),
    role        text NOT NULL CHECK (role IN ('owner', 'admin', 'analyst')),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, user_id)
);
CREATE INDEX memberships_of_user ON vf.memberships (user_id, project_id);

-- A person who is logged in somewhere, known by an HMAC of what their browser keeps. expires_at: however busy it is.
CREATE TABLE vf.sessions (
    id          uuid PRIMARY KEY,
    user_id     uuid NOT NULL REFERENCES vf.users (id),
    digest      bytea NOT NULL CHECK (length(digest) = 32),
    address     text NOT NULL,
    agent       text,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz NOT NULL,
    ended_at    timestamptz,
    CONSTRAINT sessions_digest_key UNIQUE (digest)
);
CREATE INDEX sessions_of_user ON vf.sessions (user_id, id) WHERE ended_at IS NULL;
CREATE INDEX sessions_old ON vf.sessions (expires_at);

-- Who was asked into a project, known by an HMAC of what their mail holds, until they come.
CREATE TABLE vf.invitations (
    project_id   uuid NOT NULL REFERENCES vf.projects (id),
    id           uuid NOT NULL,
    email        text NOT NULL CHECK (email = lower(email)),
    role         text NOT NULL CHECK (role IN ('owner', 'admin', 'analyst')),
    digest       bytea NOT NULL CHECK (length(digest) = 32),
    invited_by   uuid NOT NULL REFERENCES vf.users (id),
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz NOT NULL,
    accepted_at  timestamptz,
    revoked_at   timestamptz,
    PRIMARY KEY (project_id, id),
    CONSTRAINT invitations_digest_key UNIQUE (digest),
    CONSTRAINT invitations_ended CHECK (accepted_at IS NULL OR revoked_at IS NULL)
);
CREATE UNIQUE INDEX invitations_one_open ON vf.invitations (project_id, email)
    WHERE accepted_at IS NULL AND revoked_at IS NULL;

-- Who may set a new password, known by an HMAC of what their mail holds, once.
CREATE TABLE vf.password_resets (
    digest      bytea PRIMARY KEY CHECK (length(digest) = 32),
    user_id     uuid NOT NULL REFERENCES vf.users (id),
    expires_at  timestamptz NOT NULL,
    used_at     timestamptz
);
CREATE INDEX password_resets_old ON vf.password_resets (expires_at);

-- Only an HMAC of a key is kept; `hint` is what may be shown of it ("vf_sk_…a1b2"). scopes: what it may do, NULL:
-- everything its kind may. origins: the pages it may be used on, none: any. changed_at: when what a cache knows of it
-- changed last. last_used_at is a minute's.
CREATE TABLE vf.api_keys (
    project_id    uuid NOT NULL REFERENCES vf.projects (id),
    id            uuid NOT NULL,
    kind          text NOT NULL CONSTRAINT api_keys_kind CHECK (kind IN ('SECRET', 'PUBLISHABLE', 'AGENT')),
    name          text,
    digest        bytea NOT NULL CHECK (length(digest) = 32),
    hint          text NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    revoked_at    timestamptz,
    scopes        text[],
    origins       text[] NOT NULL DEFAULT '{}',
    expires_at    timestamptz,
    changed_at    timestamptz,
    last_used_at  timestamptz,
    rotated_to    uuid,
    rate_limit    jsonb CONSTRAINT api_keys_rate_limit CHECK (((rate_limit ->> 'limit')::bigint > 0
                  AND (rate_limit ->> 'window_s')::bigint > 0 AND (rate_limit ->> 'burst')::bigint > 0) IS NOT FALSE),
    PRIMARY KEY (project_id, id),
    CONSTRAINT api_keys_digest_key UNIQUE (digest),
    CONSTRAINT api_keys_agent CHECK (kind <> 'AGENT' OR (scopes IS NOT NULL AND expires_at IS NOT NULL))
);
CREATE INDEX api_keys_revoked ON vf.api_keys (revoked_at) WHERE revoked_at IS NOT NULL;
CREATE INDEX api_keys_changed ON vf.api_keys (changed_at) WHERE changed_at IS NOT NULL;

-- What was called in an hour, added up by each process once a second.
CREATE TABLE vf.usage_hours (
    project_id  uuid NOT NULL REFERENCES vf.projects (id),
    hour        timestamptz NOT NULL,
    call_count  bigint NOT NULL CHECK (call_count >= 0),
    PRIMARY KEY (project_id, hour)
);

-- What was used by projects that are gone, for their account's bill.
CREATE TABLE vf.deleted_usage (
    account_id        uuid NOT NULL REFERENCES vf.accounts (id),
    hour              timestamptz NOT NULL,
    call_count        bigint NOT NULL CHECK (call_count >= 0),
    redemption_count  bigint NOT NULL CHECK (redemption_count >= 0),
    PRIMARY KEY (account_id, hour)
);

-- Append-only: when an account went from one plan to another.
CREATE TABLE vf.plan_changes (
    account_id  uuid NOT NULL REFERENCES vf.accounts (id),
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    before      text NOT NULL,
    after       text NOT NULL,
    PRIMARY KEY (account_id, at)
);

-- Append-only: months that are over. lines is what was billed, as text a person reads.
CREATE TABLE vf.invoices (
    account_id    uuid NOT NULL REFERENCES vf.accounts (id),
    month         timestamptz NOT NULL,
    lines         jsonb NOT NULL,
    total_minor   bigint NOT NULL CHECK (total_minor >= 0),
    provider      text NOT NULL,
    reference     text,
    finalized_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (account_id, month)
);

-- What owners were told of, once each. subject: api_calls, redemptions, or a budget's scope and label; period: a month and
-- the plan it was on, or the budget's own.
CREATE TABLE vf.notices (
    project_id  uuid NOT NULL REFERENCES vf.projects (id),
    subject     text NOT NULL,
    period      text NOT NULL,
    percent     bigint NOT NULL,
    told_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, subject, period, percent)
);

-- Who changed what, from where. Append-only: vf_app may insert and read, never change. number, hash: a chain, each entry
-- sealed together with the one before (vf.chain_audit).
CREATE TABLE vf.audit_log (
    project_id  uuid NOT NULL REFERENCES vf.projects (id),
    id          uuid NOT NULL,
    actor       text NOT NULL,
    action      text NOT NULL,
    target      text NOT NULL,
    detail      jsonb NOT NULL DEFAULT '{}',
    request_id  text,
    at          timestamptz NOT NULL DEFAULT now(),
    before      jsonb,
    after       jsonb,
    address     text,
    number      bigint NOT NULL,
    hash        bytea NOT NULL,
    PRIMARY KEY (project_id, id),
    CONSTRAINT audit_log_number_key UNIQUE (project_id, number)
);

-- How long the audit log of a project is, and the hash of its last entry.
CREATE TABLE vf.audit_heads (
    project_id  uuid PRIMARY KEY REFERENCES vf.projects (id),
    number      bigint NOT NULL,
    hash        bytea NOT NULL
);

-- The answer to a write, kept so that a retry gets it again. Redemptions are their own record and are not here.
CREATE TABLE vf.idempotency_keys (
    project_id   uuid NOT NULL REFERENCES vf.projects (id),
    key          text NOT NULL CHECK (length(key) BETWEEN 1 AND 255),
    fingerprint  bytea NOT NULL,
    status       integer NOT NULL,
    body         bytea NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project_id, key)
);
CREATE INDEX idempotency_keys_age ON vf.idempotency_keys (created_at);

-- Written in the transaction of the change it reports, and gone when it is published. The data of voucher.redeemed: the
-- `first` number and the `count` of the redemptions that were added, and where they have gaps their numbers, `seqs`. A queue,
-- so it is vacuumed by what was taken off it.
CREATE TABLE vf.outbox (
    project_id  uuid NOT NULL,
    event       text NOT NULL,
    subject     uuid NOT NULL,
    data        jsonb NOT NULL DEFAULT '{}',
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    number      bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (number, project_id)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

-- What happened, in the order in which it was committed; ids rise with it. A row of `count` redemptions stands for so
-- many events, whose ids follow its own: of numbers first_seq to last_seq of the lease or voucher in subject, or
-- where some of those had been told before, of the numbers in seqs.
CREATE TABLE vf.events (
    project_id  uuid NOT NULL,
    id          uuid NOT NULL,
    type        text NOT NULL,
    subject     uuid NOT NULL,
    data        jsonb NOT NULL,
    at          timestamptz NOT NULL,
    count       bigint NOT NULL CHECK (count BETWEEN 1 AND 16777216),
    first_seq   bigint,
    last_seq    bigint,
    seqs        bigint[],
    PRIMARY KEY (project_id, id),
    CONSTRAINT events_seqs CHECK ((first_seq IS NULL) = (last_seq IS NULL) AND (count = 1 OR first_seq IS NOT NULL)
                                  AND (seqs IS NOT NULL OR last_seq - first_seq = count - 1))
);
CREATE INDEX events_in_order ON vf.events (id);
CREATE INDEX events_of_type ON vf.events (project_id, type, id);
CREATE INDEX events_of_redemptions ON vf.events (subject, last_seq) WHERE last_seq IS NOT NULL;

-- Who publishes holds this row, so that one does at a time; last_ms: when the last ids were given. expired_to: up to
-- when the vouchers whose time is over were told. One row.
CREATE TABLE vf.event_clock (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    last_ms     bigint NOT NULL DEFAULT 0,
    expired_to  timestamptz NOT NULL DEFAULT now()
);

-- Its secrets are kept nowhere: they are made of the system's secret, its id and secret_version; the one before is valid
-- until previous_until. events: types, or `noun.*`; NULL: all. failure_count: failed attempts since the last success;
-- while it is high nothing is sent before open_until. failing_since: when they began.
CREATE TABLE vf.webhooks (
    project_id       uuid NOT NULL REFERENCES vf.projects (id),
    id               uuid NOT NULL,
    url              text NOT NULL,
    description      text,
    events           text[] CHECK (cardinality(events) > 0),
    status           text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled', 'deleted')),
    disabled_reason  text,
    secret_version   integer NOT NULL DEFAULT 1 CHECK (secret_version > 0),
    previous_until   timestamptz,
    failure_count    integer NOT NULL DEFAULT 0 CHECK (failure_count >= 0),
    failing_since    timestamptz,
    open_until       timestamptz,
    created_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, id)
) WITH (fillfactor = 50);

-- One event for one webhook. due_at: when it may be sent next; who takes it moves it to when it may be taken again,
-- should they die. try_count: of attempts since started_at, when it was made or last replayed.
CREATE TABLE vf.deliveries (
    project_id     uuid NOT NULL,
    id             uuid NOT NULL,
    webhook_id     uuid NOT NULL,
    event_id       uuid NOT NULL,
    event_type     text NOT NULL,
    status         text NOT NULL DEFAULT 'pending' CHECK (status IN ('pending', 'delivered', 'dead')),
    attempt_count  integer NOT NULL DEFAULT 0,
    try_count      integer NOT NULL DEFAULT 0,
    started_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    due_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    ended_at       timestamptz,
    created_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, id),
    CONSTRAINT deliveries_webhook FOREIGN KEY (project_id, webhook_id) REFERENCES vf.webhooks (project_id, id),
    CONSTRAINT deliveries_ended CHECK ((status = 'pending') = (ended_at IS NULL))
) WITH (fillfactor = 70);
CREATE INDEX deliveries_due ON vf.deliveries (webhook_id, due_at) WHERE status = 'pending';
CREATE INDEX deliveries_of_webhook ON vf.deliveries (webhook_id, status, id);
CREATE INDEX deliveries_in_order ON vf.deliveries (id);

-- Append-only: each attempt, what was answered or why nothing was, and how long it took.
CREATE TABLE vf.delivery_attempts (
    project_id   uuid NOT NULL,
    delivery_id  uuid NOT NULL,
    number       integer NOT NULL,
    status_code  integer,
    error        text,
    body         text,
    latency_ms   integer NOT NULL,
    at           timestamptz NOT NULL,
    PRIMARY KEY (project_id, delivery_id, number),
    CONSTRAINT delivery_attempts_delivery FOREIGN KEY (project_id, delivery_id)
        REFERENCES vf.deliveries (project_id, id) ON DELETE CASCADE
);

-- ---------------------------------------------------------------------------------------------
-- What: campaigns and vouchers

-- kind: how its codes come about. code: the one code of a standalone or automatic campaign. issuing: what codes look
-- like that are issued one by one, and how many lie ready. started_at, ended_at: when it was told that it did.
CREATE TABLE vf.campaigns (
    project_id          uuid NOT NULL REFERENCES vf.projects (id),
    id                  uuid NOT NULL,
    name                text NOT NULL,
    type                text NOT NULL DEFAULT 'DISCOUNT' CHECK (type = 'DISCOUNT'),
    status              text NOT NULL DEFAULT 'active' CHECK (status IN ('draft', 'active', 'paused', 'ended')),
    discount_type       text CHECK (discount_type IN ('PERCENT', 'AMOUNT', 'FIXED', 'FREE_SHIPPING', 'FREE_ITEM')),
    discount_bp         integer CHECK (discount_bp BETWEEN 1 AND 10000),
    discount_minor      bigint CHECK (discount_minor > 0),
    min_order_minor     bigint CHECK (min_order_minor >= 0),
    max_redemptions     bigint CHECK (max_redemptions > 0),
    per_customer_limit  bigint CHECK (per_customer_limit > 0),
    starts_at           timestamptz,
    expires_at          timestamptz,
    metadata            jsonb NOT NULL DEFAULT '{}',
    direct_count        bigint NOT NULL DEFAULT 0 CHECK (direct_count >= 0),
    leased_count        bigint NOT NULL DEFAULT 0 CHECK (leased_count >= 0),
    terms_version       bigint NOT NULL DEFAULT 1,
    created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    promotion           jsonb,
    expires_after_days  integer CHECK (expires_after_days > 0),
    held_count          bigint NOT NULL DEFAULT 0,
    kind                text NOT NULL DEFAULT 'codes'
                        CHECK (kind IN ('codes', 'standalone', 'automatic', 'auto_refill', 'join_once')),
    code                text,
    issuing             jsonb,
    started_at          timestamptz,
    ended_at            timestamptz,
    PRIMARY KEY (project_id, id),
    CONSTRAINT campaigns_code CHECK ((code IS NOT NULL) = (kind IN ('standalone', 'automatic'))),
    CONSTRAINT campaigns_never_over CHECK (direct_count + leased_count <= max_redemptions),
    CONSTRAINT campaigns_held CHECK (held_count BETWEEN 0 AND direct_count),
    CONSTRAINT campaigns_plain CHECK (promotion IS NOT NULL OR discount_type IN ('PERCENT', 'AMOUNT')),
    CONSTRAINT campaigns_window CHECK (starts_at < expires_at)
) WITH (fillfactor = 50);

-- What the clock still has to tell of: a start, an end, a pool that is to be filled.
CREATE INDEX campaigns_to_start ON vf.campaigns (starts_at) WHERE started_at IS NULL AND status = 'active';
CREATE INDEX campaigns_to_end ON vf.campaigns (expires_at) WHERE ended_at IS NULL AND started_at IS NOT NULL;
CREATE INDEX campaigns_with_pools ON vf.campaigns (id) WHERE kind = 'auto_refill' AND status = 'active';

-- promotion: what goes beyond plain terms (core/rules/promotions.py); only where it is NULL redeem_many may decide.
-- direct_count: live redemptions decided here, and live holds, which held_count counts again. leased_count: units out at Redis or won there and live.
-- next_number only ever rises: a direct redemption's number is its seq.
-- authority 'flash' while a fast sale's lease is out: then SQL redeems nothing.
-- is_pooled: it lies ready to be issued. holder: whose it is, for their wallet; who may redeem it is said by its rules.
-- flash_sale_id: the strict sale that is armed or open on it. sale_only: made by a sale, sells only inside one.
-- terms_version: raised by every change of what a price was computed from. crowd_version: raised whenever a unit
-- may have come back, so that a "sold out" told to Redis under an older version is void.
CREATE TABLE vf.vouchers (
    project_id          uuid NOT NULL REFERENCES vf.projects (id),
    id                  uuid NOT NULL,
    code                text NOT NULL,
    code_norm           text NOT NULL,
    campaign_id         uuid,
    status              text NOT NULL DEFAULT 'active' CHECK (status IN ('active', 'disabled')),
    discount_type       text CHECK (discount_type IN ('PERCENT', 'AMOUNT', 'FIXED', 'FREE_SHIPPING', 'FREE_ITEM')),
    discount_bp         integer CHECK (discount_bp BETWEEN 1 AND 10000),
    discount_minor      bigint CHECK (discount_minor > 0),
    min_order_minor     bigint CHECK (min_order_minor >= 0),
    max_redemptions     bigint CHECK (max_redemptions > 0),
    per_customer_limit  bigint CHECK (per_customer_limit > 0),
    starts_at           timestamptz,
    expires_at          timestamptz,
    metadata            jsonb NOT NULL DEFAULT '{}',
    direct_count        bigint NOT NULL DEFAULT 0 CHECK (direct_count >= 0),
    leased_count        bigint NOT NULL DEFAULT 0 CHECK (leased_count >= 0),
    next_number         bigint NOT NULL DEFAULT 1 CHECK (next_number > 0),
    authority           text NOT NULL DEFAULT 'pg' CHECK (authority IN ('pg', 'flash')),
    flash_sale_id       uuid,
    sale_only           boolean NOT NULL DEFAULT false,
    terms_version       bigint NOT NULL DEFAULT 1,
    crowd_version       bigint NOT NULL DEFAULT 1,
    created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    promotion           jsonb,
    batch_id            uuid,
    held_count          bigint NOT NULL DEFAULT 0,
    holder              text,
    is_pooled           boolean NOT NULL DEFAULT false,
    PRIMARY KEY (project_id, id),
    CONSTRAINT vouchers_code_key UNIQUE (project_id, code_norm),
    CONSTRAINT vouchers_campaign FOREIGN KEY (project_id, campaign_id)
        REFERENCES vf.campaigns (project_id, id),
    CONSTRAINT vouchers_never_over CHECK (direct_count + leased_count <= max_redemptions),
    CONSTRAINT vouchers_held CHECK (held_count BETWEEN 0 AND direct_count),
    CONSTRAINT vouchers_plain CHECK (promotion IS NOT NULL OR discount_type IN ('PERCENT', 'AMOUNT')),
    CONSTRAINT vouchers_window CHECK (starts_at < expires_at),
    CONSTRAINT vouchers_discount CHECK (campaign_id IS NOT NULL OR discount_type IS NOT NULL)
) WITH (fillfactor = 50);
-- Both are read by the list's filter on status; a redeem changes none of their columns, so it pays for neither.
CREATE INDEX vouchers_disabled ON vf.vouchers (project_id, id) WHERE status = 'disabled';
CREATE INDEX vouchers_expiry ON vf.vouchers (project_id, expires_at);
CREATE INDEX vouchers_of_holder ON vf.vouchers (holder, project_id, id) WHERE holder IS NOT NULL;
CREATE INDEX vouchers_pooled ON vf.vouchers (campaign_id, id) WHERE is_pooled;
CREATE INDEX vouchers_campaign_list ON vf.vouchers (project_id, campaign_id, id) WHERE campaign_id IS NOT NULL;

-- How many live redemptions a customer has of a voucher or a campaign (scope_id), where that is limited.
-- The first index column varies, so that no plan ever walks a hot scope. No foreign key: a count is only written
-- beside a redemption of the same project, or under a row of it that is locked.
CREATE TABLE vf.customer_counts (
    project_id          uuid NOT NULL,
    scope_id            uuid NOT NULL,
    customer_id         text NOT NULL,
    live_count          bigint NOT NULL CHECK (live_count >= 0),
    limit_max           bigint NOT NULL,
    last_redemption_id  uuid NOT NULL,
    PRIMARY KEY (customer_id, scope_id, project_id),
    CONSTRAINT customer_counts_never_over CHECK (live_count <= limit_max)
) WITH (fillfactor = 80);

CREATE INDEX vouchers_of_batch ON vf.vouchers (batch_id, id) WHERE batch_id IS NOT NULL;

-- Vouchers made together. terms: what they have in common, as columns of vf.vouchers. Where made_count is below
-- count_wanted and status is running, the worker makes the rest, a piece a transaction.
CREATE TABLE vf.batches (
    project_id    uuid NOT NULL REFERENCES vf.projects (id),
    id            uuid NOT NULL,
    campaign_id   uuid,
    status        text NOT NULL DEFAULT 'running' CHECK (status IN ('running', 'done', 'cancelled')),
    count_wanted  bigint NOT NULL CHECK (count_wanted > 0),
    made_count    bigint NOT NULL DEFAULT 0 CHECK (made_count BETWEEN 0 AND count_wanted),
    pattern       jsonb NOT NULL,
    terms         jsonb NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at   timestamptz,
    PRIMARY KEY (project_id, id),
    CONSTRAINT batches_campaign FOREIGN KEY (project_id, campaign_id) REFERENCES vf.campaigns (project_id, id),
    CONSTRAINT batches_done CHECK ((status = 'done') = (made_count = count_wanted))
);
CREATE INDEX batches_running ON vf.batches (id) WHERE status = 'running';

-- Sums that are capped, of a voucher or campaign (scope_id): what label adds up, for one customer (subject) or all
-- (empty), in one day, week or month (period) or for ever (empty). reached_at: when it was first found spent.
CREATE TABLE vf.budgets (
    project_id          uuid NOT NULL REFERENCES vf.projects (id),
    scope_id            uuid NOT NULL,
    label               text NOT NULL,
    subject             text NOT NULL,
    period              text NOT NULL,
    used                bigint NOT NULL CHECK (used >= 0),
    used_max            bigint NOT NULL,
    reached_at          timestamptz,
    PRIMARY KEY (subject, period, label, scope_id, project_id),
    CONSTRAINT budgets_never_over CHECK (used <= used_max)
) WITH (fillfactor = 80);

-- A use that is kept for a checkout until expires_at. It is taken of every limit and budget as if it were redeemed;
-- takings says of which budgets. The redemption it becomes has its id.
CREATE TABLE vf.holds (
    project_id      uuid NOT NULL REFERENCES vf.projects (id),
    id              uuid NOT NULL,
    voucher_id      uuid NOT NULL,
    campaign_id     uuid,
    customer_id     text,
    status          text NOT NULL DEFAULT 'held' CHECK (status IN ('held', 'redeemed', 'released', 'expired')),
    discount_minor  bigint NOT NULL CHECK (discount_minor >= 0),
    detail          jsonb NOT NULL,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at      timestamptz NOT NULL,
    ended_at        timestamptz,
    PRIMARY KEY (project_id, id),
    CONSTRAINT holds_voucher FOREIGN KEY (project_id, voucher_id) REFERENCES vf.vouchers (project_id, id),
    CONSTRAINT holds_ended CHECK ((status = 'held') = (ended_at IS NULL))
);
CREATE INDEX holds_due ON vf.holds (expires_at) WHERE status = 'held';
CREATE INDEX holds_of_voucher ON vf.holds (voucher_id, expires_at) WHERE status = 'held';

-- Registered customers, by the shop's own id, which redemptions carry without asking here.
CREATE TABLE vf.customers (
    project_id   uuid NOT NULL REFERENCES vf.projects (id),
    id           uuid NOT NULL,
    customer_id  text NOT NULL,
    name         text,
    email        text,
    attributes   jsonb NOT NULL DEFAULT '{}',
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, id),
    CONSTRAINT customers_customer_id_key UNIQUE (project_id, customer_id)
);

-- Who has a code of a campaign that gives each customer one, and which.
CREATE TABLE vf.campaign_members (
    project_id   uuid NOT NULL,
    campaign_id  uuid NOT NULL,
    customer_id  text NOT NULL,
    voucher_id   uuid NOT NULL,
    joined_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (customer_id, campaign_id, project_id),
    CONSTRAINT campaign_members_campaign FOREIGN KEY (project_id, campaign_id)
        REFERENCES vf.campaigns (project_id, id),
    CONSTRAINT campaign_members_voucher FOREIGN KEY (project_id, voucher_id)
        REFERENCES vf.vouchers (project_id, id) DEFERRABLE INITIALLY DEFERRED
);

-- Groups of customers: a list (rule is NULL), or a rule over what is known of a customer when it is asked.
CREATE TABLE vf.segments (
    project_id  uuid NOT NULL REFERENCES vf.projects (id),
    id          uuid NOT NULL,
    name        text NOT NULL,
    rule        jsonb,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, id),
    CONSTRAINT segments_name_key UNIQUE (project_id, name)
);

-- Who is on the list of a segment.
CREATE TABLE vf.segment_members (
    project_id   uuid NOT NULL,
    segment_id   uuid NOT NULL,
    customer_id  text NOT NULL,
    added_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (customer_id, segment_id, project_id),
    CONSTRAINT segment_members_segment FOREIGN KEY (project_id, segment_id) REFERENCES vf.segments (project_id, id)
);
CREATE INDEX segment_members_list ON vf.segment_members (project_id, segment_id, customer_id);

-- ---------------------------------------------------------------------------------------------
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

-- ---------------------------------------------------------------------------------------------
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

-- ---------------------------------------------------------------------------------------------
-- Flash sales, leases

-- sold_count: live wins of a strict sale. leased_count: a fast sale's units out at Redis or won there and live.
-- status is what was decided by hand or by the clock's keeper; the API also derives scheduled, sold_out and closed from
-- the window and the counts. seq_base: sale-wide numbers start above it. first_stock: what it was made with, before
-- any was added: nobody may have heard "sold out" below it. NULL: made before this was kept. publishable_claims:
-- whether a browser may claim. sold_out_at: when it was told that nothing is left; more stock forgets
-- it.
CREATE TABLE vf.flash_sales (
    project_id          uuid NOT NULL REFERENCES vf.projects (id),
    id                  uuid NOT NULL,
    voucher_id          uuid NOT NULL,
    name                text NOT NULL,
    durability          text NOT NULL DEFAULT 'fast' CHECK (durability IN ('fast', 'strict')),
    status              text NOT NULL DEFAULT 'scheduled'
                        CHECK (status IN ('scheduled', 'open', 'paused', 'closed', 'settled', 'fenced')),
    stock               bigint NOT NULL CHECK (stock BETWEEN 1 AND 1000000000),
    sold_count          bigint NOT NULL DEFAULT 0 CHECK (sold_count >= 0),
    leased_count        bigint NOT NULL DEFAULT 0 CHECK (leased_count >= 0),
    burned_count        bigint NOT NULL DEFAULT 0 CHECK (burned_count >= 0),
    seq_base            bigint NOT NULL DEFAULT 0,
    starts_at           timestamptz,
    ends_at             timestamptz,
    opened_at           timestamptz,
    closed_at           timestamptz,
    created_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    first_stock         bigint,
    publishable_claims  boolean NOT NULL DEFAULT false,
    sold_out_at         timestamptz,
    PRIMARY KEY (project_id, id),
    CONSTRAINT flash_sales_voucher FOREIGN KEY (project_id, voucher_id)
        REFERENCES vf.vouchers (project_id, id),
    CONSTRAINT flash_sales_never_over CHECK (sold_count + leased_count <= stock),
    CONSTRAINT flash_sales_window CHECK (starts_at < ends_at)
) WITH (fillfactor = 50);
CREATE UNIQUE INDEX flash_sales_one_live ON vf.flash_sales (project_id, voucher_id)
    WHERE status IN ('scheduled', 'open', 'paused', 'closed', 'fenced');
CREATE INDEX flash_sales_live ON vf.flash_sales (status) WHERE status NOT IN ('settled');

-- Units moved from a voucher to Redis for one arming. open_to never rises after the lease is settled: it is what
-- PostgreSQL still accepts. tag is the first 8 bytes of every redemption id of the lease. opened_at: when everything
-- it must know was loaded.
CREATE TABLE vf.leases (
    project_id   uuid NOT NULL,
    id           uuid NOT NULL,
    tag          bigint NOT NULL,
    sale_id      uuid NOT NULL,
    voucher_id   uuid NOT NULL,
    campaign_id  uuid,
    state        text NOT NULL DEFAULT 'arming'
                 CHECK (state IN ('arming', 'open', 'draining', 'fenced', 'settled')),
    size         bigint NOT NULL CHECK (size > 0),
    open_to      bigint NOT NULL CHECK (open_to BETWEEN 0 AND size),
    backlog_max  bigint NOT NULL CHECK (backlog_max > 0),
    seq_base     bigint NOT NULL,
    run_id       text NOT NULL,
    pg_lineage   text NOT NULL,
    returned     bigint NOT NULL DEFAULT 0 CHECK (returned >= 0),
    burned       bigint NOT NULL DEFAULT 0 CHECK (burned >= 0),
    fence_reason text,
    armed_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    settled_at   timestamptz,
    opened_at    timestamptz,
    judged       integer NOT NULL DEFAULT 0,
    past_run_ids text[] NOT NULL DEFAULT '{}',
    released     bigint NOT NULL DEFAULT 0 CHECK (released >= 0),
    PRIMARY KEY (project_id, id),
    CONSTRAINT leases_id_key UNIQUE (id),
    CONSTRAINT leases_tag_key UNIQUE (tag),
    CONSTRAINT leases_sale FOREIGN KEY (project_id, sale_id) REFERENCES vf.flash_sales (project_id, id),
    CONSTRAINT leases_voucher FOREIGN KEY (project_id, voucher_id) REFERENCES vf.vouchers (project_id, id)
);
CREATE UNIQUE INDEX leases_one_open ON vf.leases (project_id, voucher_id) WHERE state <> 'settled';

-- Append-only: every size the lease was allowed to grow to.
CREATE TABLE vf.lease_grants (
    project_id  uuid NOT NULL,
    lease_id    uuid NOT NULL,
    size        bigint NOT NULL CHECK (size > 0),
    granted_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (lease_id, size, project_id),
    CONSTRAINT lease_grants_lease FOREIGN KEY (project_id, lease_id) REFERENCES vf.leases (project_id, id)
);

-- Burned numbers whose units an operator gave back. Such a number is no redemption and never becomes one.
CREATE TABLE vf.released_numbers (
    project_id   uuid NOT NULL,
    lease_id     uuid NOT NULL,
    seq          bigint NOT NULL CHECK (seq > 0),
    released_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (lease_id, seq, project_id),
    CONSTRAINT released_numbers_lease FOREIGN KEY (project_id, lease_id) REFERENCES vf.leases (project_id, id)
);

-- How far the stream of a lease is in the ledger. last_id moves only by compare-and-set, in the transaction of the
-- rows it speaks for. read = inserted + replayed + same_key + quarantined, always.
CREATE TABLE vf.lease_progress (
    project_id         uuid NOT NULL,
    lease_id           uuid NOT NULL,
    last_id            text NOT NULL DEFAULT '0-0',
    accounted          bigint NOT NULL DEFAULT 0,
    read_count         bigint NOT NULL DEFAULT 0,
    inserted_count     bigint NOT NULL DEFAULT 0,
    replayed_count     bigint NOT NULL DEFAULT 0,
    same_key_count     bigint NOT NULL DEFAULT 0,
    quarantined_count  bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (lease_id, project_id),
    CONSTRAINT lease_progress_lease FOREIGN KEY (project_id, lease_id) REFERENCES vf.leases (project_id, id),
    CONSTRAINT lease_progress_sum
        CHECK (read_count = inserted_count + replayed_count + same_key_count + quarantined_count)
) WITH (fillfactor = 50);

CREATE TABLE vf.quarantine (
    project_id  uuid NOT NULL,
    id          uuid NOT NULL DEFAULT gen_random_uuid(),
    lease_id    uuid NOT NULL,
    seq         bigint NOT NULL,
    reason      text NOT NULL,
    entry       jsonb NOT NULL,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, id),
    CONSTRAINT quarantine_lease FOREIGN KEY (project_id, lease_id) REFERENCES vf.leases (project_id, id)
);

-- ---------------------------------------------------------------------------------------------
-- The ledger

-- One row a redemption, direct or won. A win draws from its lease; a direct redemption draws from its voucher, whose
-- id then stands in lease_id and whose number is seq, so that one key, PRIMARY KEY (lease_id, seq), makes a
-- double sale impossible to write down in every mode. detail: the order line by line, and what was taken of which budget. returned_minor: the
-- part of the discount that was given back.
-- The list indexes carry a predicate that is always true and that only list statements repeat: no plan of a hot
-- statement can choose them, however stale the statistics of a hot voucher are. (IS NOT NULL would not do: the planner
-- drops it from a query where the column is NOT NULL.)
CREATE TABLE vf.redemptions (
    project_id         uuid NOT NULL,
    lease_id           uuid NOT NULL,
    seq                bigint NOT NULL CHECK (seq > 0),
    granted_size       bigint,
    id                 uuid NOT NULL,
    voucher_id         uuid NOT NULL,
    campaign_id        uuid,
    sale_id            uuid,
    sale_seq           bigint,
    idempotency_key    text NOT NULL,
    fingerprint        bytea NOT NULL,
    customer_id        text,
    order_id           text,
    order_value_minor  bigint NOT NULL CHECK (order_value_minor >= 0),
    discount_minor     bigint NOT NULL CHECK (discount_minor >= 0),
    remaining          bigint,
    metadata           jsonb,
    status             text NOT NULL DEFAULT 'redeemed' CHECK (status IN ('redeemed', 'rolled_back')),
    redeemed_at        timestamptz NOT NULL,
    rolled_back_at     timestamptz,
    rollback_reason    text,
    detail             jsonb,
    returned_minor     bigint,
    PRIMARY KEY (lease_id, seq),
    CONSTRAINT redemptions_key UNIQUE (idempotency_key, voucher_id, project_id),
    CONSTRAINT redemptions_within_grant CHECK (seq <= granted_size),
    CONSTRAINT redemptions_source CHECK ((granted_size IS NULL) = (lease_id = voucher_id)),
    CONSTRAINT redemptions_returned CHECK (returned_minor BETWEEN 1 AND discount_minor),
    CONSTRAINT redemptions_rolled_back CHECK ((status = 'rolled_back') = (rolled_back_at IS NOT NULL))
);
CREATE UNIQUE INDEX redemptions_id ON vf.redemptions (project_id, id) WHERE redeemed_at > '-infinity';
CREATE INDEX redemptions_of_voucher ON vf.redemptions (voucher_id, id) WHERE redeemed_at > '-infinity';
CREATE INDEX redemptions_of_customer ON vf.redemptions (customer_id, project_id, id)
    WHERE customer_id IS NOT NULL AND redeemed_at > '-infinity';
CREATE INDEX redemptions_of_campaign ON vf.redemptions (campaign_id, id)
    WHERE campaign_id IS NOT NULL AND redeemed_at > '-infinity';
-- What an open lease's customers in Redis still have to hear of. Costs a win nothing.
CREATE INDEX redemptions_rolled_back ON vf.redemptions (voucher_id, rolled_back_at) WHERE status = 'rolled_back';
-- A few bytes for every 128 pages: enough for "today".
CREATE INDEX redemptions_by_day ON vf.redemptions USING brin (redeemed_at);
CREATE INDEX redemptions_of_order ON vf.redemptions (order_id, project_id, id)
    WHERE order_id IS NOT NULL AND redeemed_at > '-infinity';

-- ---------------------------------------------------------------------------------------------
-- Figures

-- What redemptions add up to. scope_id: the project itself (kind p), a campaign (c), a flash sale (s) or a voucher (v).
-- grain_s: how many seconds a row is of, from bucket on; 0: of all times. A redemption counts when it was redeemed, also as
-- undone; rolled_back counts when it was undone. returned_minor: parts of discounts that were given back.
CREATE TABLE vf.figures (
    project_id             uuid NOT NULL,
    scope_id               uuid NOT NULL,
    kind                   text NOT NULL CHECK (kind IN ('p', 'c', 's', 'v')),
    grain_s                integer NOT NULL CHECK (grain_s IN (0, 1, 60, 900)),
    bucket                 timestamptz NOT NULL,
    redeemed               bigint NOT NULL,
    discount_minor         bigint NOT NULL,
    order_value_minor      bigint NOT NULL,
    undone                 bigint NOT NULL,
    undone_discount_minor  bigint NOT NULL,
    undone_value_minor     bigint NOT NULL,
    returned_minor         bigint NOT NULL,
    rolled_back            bigint NOT NULL,
    PRIMARY KEY (project_id, scope_id, grain_s, bucket)
) WITH (fillfactor = 70);
-- Codes that are redeemed more than once: most of those made by the million are not.
CREATE INDEX figures_top ON vf.figures (project_id, grain_s, bucket, (redeemed - undone), scope_id)
    WHERE kind = 'v' AND redeemed - undone > 1;
CREATE INDEX figures_of_hour ON vf.figures (project_id, bucket, scope_id) WHERE kind = 'v' AND grain_s = 900;
CREATE INDEX figures_age ON vf.figures (grain_s, bucket) WHERE grain_s IN (1, 60) OR kind = 'v' AND grain_s = 900;

-- What was refused, by the code of the reason, and what was only asked (validate, with the reason valid where it would
-- work), by quarter of an hour; added up by each process once a second.
CREATE TABLE vf.attempts (
    project_id  uuid NOT NULL REFERENCES vf.projects (id),
    bucket      timestamptz NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('redeem', 'validate')),
    reason      text NOT NULL,
    count       bigint NOT NULL CHECK (count > 0),
    PRIMARY KEY (project_id, bucket, kind, reason)
);

-- Up to which event the figures go; NULL: what was redeemed before there were events is not added yet. One row.
CREATE TABLE vf.figures_mark (
    only_row  boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    event_id  uuid
);

-- How many vouchers a project has, as the worker counted them up to vf.voucher_mark: active ones, whether their time is over
-- or not, disabled ones, and those of the active whose time was over then.
CREATE TABLE vf.voucher_counts (
    project_id      uuid PRIMARY KEY REFERENCES vf.projects (id),
    active_count    bigint NOT NULL,
    disabled_count  bigint NOT NULL,
    expired_count   bigint NOT NULL
);

-- What the worker has not counted yet: so many vouchers more, or fewer, that are active or not and end then. Written by the
-- statement that makes, changes or deletes vouchers; a redeem changes nothing of it.
CREATE TABLE vf.voucher_changes (
    project_id  uuid NOT NULL,
    id          bigint GENERATED ALWAYS AS IDENTITY,
    is_active   boolean NOT NULL,
    expires_at  timestamptz NOT NULL,
    count       bigint NOT NULL CHECK (count <> 0),
    PRIMARY KEY (project_id, id)
);

-- Up to when those whose time is over are counted; NULL: what there was before changes were written is not counted yet.
-- One row.
CREATE TABLE vf.voucher_mark (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    expired_to  timestamptz
);

-- ---------------------------------------------------------------------------------------------
-- Fraud

-- What a project changed of the rules (core/rules/fraud.py): those that are not in here are as they come.
CREATE TABLE vf.fraud_rules (
    project_id  uuid PRIMARY KEY REFERENCES vf.projects (id),
    rules       jsonb NOT NULL,
    version     bigint NOT NULL DEFAULT 1,
    updated_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- What a rule found, once for a subject and window. subject: a customer, a code, the keyed hash of an address or device, or
-- an id, as subject_kind says. observed, expected: the largest seen in that window, and where the rule begins.
CREATE TABLE vf.fraud_alerts (
    project_id      uuid NOT NULL REFERENCES vf.projects (id),
    id              uuid NOT NULL,
    rule            text NOT NULL,
    subject_kind    text NOT NULL CHECK (subject_kind IN ('customer', 'code', 'address', 'device', 'campaign',
                                                          'redemption')),
    subject         text NOT NULL,
    window_at       timestamptz NOT NULL,
    at              timestamptz NOT NULL,
    score           integer NOT NULL CHECK (score BETWEEN 1 AND 100),
    observed        bigint NOT NULL,
    expected        bigint NOT NULL,
    reasons         jsonb NOT NULL,
    redemption_ids  uuid[] NOT NULL DEFAULT '{}',
    action          text NOT NULL CHECK (action IN ('alert', 'review', 'block')),
    status          text NOT NULL DEFAULT 'open' CHECK (status IN ('open', 'acknowledged', 'dismissed', 'confirmed')),
    note            text,
    decided_by      text,
    decided_at      timestamptz,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (project_id, id),
    CONSTRAINT fraud_alerts_once UNIQUE (subject, rule, window_at, subject_kind, project_id),
    CONSTRAINT fraud_alerts_decided CHECK ((status = 'open') = (decided_at IS NULL))
);
CREATE INDEX fraud_alerts_by_time ON vf.fraud_alerts (project_id, at);
CREATE INDEX fraud_alerts_undecided ON vf.fraud_alerts (project_id, id) WHERE status IN ('open', 'acknowledged');

-- Who and what is refused, until expires_at. value: the shop's id of a customer, a code as it is compared, or the keyed hash of
-- an address or device. A project without a row here pays for one look at an index, a batch.
CREATE TABLE vf.blocks (
    project_id  uuid NOT NULL REFERENCES vf.projects (id),
    id          uuid NOT NULL,
    kind        text NOT NULL CHECK (kind IN ('customer', 'code', 'address', 'device')),
    value       text NOT NULL,
    reason      text,
    alert_id    uuid,
    created_by  text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at  timestamptz,
    PRIMARY KEY (project_id, kind, value),
    CONSTRAINT blocks_id_key UNIQUE (project_id, id),
    CONSTRAINT blocks_alert FOREIGN KEY (project_id, alert_id) REFERENCES vf.fraud_alerts (project_id, id)
);
CREATE INDEX blocks_due ON vf.blocks (expires_at) WHERE expires_at IS NOT NULL;

-- Append-only: what was refused, to whom, written down by each process once a second; numbers rise in the order of commits.
-- code: a keyed hash. address, device: as in vf.blocks.
CREATE TABLE vf.fraud_signals (
    project_id   uuid NOT NULL REFERENCES vf.projects (id),
    number       bigint GENERATED ALWAYS AS IDENTITY,
    at           timestamptz NOT NULL,
    reason       text NOT NULL,
    code         text NOT NULL,
    customer_id  text,
    address      text,
    device       text,
    PRIMARY KEY (number, project_id)
);
CREATE INDEX fraud_signals_by_time ON vf.fraud_signals (project_id, at);
CREATE INDEX fraud_signals_of_customer ON vf.fraud_signals (customer_id, project_id) WHERE customer_id IS NOT NULL;

-- Up to which event and which signal the rules have looked. One row.
CREATE TABLE vf.fraud_mark (
    only_row       boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    event_id       uuid NOT NULL DEFAULT '00000000-0000-0000-0000-000000000000',
    signal_number  bigint NOT NULL DEFAULT 0
);

-- ---------------------------------------------------------------------------------------------
-- Processes (no tenant's data)

-- API workers that are alive: `open` waits for each of them to serve the sale.
CREATE UNLOGGED TABLE vf.api_workers (
    id         text PRIMARY KEY,
    node_id    text NOT NULL,
    beat_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- Workers registered for a lease: written before the first claim they send. A seal says "this worker answers no win
-- of this lease from Redis run sealed_run_id until PostgreSQL has decided, and the highest it answered is mark"; a
-- seal without a mark says that it cannot know.
CREATE TABLE vf.lease_workers (
    lease_id       uuid NOT NULL,
    worker_id      text NOT NULL,
    node_id        text NOT NULL,
    serving_size   bigint NOT NULL DEFAULT 0,
    sealed_run_id  text,
    mark           bigint,
    registered_at  timestamptz NOT NULL DEFAULT now(),
    seen_at        timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (lease_id, worker_id)
);

-- What the last look at the books found, an invariant a row, over all projects: /metrics shows it.
CREATE TABLE vf.verifications (
    invariant   text PRIMARY KEY,
    violations  bigint NOT NULL CHECK (violations >= 0),
    elapsed_ms  bigint NOT NULL,
    checked_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The history (vf.lineage()) whose books hold everything Redis was told they hold. Another one, or a reason in
-- held_for, and redeeming waits for `recover`. One row.
CREATE TABLE vf.history (
    only_row    boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    lineage     text NOT NULL,
    held_for    text,
    changed_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- ---------------------------------------------------------------------------------------------
-- The wall between projects

DO $$
DECLARE
    t regclass;
BEGIN
    FOR t IN
        SELECT a.attrelid::regclass FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
         WHERE c.relnamespace = 'vf'::regnamespace AND c.relkind = 'r' AND a.attname = 'project_id'
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', t);
        EXECUTE format(
            'CREATE POLICY of_project ON %s TO vf_app '
            'USING (project_id = (SELECT nullif(current_setting(''app.project_id'', true), '''')::uuid)) '
            'WITH CHECK (project_id = (SELECT nullif(current_setting(''app.project_id'', true), '''')::uuid))', t);
        EXECUTE format('CREATE POLICY of_operator ON %s TO vf_worker USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE ON %s TO vf_app, vf_worker', t);
        EXECUTE format('CREATE POLICY of_deletion ON %s TO vf_definer USING (project_id IN (SELECT p.id FROM vf.projects p '
                       'WHERE p.status = ''deleting''))', t);
        EXECUTE format('GRANT SELECT, DELETE ON %s TO vf_definer', t);
    END LOOP;
END $$;

ALTER TABLE vf.projects ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.projects FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.projects TO vf_app
    USING (id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.projects TO vf_worker USING (true) WITH CHECK (true);
GRANT SELECT ON vf.projects TO vf_app;
GRANT SELECT, INSERT, UPDATE ON vf.projects, vf.accounts, vf.users TO vf_worker;
-- Accounts belong to no project: vf_app reaches what is theirs by functions alone.
ALTER TABLE vf.deleted_usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.deleted_usage FORCE ROW LEVEL SECURITY;
ALTER TABLE vf.plan_changes ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.plan_changes FORCE ROW LEVEL SECURITY;
ALTER TABLE vf.invoices ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.invoices FORCE ROW LEVEL SECURITY;
CREATE POLICY of_operator ON vf.plan_changes TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_operator ON vf.invoices TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.deleted_usage TO vf_definer USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.plan_changes TO vf_definer USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.invoices TO vf_definer USING (true);
GRANT SELECT, INSERT ON vf.plan_changes, vf.invoices TO vf_worker;

REVOKE UPDATE ON vf.audit_log, vf.lease_grants, vf.outbox, vf.quarantine, vf.released_numbers FROM vf_app, vf_worker;
REVOKE UPDATE ON vf.gift_card_transactions, vf.gift_card_entries, vf.gift_card_payments FROM vf_app, vf_worker;
REVOKE UPDATE ON vf.referral_history FROM vf_app, vf_worker;
REVOKE INSERT, UPDATE ON vf.events FROM vf_app;
REVOKE INSERT, UPDATE ON vf.notices FROM vf_app;
REVOKE UPDATE ON vf.notices FROM vf_worker;
REVOKE UPDATE ON vf.events FROM vf_worker;
REVOKE UPDATE ON vf.delivery_attempts FROM vf_app, vf_worker;
REVOKE INSERT, UPDATE ON vf.figures, vf.attempts, vf.voucher_counts, vf.voucher_changes FROM vf_app;
REVOKE INSERT, UPDATE ON vf.voucher_changes FROM vf_worker;
REVOKE INSERT ON vf.fraud_alerts FROM vf_app;
REVOKE INSERT, UPDATE ON vf.fraud_signals FROM vf_app, vf_worker;
GRANT UPDATE (reason) ON vf.gift_card_transactions TO vf_app;
GRANT UPDATE (data) ON vf.events, vf.outbox TO vf_app;
GRANT UPDATE (body) ON vf.delivery_attempts TO vf_app;
GRANT UPDATE (entry) ON vf.quarantine TO vf_app;
GRANT DELETE ON vf.idempotency_keys, vf.failed_lookups, vf.outbox, vf.events, vf.deliveries, vf.figures TO vf_worker;
GRANT DELETE ON vf.customers, vf.segment_members, vf.referral_identifiers TO vf_app, vf_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON vf.api_workers, vf.lease_workers TO vf_app, vf_worker;
GRANT SELECT ON vf.verifications TO vf_app;
GRANT SELECT, INSERT, UPDATE ON vf.verifications TO vf_worker;
GRANT SELECT ON vf.history TO vf_app, vf_worker;
GRANT UPDATE ON vf.history TO vf_worker;
GRANT SELECT, UPDATE ON vf.event_clock TO vf_worker;
GRANT SELECT ON vf.figures_mark TO vf_app;
GRANT SELECT, UPDATE ON vf.figures_mark TO vf_worker;
GRANT SELECT ON vf.voucher_mark TO vf_app;
GRANT SELECT, UPDATE ON vf.voucher_mark TO vf_worker;
GRANT DELETE ON vf.voucher_changes TO vf_worker;
GRANT DELETE ON vf.blocks, vf.fraud_signals TO vf_app, vf_worker;
GRANT SELECT, UPDATE ON vf.fraud_mark TO vf_worker;

-- Functions that must look across projects are owned by vf_definer, which sees these tables and no others.
CREATE POLICY of_definer ON vf.api_keys TO vf_definer USING (true);
CREATE POLICY of_definer ON vf.projects TO vf_definer USING (true);
CREATE POLICY of_definer ON vf.leases TO vf_definer USING (true);
CREATE POLICY of_definer ON vf.vouchers TO vf_definer USING (true);
CREATE POLICY of_definer ON vf.flash_sales TO vf_definer USING (true);
GRANT SELECT ON vf.api_keys, vf.projects, vf.leases, vf.vouchers, vf.flash_sales TO vf_definer;
GRANT UPDATE (last_used_at) ON vf.api_keys TO vf_definer;
CREATE POLICY of_definer ON vf.usage_hours TO vf_definer USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.redemptions FOR SELECT TO vf_definer USING (true);
CREATE POLICY of_definer ON vf.fraud_signals FOR INSERT TO vf_definer WITH CHECK (true);
GRANT INSERT ON vf.fraud_signals TO vf_definer;
CREATE POLICY of_definer ON vf.lease_progress FOR SELECT TO vf_definer USING (true);
GRANT SELECT, INSERT, UPDATE ON vf.deleted_usage TO vf_definer;
GRANT SELECT ON vf.redemptions, vf.lease_progress, vf.invoices TO vf_definer;
GRANT SELECT, INSERT ON vf.plan_changes TO vf_definer;
GRANT SELECT, INSERT, UPDATE ON vf.usage_hours TO vf_definer;
CREATE POLICY of_definer ON vf.events FOR SELECT TO vf_definer USING (true);
CREATE POLICY of_definer ON vf.attempts TO vf_definer USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.voucher_changes FOR INSERT TO vf_definer WITH CHECK (true);
GRANT INSERT ON vf.voucher_changes TO vf_definer;
GRANT SELECT, INSERT, UPDATE ON vf.attempts TO vf_definer;
GRANT UPDATE (changed_at) ON vf.api_keys TO vf_definer;

-- Nobody who may add to an audit log may move its head.
REVOKE INSERT, UPDATE ON vf.audit_heads FROM vf_app, vf_worker;
CREATE POLICY of_definer ON vf.audit_heads TO vf_definer USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON vf.audit_heads TO vf_definer;

-- People belong to no project: vf_app reaches them by the functions below alone.
ALTER TABLE vf.sessions ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.sessions FORCE ROW LEVEL SECURITY;
CREATE POLICY of_operator ON vf.sessions TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.sessions TO vf_definer USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.memberships TO vf_definer USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON vf.sessions TO vf_worker;
GRANT SELECT, INSERT, UPDATE ON vf.sessions, vf.accounts, vf.users TO vf_definer;
GRANT SELECT, INSERT ON vf.memberships TO vf_definer;
GRANT INSERT ON vf.projects TO vf_definer;
GRANT DELETE ON vf.memberships TO vf_app;
GRANT UPDATE (name, currency, time_zone, status, rollback_window_s, mail_at_percent, archived_at, deleting_at)
    ON vf.projects TO vf_app;
GRANT DELETE ON vf.projects TO vf_definer;
-- To lock a row: the project's own, and, for the trigger that keeps grants, their lease's.
GRANT UPDATE (status) ON vf.projects TO vf_definer;
GRANT UPDATE (state) ON vf.leases TO vf_definer;
ALTER TABLE vf.deleted_projects ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.deleted_projects FORCE ROW LEVEL SECURITY;
CREATE POLICY of_operator ON vf.deleted_projects TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.deleted_projects TO vf_definer USING (true) WITH CHECK (true);
GRANT SELECT, INSERT ON vf.deleted_projects TO vf_definer;
GRANT SELECT ON vf.deleted_projects TO vf_worker;

ALTER TABLE vf.password_resets ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.password_resets FORCE ROW LEVEL SECURITY;
CREATE POLICY of_operator ON vf.password_resets TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.password_resets TO vf_definer USING (true) WITH CHECK (true);
GRANT SELECT, DELETE ON vf.password_resets TO vf_worker;
GRANT SELECT, INSERT, UPDATE ON vf.password_resets TO vf_definer;
CREATE POLICY of_definer ON vf.invitations TO vf_definer USING (true);

-- ---------------------------------------------------------------------------------------------
-- Looking across projects

-- Who presents the key with this digest; no row for an unknown, revoked or expired one, or in a project put away.
CREATE FUNCTION vf.authenticate(p_digest bytea)
RETURNS TABLE (key_id uuid, project_id uuid, account_id uuid, kind text, currency text, scopes text[],
               origins text[], expires_at timestamptz, plan text, rate_limit jsonb)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.id, k.project_id, p.account_id, k.kind, p.currency, k.scopes, k.origins, k.expires_at, a.plan, k.rate_limit
      FROM vf.api_keys k JOIN vf.projects p ON p.id = k.project_id JOIN vf.accounts a ON a.id = p.account_id
     WHERE k.digest = p_digest AND k.revoked_at IS NULL AND p.status = 'active'
       AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
$$;

-- Digests of keys that were revoked or changed since an instant, for the caches of keys.
CREATE FUNCTION vf.revoked_since(p_since timestamptz)
RETURNS TABLE (digest bytea, revoked_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.digest, k.revoked_at FROM vf.api_keys k WHERE k.revoked_at >= p_since
    UNION SELECT k.digest, k.revoked_at FROM vf.api_keys k WHERE k.changed_at >= p_since
$$;

-- Says that keys were used, once a minute each.
CREATE FUNCTION vf.touch_keys(p_ids uuid[])
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE vf.api_keys k SET last_used_at = clock_timestamp()
     WHERE k.id = ANY (p_ids) AND (k.last_used_at IS NULL OR k.last_used_at < clock_timestamp() - interval '1 minute')
$$;

-- Every lease that is out, for the workers that serve claims.
CREATE FUNCTION vf.live_leases()
RETURNS TABLE (project_id uuid, sale_id uuid, voucher_id uuid, lease_id uuid, tag bigint, state text,
               size bigint, seq_base bigint, run_id text, judged integer, code_norm text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT l.project_id, l.sale_id, l.voucher_id, l.id, l.tag, l.state, l.size, l.seq_base, l.run_id, l.judged, v.code_norm
      FROM vf.leases l JOIN vf.vouchers v ON v.project_id = l.project_id AND v.id = l.voucher_id
     WHERE l.state <> 'settled'
$$;

-- ---------------------------------------------------------------------------------------------
-- The audit log

-- What an entry is sealed with: all it says, and the seal of the entry before it.
CREATE FUNCTION vf.audit_hash(p_before bytea, p_entry vf.audit_log) RETURNS bytea LANGUAGE sql IMMUTABLE
AS $$
    SELECT sha256(p_before || convert_to(jsonb_build_array(
        p_entry.project_id, p_entry.number, p_entry.id, p_entry.actor, p_entry.action, p_entry.target, p_entry.detail,
        p_entry.before, p_entry.after, p_entry.address, p_entry.request_id, extract(epoch FROM p_entry.at))::text, 'UTF8'))
$$;

-- Numbers an entry and chains it to the one before. Entries of a project wait for each other until the commit, so they
-- are written last in their transactions.
CREATE FUNCTION vf.chain_audit() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    head vf.audit_heads;
BEGIN
    INSERT INTO vf.audit_heads AS h (project_id, number, hash) VALUES (NEW.project_id, 0, '')
        ON CONFLICT (project_id) DO UPDATE SET number = h.number
        RETURNING h.* INTO head;
    NEW.number := head.number + 1;
    NEW.at := clock_timestamp();
    NEW.hash := vf.audit_hash(head.hash, NEW);
    UPDATE vf.audit_heads h SET number = NEW.number, hash = NEW.hash WHERE h.project_id = NEW.project_id;
    RETURN NEW;
END $$;
CREATE TRIGGER audit_log_chain BEFORE INSERT ON vf.audit_log FOR EACH ROW EXECUTE FUNCTION vf.chain_audit();

-- ---------------------------------------------------------------------------------------------
-- People

-- A new person with an account of their own. An e-mail that is taken violates users_email_key.
CREATE FUNCTION vf.sign_up(p_user uuid, p_account uuid, p_email text, p_name text, p_password_hash text)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO vf.accounts (id, name) VALUES (p_account, coalesce(p_name, p_email));
    INSERT INTO vf.users (id, account_id, email, name, password_hash)
    VALUES (p_user, p_account, p_email, p_name, p_password_hash);
$$;

-- A new project of a person's account, which they own.
CREATE FUNCTION vf.create_project(p_user uuid, p_project uuid, p_name text, p_currency text, p_time_zone text)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO vf.projects (id, account_id, name, currency, time_zone)
    SELECT p_project, u.account_id, p_name, p_currency, p_time_zone FROM vf.users u WHERE u.id = p_user;
    INSERT INTO vf.memberships (project_id, user_id, role) VALUES (p_project, p_user, 'owner');
$$;

-- What a log-in is checked against.
CREATE FUNCTION vf.person_by_email(p_email text)
RETURNS TABLE (user_id uuid, password_hash text, totp_nonce bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT u.id, u.password_hash, CASE WHEN u.totp_since IS NOT NULL THEN u.totp_nonce END
      FROM vf.users u WHERE u.email = p_email
$$;

-- A new session; the one before it on the same browser ends.
CREATE FUNCTION vf.open_session(p_id uuid, p_user uuid, p_digest bytea, p_replaces bytea, p_address text, p_agent text,
                                p_life interval)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE vf.sessions s SET ended_at = clock_timestamp() WHERE s.digest = p_replaces AND s.ended_at IS NULL;
    INSERT INTO vf.sessions (id, user_id, digest, address, agent, expires_at)
    VALUES (p_id, p_user, p_digest, p_address, p_agent, clock_timestamp() + p_life);
$$;

-- Whose session this is, nothing where it has ended. That it was used is written once a minute.
CREATE FUNCTION vf.use_session(p_digest bytea, p_idle interval)
RETURNS TABLE (session_id uuid, user_id uuid, email text, name text, has_second_factor boolean, created_at timestamptz,
               expires_at timestamptz, is_email_confirmed boolean)
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE vf.sessions s SET seen_at = clock_timestamp()
     WHERE s.digest = p_digest AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()
       AND s.seen_at > clock_timestamp() - p_idle AND s.seen_at < clock_timestamp() - interval '1 minute';
    SELECT s.id, u.id, u.email, u.name, u.totp_since IS NOT NULL, s.created_at, s.expires_at, u.email_confirmed_at IS NOT NULL
      FROM vf.sessions s JOIN vf.users u ON u.id = s.user_id
     WHERE s.digest = p_digest AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()
       AND s.seen_at > clock_timestamp() - p_idle;
$$;

-- Says that a person's e-mail is theirs; whether there is such a person.
CREATE FUNCTION vf.confirm_email(p_user uuid)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    UPDATE vf.users u SET email_confirmed_at = coalesce(u.email_confirmed_at, clock_timestamp()) WHERE u.id = p_user;
    RETURN FOUND;
END $$;

-- Where a person may do something, and what.
CREATE FUNCTION vf.projects_of(p_user uuid)
RETURNS TABLE (project_id uuid, name text, currency text, time_zone text, status text, role text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT p.id, p.name, p.currency, p.time_zone, p.status, m.role
      FROM vf.memberships m JOIN vf.projects p ON p.id = m.project_id
     WHERE m.user_id = p_user
     ORDER BY p.id
$$;

-- A person's sessions that have not ended, newest first.
CREATE FUNCTION vf.sessions_of(p_user uuid, p_idle interval)
RETURNS TABLE (id uuid, address text, agent text, created_at timestamptz, seen_at timestamptz, expires_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT s.id, s.address, s.agent, s.created_at, s.seen_at, s.expires_at
      FROM vf.sessions s
     WHERE s.user_id = p_user AND s.ended_at IS NULL AND s.expires_at > clock_timestamp()
       AND s.seen_at > clock_timestamp() - p_idle
     ORDER BY s.id DESC
$$;

-- What a person's own password is checked against.
CREATE FUNCTION vf.credentials_of(p_user uuid)
RETURNS TABLE (user_id uuid, password_hash text, totp_nonce bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT u.id, u.password_hash, u.totp_nonce FROM vf.users u WHERE u.id = p_user
$$;

-- Sets a new password.
CREATE FUNCTION vf.set_password(p_user uuid, p_password_hash text)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE vf.users u SET password_hash = p_password_hash WHERE u.id = p_user
$$;

-- Lets who has an e-mail set a new password; false where nobody has it. What was let before is void.
CREATE FUNCTION vf.allow_reset(p_email text, p_digest bytea, p_life interval)
RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE vf.password_resets r SET used_at = clock_timestamp()
      FROM vf.users u WHERE u.email = p_email AND r.user_id = u.id AND r.used_at IS NULL;
    WITH allowed AS (
        INSERT INTO vf.password_resets (digest, user_id, expires_at)
        SELECT p_digest, u.id, clock_timestamp() + p_life FROM vf.users u WHERE u.email = p_email
        RETURNING 1)
    SELECT EXISTS (SELECT FROM allowed)
$$;

-- Sets a new password, once, and ends all sessions; false where it is not allowed, or not any more.
CREATE FUNCTION vf.use_reset(p_digest bytea, p_password_hash text)
RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_user uuid;
BEGIN
    UPDATE vf.password_resets r SET used_at = clock_timestamp()
     WHERE r.digest = p_digest AND r.used_at IS NULL AND r.expires_at > clock_timestamp()
    RETURNING r.user_id INTO v_user;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE vf.users u SET password_hash = p_password_hash WHERE u.id = v_user;
    UPDATE vf.sessions s SET ended_at = clock_timestamp() WHERE s.user_id = v_user AND s.ended_at IS NULL;
    RETURN true;
END $$;

-- Gives a person a second factor that is still to be confirmed, or takes theirs away (no nonce).
CREATE FUNCTION vf.set_second_factor(p_user uuid, p_nonce bytea)
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    UPDATE vf.users u SET totp_nonce = p_nonce, totp_since = NULL, totp_step = 0, recovery_codes = '{}' WHERE u.id = p_user
$$;

-- Confirms a second factor, once.
CREATE FUNCTION vf.confirm_second_factor(p_user uuid, p_nonce bytea, p_codes bytea[])
RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH confirmed AS (
        UPDATE vf.users u SET totp_since = clock_timestamp(), recovery_codes = p_codes
         WHERE u.id = p_user AND u.totp_nonce = p_nonce AND u.totp_since IS NULL
        RETURNING 1)
    SELECT EXISTS (SELECT FROM confirmed)
$$;

-- Takes a code of a second factor: a time step that is later than any taken before, or one of the recovery codes.
CREATE FUNCTION vf.use_second_factor(p_user uuid, p_step bigint, p_recovery bytea)
RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH taken AS (
        UPDATE vf.users u SET totp_step = coalesce(p_step, u.totp_step),
                              recovery_codes = array_remove(u.recovery_codes, p_recovery)
         WHERE u.id = p_user AND (p_step > u.totp_step OR p_recovery = ANY (u.recovery_codes))
        RETURNING 1)
    SELECT EXISTS (SELECT FROM taken)
$$;

-- The invitation with this digest that is still good.
CREATE FUNCTION vf.invitation_by_digest(p_digest bytea)
RETURNS TABLE (project_id uuid, id uuid, email text, role text, project_name text, currency text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT i.project_id, i.id, i.email, i.role, p.name, p.currency
      FROM vf.invitations i JOIN vf.projects p ON p.id = i.project_id
     WHERE i.digest = p_digest AND i.accepted_at IS NULL AND i.revoked_at IS NULL
       AND i.expires_at > clock_timestamp() AND p.status = 'active'
$$;

-- A project keeps an owner until it is deleted. Its row is locked, so two cannot both be the last to go.
CREATE FUNCTION vf.keep_an_owner() RETURNS trigger LANGUAGE plpgsql
AS $$
DECLARE
    v_status text;
BEGIN
    SELECT p.status INTO v_status FROM vf.projects p WHERE p.id = OLD.project_id FOR NO KEY UPDATE;
    IF v_status <> 'deleting' AND NOT EXISTS (
        SELECT FROM vf.memberships m WHERE m.project_id = OLD.project_id AND m.role = 'owner') THEN
        RAISE EXCEPTION 'the project has no other owner'
              USING ERRCODE = 'check_violation', CONSTRAINT = 'memberships_one_owner', TABLE = 'memberships', SCHEMA = 'vf';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER memberships_one_owner AFTER DELETE OR UPDATE ON vf.memberships
    FOR EACH ROW WHEN (OLD.role = 'owner') EXECUTE FUNCTION vf.keep_an_owner();

-- Deletes up to p_rows_max rows of a project that is being deleted, children before parents, and says how many. When
-- nothing is left the project itself goes, and the answer is 0.
CREATE FUNCTION vf.purge_project(p_project uuid, p_rows_max bigint)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    t regclass;
    v_count bigint;
    v_total bigint := 0;
    v_waits boolean := false;
BEGIN
    PERFORM 1 FROM vf.projects p WHERE p.id = p_project AND p.status = 'deleting' FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN 0;
    END IF;
    SET CONSTRAINTS ALL IMMEDIATE;
    FOR t IN
        SELECT c.oid::regclass FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'project_id'
         WHERE c.relnamespace = 'vf'::regnamespace AND c.relkind = 'r' AND NOT a.attisdropped
         ORDER BY c.relname
    LOOP
        EXIT WHEN v_total >= p_rows_max;
        BEGIN
            EXECUTE format('DELETE FROM %s WHERE ctid = ANY (ARRAY(SELECT k.ctid FROM %s k WHERE k.project_id = $1 LIMIT $2))',
                           t, t) USING p_project, p_rows_max - v_total;
            GET DIAGNOSTICS v_count = ROW_COUNT;
            v_total := v_total + v_count;
        EXCEPTION WHEN foreign_key_violation THEN
            v_waits := true;
        END;
    END LOOP;
    IF v_total = 0 THEN
        ASSERT NOT v_waits, 'rows of the project keep each other';
        INSERT INTO vf.deleted_projects (id, account_id, name, deleting_at)
        SELECT p.id, p.account_id, p.name, p.deleting_at FROM vf.projects p WHERE p.id = p_project;
        DELETE FROM vf.projects p WHERE p.id = p_project;
    END IF;
    RETURN v_total;
END $$;

-- Who is in the project that was entered.
CREATE FUNCTION vf.members()
RETURNS TABLE (user_id uuid, email text, name text, role text, created_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT u.id, u.email, u.name, m.role, m.created_at
      FROM vf.memberships m JOIN vf.users u ON u.id = m.user_id
     WHERE m.project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid)
     ORDER BY m.created_at, u.id
$$;

-- Ends sessions of a person: one, or all but one; true where it ended any.
CREATE FUNCTION vf.end_sessions(p_user uuid, p_one uuid, p_but uuid)
RETURNS boolean
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH ended AS (
        UPDATE vf.sessions s SET ended_at = clock_timestamp()
         WHERE s.user_id = p_user AND s.ended_at IS NULL
           AND (p_one IS NULL OR s.id = p_one) AND (p_but IS NULL OR s.id <> p_but)
        RETURNING 1)
    SELECT EXISTS (SELECT FROM ended)
$$;

GRANT CREATE ON SCHEMA vf TO vf_definer;
ALTER FUNCTION vf.authenticate(bytea) OWNER TO vf_definer;
ALTER FUNCTION vf.revoked_since(timestamptz) OWNER TO vf_definer;
ALTER FUNCTION vf.touch_keys(uuid[]) OWNER TO vf_definer;
ALTER FUNCTION vf.live_leases() OWNER TO vf_definer;
ALTER FUNCTION vf.chain_audit() OWNER TO vf_definer;
ALTER FUNCTION vf.sign_up(uuid, uuid, text, text, text) OWNER TO vf_definer;
ALTER FUNCTION vf.create_project(uuid, uuid, text, text, text) OWNER TO vf_definer;
ALTER FUNCTION vf.person_by_email(text) OWNER TO vf_definer;
ALTER FUNCTION vf.open_session(uuid, uuid, bytea, bytea, text, text, interval) OWNER TO vf_definer;
ALTER FUNCTION vf.use_session(bytea, interval) OWNER TO vf_definer;
ALTER FUNCTION vf.confirm_email(uuid) OWNER TO vf_definer;
ALTER FUNCTION vf.projects_of(uuid) OWNER TO vf_definer;
ALTER FUNCTION vf.end_sessions(uuid, uuid, uuid) OWNER TO vf_definer;
ALTER FUNCTION vf.members() OWNER TO vf_definer;
ALTER FUNCTION vf.sessions_of(uuid, interval) OWNER TO vf_definer;
ALTER FUNCTION vf.credentials_of(uuid) OWNER TO vf_definer;
ALTER FUNCTION vf.set_password(uuid, text) OWNER TO vf_definer;
ALTER FUNCTION vf.allow_reset(text, bytea, interval) OWNER TO vf_definer;
ALTER FUNCTION vf.use_reset(bytea, text) OWNER TO vf_definer;
ALTER FUNCTION vf.set_second_factor(uuid, bytea) OWNER TO vf_definer;
ALTER FUNCTION vf.confirm_second_factor(uuid, bytea, bytea[]) OWNER TO vf_definer;
ALTER FUNCTION vf.use_second_factor(uuid, bigint, bytea) OWNER TO vf_definer;
ALTER FUNCTION vf.invitation_by_digest(bytea) OWNER TO vf_definer;
ALTER FUNCTION vf.purge_project(uuid, bigint) OWNER TO vf_definer;
REVOKE CREATE ON SCHEMA vf FROM vf_definer;

-- ---------------------------------------------------------------------------------------------
-- Plans and usage

-- After how many redemptions a month a plan stops; NULL: it goes on.
CREATE FUNCTION vf.redemptions_until_stop(p_plan text) RETURNS bigint LANGUAGE sql IMMUTABLE
AS $$ SELECT CASE p_plan WHEN 'free' THEN 500 END $$;

-- How many projects a plan has room for; NULL: any number.
CREATE FUNCTION vf.projects_of_plan(p_plan text) RETURNS bigint LANGUAGE sql IMMUTABLE
AS $$ SELECT CASE p_plan WHEN 'free' THEN 1 WHEN 'starter' THEN 2 WHEN 'growth' THEN 5 END $$;

-- An account has no more projects at work than its plan has room for. Its row is locked, so two cannot both be the last.
CREATE FUNCTION vf.project_within_plan() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_room bigint;
BEGIN
    SELECT vf.projects_of_plan(a.plan) INTO v_room FROM vf.accounts a WHERE a.id = NEW.account_id FOR NO KEY UPDATE;
    IF (SELECT count(*) FROM vf.projects p WHERE p.account_id = NEW.account_id AND p.status = 'active') > v_room THEN
        RAISE EXCEPTION 'the plan has room for % projects', v_room
              USING ERRCODE = 'check_violation', CONSTRAINT = 'projects_within_plan';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER projects_within_plan AFTER INSERT OR UPDATE OF status ON vf.projects
    FOR EACH ROW WHEN (NEW.status = 'active') EXECUTE FUNCTION vf.project_within_plan();

-- What a project that is deleted has used stays its account's.
CREATE FUNCTION vf.keep_deleted_usage() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF TG_TABLE_NAME = 'redemptions' THEN
        INSERT INTO vf.deleted_usage AS u (account_id, hour, call_count, redemption_count)
        SELECT p.account_id, date_trunc('hour', r.redeemed_at, 'UTC'), 0, count(*)
          FROM gone r JOIN vf.projects p ON p.id = r.project_id JOIN vf.accounts a ON a.id = p.account_id
         GROUP BY 1, 2 ORDER BY 1, 2
            ON CONFLICT (account_id, hour) DO UPDATE SET redemption_count = u.redemption_count + excluded.redemption_count;
    ELSE
        INSERT INTO vf.deleted_usage AS u (account_id, hour, call_count, redemption_count)
        SELECT p.account_id, g.hour, sum(g.call_count), 0
          FROM gone g JOIN vf.projects p ON p.id = g.project_id JOIN vf.accounts a ON a.id = p.account_id
         GROUP BY 1, 2 ORDER BY 1, 2
            ON CONFLICT (account_id, hour) DO UPDATE SET call_count = u.call_count + excluded.call_count;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER redemptions_gone AFTER DELETE ON vf.redemptions REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION vf.keep_deleted_usage();
CREATE TRIGGER usage_hours_gone AFTER DELETE ON vf.usage_hours REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION vf.keep_deleted_usage();

-- How many redemptions a project's account may still have this month, of a plan that stops; NULL: any number. Units
-- that are out at Redis are taken. The ledger of such an account is small: it is walked by its own index.
CREATE FUNCTION vf.quota_rest(p_project uuid)
RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    v_account uuid;
    v_quota bigint;
    v_projects uuid[];
BEGIN
    SELECT a.id, vf.redemptions_until_stop(a.plan), (SELECT array_agg(o.id) FROM vf.projects o WHERE o.account_id = a.id)
      INTO v_account, v_quota, v_projects
      FROM vf.projects p JOIN vf.accounts a ON a.id = p.account_id WHERE p.id = p_project;
    IF v_quota IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN v_quota
         - (SELECT coalesce(sum(u.redemption_count), 0)::bigint FROM vf.deleted_usage u
             WHERE u.account_id = v_account AND u.hour >= date_trunc('month', clock_timestamp(), 'UTC'))
         - (SELECT count(*) FROM vf.redemptions r
             WHERE r.project_id = ANY (v_projects) AND r.redeemed_at > '-infinity'
               AND r.redeemed_at >= date_trunc('month', clock_timestamp(), 'UTC'))
         - (SELECT coalesce(sum(l.size - g.inserted_count), 0)::bigint
              FROM vf.leases l JOIN vf.lease_progress g ON g.project_id = l.project_id AND g.lease_id = l.id
             WHERE l.project_id = ANY (v_projects) AND l.state <> 'settled');
END $$;

-- Writes down what was refused. One at a time does, so that numbers rise in the order of commits and who reads on from a
-- number misses nothing. A project that is gone is left out.
CREATE FUNCTION vf.note_signals(p_projects uuid[], p_ats timestamptz[], p_reasons text[], p_codes text[], p_customers text[],
                                p_addresses text[], p_devices text[])
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('vf.fraud_signals', 0));
    INSERT INTO vf.fraud_signals (project_id, at, reason, code, customer_id, address, device)
    SELECT q.project_id, q.at, q.reason, q.code, q.customer, q.address, q.device
      FROM unnest(p_projects, p_ats, p_reasons, p_codes, p_customers, p_addresses, p_devices)
           AS q (project_id, at, reason, code, customer, address, device)
      JOIN vf.projects p ON p.id = q.project_id AND p.status <> 'deleting'
     ORDER BY q.at;
END $$;

-- Adds calls to the running hour. A project that is gone is left out.
CREATE FUNCTION vf.count_calls(p_projects uuid[], p_counts bigint[])
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO vf.usage_hours AS u (project_id, hour, call_count)
    SELECT p.id, date_trunc('hour', clock_timestamp(), 'UTC'), k.n
      FROM unnest(p_projects, p_counts) AS k (id, n) JOIN vf.projects p ON p.id = k.id
     ORDER BY p.id
        ON CONFLICT (project_id, hour) DO UPDATE SET call_count = u.call_count + excluded.call_count
$$;

-- Adds refusals and validations to the running quarter of an hour. A project that is gone is left out.
CREATE FUNCTION vf.count_attempts(p_projects uuid[], p_kinds text[], p_reasons text[], p_counts bigint[])
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO vf.attempts AS a (project_id, bucket, kind, reason, count)
    SELECT p.id, date_bin('15 minutes', clock_timestamp(), 'epoch'), k.kind, k.reason, k.n
      FROM unnest(p_projects, p_kinds, p_reasons, p_counts) AS k (id, kind, reason, n)
      JOIN vf.projects p ON p.id = k.id AND p.status <> 'deleting'
     ORDER BY 1, 2, 3, 4
        ON CONFLICT (project_id, bucket, kind, reason) DO UPDATE SET count = a.count + excluded.count
$$;

-- Those of some projects that have events after the ones given. It says nothing of what they are.
CREATE FUNCTION vf.moved_projects(p_projects uuid[], p_heads uuid[])
RETURNS SETOF uuid
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT q.id FROM unnest(p_projects, p_heads) AS q (id, head)
     WHERE EXISTS (SELECT 1 FROM vf.events e WHERE e.project_id = q.id AND e.id > q.head)
$$;

-- How many calls a project's account has made this month.
CREATE FUNCTION vf.calls_of_month(p_project uuid)
RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(sum(u.call_count), 0)::bigint
      FROM vf.projects p
     CROSS JOIN LATERAL (
           SELECT k.hour, k.call_count FROM vf.projects o JOIN vf.usage_hours k ON k.project_id = o.id
            WHERE o.account_id = p.account_id
           UNION ALL
           SELECT d.hour, d.call_count FROM vf.deleted_usage d WHERE d.account_id = p.account_id) u
     WHERE p.id = p_project AND u.hour >= date_trunc('month', clock_timestamp(), 'UTC')
$$;

-- The account of a project.
CREATE FUNCTION vf.account_of(p_project uuid)
RETURNS TABLE (account_id uuid, plan text, created_at timestamptz, project_count bigint, changes jsonb)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT a.id, a.plan, a.created_at, (SELECT count(*) FROM vf.projects o WHERE o.account_id = a.id AND o.status = 'active'),
           coalesce((SELECT jsonb_agg(jsonb_build_object('at', c.at, 'before', c.before, 'after', c.after) ORDER BY c.at)
                       FROM vf.plan_changes c WHERE c.account_id = a.id), '[]')
      FROM vf.projects p JOIN vf.accounts a ON a.id = p.account_id
     WHERE p.id = p_project
$$;

-- What an account used, or one project of it, by hour.
CREATE FUNCTION vf.usage_by_hour(p_account uuid, p_project uuid, p_from timestamptz, p_to timestamptz)
RETURNS TABLE (hour timestamptz, call_count bigint, redemption_count bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH mine AS (
        SELECT p.id FROM vf.projects p WHERE p.account_id = p_account AND (p_project IS NULL OR p.id = p_project)
    ), used AS (
        SELECT u.hour, u.call_count, 0 AS redemption_count
          FROM vf.usage_hours u JOIN mine ON mine.id = u.project_id WHERE u.hour >= p_from AND u.hour < p_to
        UNION ALL
        SELECT date_trunc('hour', r.redeemed_at, 'UTC'), 0, 1
          FROM vf.redemptions r JOIN mine ON mine.id = r.project_id WHERE r.redeemed_at >= p_from AND r.redeemed_at < p_to
        UNION ALL
        SELECT d.hour, d.call_count, d.redemption_count
          FROM vf.deleted_usage d
         WHERE d.account_id = p_account AND p_project IS NULL AND d.hour >= p_from AND d.hour < p_to
    )
    SELECT t.hour, sum(t.call_count)::bigint, sum(t.redemption_count)::bigint FROM used t GROUP BY t.hour ORDER BY t.hour
$$;

-- Moves a project's account to another plan, and has the caches of keys look again. 'too_many_projects' where it has
-- no room for those there are.
CREATE FUNCTION vf.change_plan(p_project uuid, p_plan text)
RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    a vf.accounts;
BEGIN
    SELECT k.* INTO a FROM vf.accounts k JOIN vf.projects p ON p.account_id = k.id WHERE p.id = p_project
       FOR NO KEY UPDATE OF k;
    IF a.plan = p_plan THEN
        RETURN 'unchanged';
    END IF;
    IF (SELECT count(*) FROM vf.projects p WHERE p.account_id = a.id AND p.status = 'active') > vf.projects_of_plan(p_plan) THEN
        RETURN 'too_many_projects';
    END IF;
    INSERT INTO vf.plan_changes (account_id, before, after) VALUES (a.id, a.plan, p_plan);
    UPDATE vf.accounts k SET plan = p_plan WHERE k.id = a.id;
    UPDATE vf.api_keys k SET changed_at = clock_timestamp()
     WHERE k.project_id IN (SELECT p.id FROM vf.projects p WHERE p.account_id = a.id);
    RETURN 'changed';
END $$;

-- The invoices of a project's account, newest first.
CREATE FUNCTION vf.invoices_of(p_project uuid)
RETURNS SETOF vf.invoices
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT i.* FROM vf.projects p JOIN vf.invoices i ON i.account_id = p.account_id
     WHERE p.id = p_project ORDER BY i.month DESC
$$;

GRANT CREATE ON SCHEMA vf TO vf_definer;
GRANT EXECUTE ON FUNCTION vf.redemptions_until_stop(text), vf.projects_of_plan(text) TO vf_definer;
ALTER FUNCTION vf.project_within_plan() OWNER TO vf_definer;
ALTER FUNCTION vf.quota_rest(uuid) OWNER TO vf_definer;
ALTER FUNCTION vf.count_calls(uuid[], bigint[]) OWNER TO vf_definer;
ALTER FUNCTION vf.note_signals(uuid[], timestamptz[], text[], text[], text[], text[], text[]) OWNER TO vf_definer;
ALTER FUNCTION vf.count_attempts(uuid[], text[], text[], bigint[]) OWNER TO vf_definer;
ALTER FUNCTION vf.moved_projects(uuid[], uuid[]) OWNER TO vf_definer;
ALTER FUNCTION vf.calls_of_month(uuid) OWNER TO vf_definer;
ALTER FUNCTION vf.account_of(uuid) OWNER TO vf_definer;
ALTER FUNCTION vf.usage_by_hour(uuid, uuid, timestamptz, timestamptz) OWNER TO vf_definer;
ALTER FUNCTION vf.change_plan(uuid, text) OWNER TO vf_definer;
ALTER FUNCTION vf.invoices_of(uuid) OWNER TO vf_definer;
REVOKE CREATE ON SCHEMA vf FROM vf_definer;

-- The history this database continues: the cluster, and the timeline it writes. It changes when the database is
-- restored elsewhere or promoted. pg_control's own timeline lags behind a promotion until the next checkpoint.
CREATE FUNCTION vf.lineage() RETURNS text LANGUAGE sql STABLE
AS $$
    SELECT s.system_identifier::text || '/' || CASE WHEN pg_is_in_recovery() THEN '0'
           ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer::text END
      FROM pg_control_system() s
$$;

-- Whether this database may redeem: it writes the timeline that is accepted, and nobody has found it gone back. Asked by
-- every commit of redemptions, so it is plpgsql, whose plan stays, and does not read pg_control for the cluster's id
-- (40 us): another cluster is found by the reconciler, which compares all when PostgreSQL was started.
CREATE FUNCTION vf.is_accepted() RETURNS boolean LANGUAGE plpgsql STABLE
AS $$
DECLARE
    v_timeline text := '0';
BEGIN
    IF NOT pg_is_in_recovery() THEN
        v_timeline := ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer;
    END IF;
    RETURN EXISTS (SELECT 1 FROM vf.history h
                    WHERE h.held_for IS NULL AND split_part(h.lineage, '/', 2) = v_timeline);
END $$;

-- Nothing is redeemed and nothing armed in a database that may lack what Redis has answered: VF001 is "not applied".
CREATE FUNCTION vf.refuse_unaccepted() RETURNS trigger LANGUAGE plpgsql
AS $$
BEGIN
    IF NOT vf.is_accepted() THEN
        RAISE EXCEPTION 'this database was restored or promoted, and recover has not accepted it'
            USING ERRCODE = 'VF001';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER redemptions_history BEFORE INSERT ON vf.redemptions
    FOR EACH STATEMENT EXECUTE FUNCTION vf.refuse_unaccepted();
CREATE TRIGGER leases_history BEFORE INSERT ON vf.leases
    FOR EACH STATEMENT EXECUTE FUNCTION vf.refuse_unaccepted();

-- A redemption's voucher and a win's grant exist, and stay. Foreign keys would say so row by row, at a fifth of what a win
-- costs (docs/decisions/0018-one-look-for-all-vouchers-of-a-commit.md); these look once a statement. The rows they look
-- for can't go meanwhile: whoever redeems has locked the voucher, whoever settles the lease.
CREATE FUNCTION vf.refuse_unknown_sources() RETURNS trigger LANGUAGE plpgsql
AS $$
DECLARE
    v_unknown text;
    v_released boolean;
BEGIN
    SELECT CASE WHEN bool_or(v.id IS NULL) THEN 'voucher'
                WHEN bool_or(n.granted_size IS NOT NULL AND g.lease_id IS NULL) THEN 'grant' END,
           bool_or(n.granted_size IS NOT NULL
                   AND EXISTS (SELECT 1 FROM vf.released_numbers r WHERE r.lease_id = n.lease_id))
      INTO v_unknown, v_released
      FROM (SELECT DISTINCT a.project_id, a.voucher_id, a.lease_id, a.granted_size FROM added a) n
      LEFT JOIN vf.vouchers v ON v.project_id = n.project_id AND v.id = n.voucher_id
      LEFT JOIN vf.lease_grants g
             ON g.lease_id = n.lease_id AND g.size = n.granted_size AND g.project_id = n.project_id;
    IF v_released AND EXISTS (SELECT 1 FROM added a JOIN vf.released_numbers r
                                         ON r.lease_id = a.lease_id AND r.seq = a.seq) THEN
        v_unknown := 'released';
    END IF;
    IF v_unknown IS NOT NULL THEN
        RAISE EXCEPTION 'a redemption''s % is not there, or not there any more', v_unknown
            USING ERRCODE = '23503', CONSTRAINT = 'redemptions_' || v_unknown, TABLE = 'redemptions', SCHEMA = 'vf';
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION vf.refuse_another_source() RETURNS trigger LANGUAGE plpgsql
AS $$
BEGIN
    IF (NEW.project_id, NEW.voucher_id) IS DISTINCT FROM (OLD.project_id, OLD.voucher_id) THEN
        RAISE EXCEPTION 'a redemption stays with its voucher'
            USING ERRCODE = '23503', CONSTRAINT = 'redemptions_voucher', TABLE = 'redemptions', SCHEMA = 'vf';
    ELSIF (NEW.lease_id, NEW.granted_size) IS DISTINCT FROM (OLD.lease_id, OLD.granted_size) THEN
        RAISE EXCEPTION 'a win stays with its grant'
            USING ERRCODE = '23503', CONSTRAINT = 'redemptions_grant', TABLE = 'redemptions', SCHEMA = 'vf';
    END IF;
    RETURN NEW;
END $$;
-- Nobody is granted less afterwards. Only an operator's hand comes here: no role of ours may change or delete a grant.
CREATE FUNCTION vf.keep_grants() RETURNS trigger LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM 1 FROM vf.leases k WHERE k.project_id = OLD.project_id AND k.id = OLD.lease_id FOR NO KEY UPDATE;
    IF TG_OP = 'UPDATE' OR EXISTS (SELECT 1 FROM vf.redemptions r WHERE r.lease_id = OLD.lease_id) THEN
        RAISE EXCEPTION 'the lease has redemptions'
            USING ERRCODE = '23503', CONSTRAINT = 'redemptions_grant', TABLE = 'redemptions', SCHEMA = 'vf';
    END IF;
    RETURN OLD;
END $$;
CREATE FUNCTION vf.keep_redeemed_vouchers() RETURNS trigger LANGUAGE plpgsql
AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND (NEW.project_id, NEW.id) IS NOT DISTINCT FROM (OLD.project_id, OLD.id) THEN
        RETURN NEW;
    END IF;
    IF EXISTS (SELECT 1 FROM vf.redemptions r
                WHERE r.voucher_id = OLD.id AND r.project_id = OLD.project_id AND r.redeemed_at > '-infinity') THEN
        RAISE EXCEPTION 'the voucher has redemptions'
            USING ERRCODE = '23503', CONSTRAINT = 'redemptions_voucher', TABLE = 'redemptions', SCHEMA = 'vf';
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE TRIGGER redemptions_sources AFTER INSERT ON vf.redemptions REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION vf.refuse_unknown_sources();
CREATE TRIGGER redemptions_stay BEFORE UPDATE OF project_id, voucher_id, lease_id, granted_size ON vf.redemptions
    FOR EACH ROW EXECUTE FUNCTION vf.refuse_another_source();
CREATE TRIGGER lease_grants_stay BEFORE DELETE OR UPDATE ON vf.lease_grants
    FOR EACH ROW EXECUTE FUNCTION vf.keep_grants();
CREATE TRIGGER vouchers_stay BEFORE DELETE OR UPDATE OF project_id, id ON vf.vouchers
    FOR EACH ROW EXECUTE FUNCTION vf.keep_redeemed_vouchers();

-- ---------------------------------------------------------------------------------------------
-- Redeeming: one voucher, many requests, one commit

-- What prices are computed from and where vouchers redeem now, with the versions that a redeem must state.
CREATE FUNCTION vf.terms_of(p_project uuid, p_codes text[])
RETURNS TABLE (project_id uuid, voucher_id uuid, code text, code_norm text, terms_version bigint, campaign_id uuid,
               campaign_version bigint, sale_id uuid, authority text, sale_only boolean, discount_type text,
               discount_bp integer, discount_minor bigint, min_order_minor bigint, needs_customer boolean,
               crowd_version bigint, owns_discount boolean, promotion jsonb, campaign_promotion jsonb)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    RETURN QUERY
    SELECT v.project_id, v.id, v.code, v.code_norm, v.terms_version, v.campaign_id, c.terms_version, v.flash_sale_id,
           v.authority, v.sale_only, coalesce(v.discount_type, c.discount_type),
           CASE WHEN v.discount_type IS NULL THEN c.discount_bp ELSE v.discount_bp END,
           CASE WHEN v.discount_type IS NULL THEN c.discount_minor ELSE v.discount_minor END,
           greatest(v.min_order_minor, c.min_order_minor),
           v.per_customer_limit IS NOT NULL OR c.per_customer_limit IS NOT NULL,
           v.crowd_version, v.discount_type IS NOT NULL, v.promotion, c.promotion
      FROM unnest(p_codes) AS q (code)
     CROSS JOIN LATERAL (
           SELECT k.* FROM vf.vouchers k WHERE k.project_id = p_project AND k.code_norm = q.code LIMIT 1) v
      LEFT JOIN LATERAL (
           SELECT k.* FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = v.campaign_id LIMIT 1) c ON true;
END $$;

-- Which requests of an array for one code the block list refuses, by their places; NULL: none.
CREATE FUNCTION vf.blocked_of(p_project uuid, p_code text, p_customers text[], p_metadata text[], p_at timestamptz)
RETURNS bigint[]
LANGUAGE sql STABLE
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
    SELECT array_agg(q.ord)
      FROM unnest(p_customers, p_metadata) WITH ORDINALITY AS q (customer, metadata, ord)
     WHERE EXISTS (
           SELECT 1
             FROM (VALUES ('code', p_code), ('customer', q.customer),
                          ('address', q.metadata::jsonb ->> '_address'),
                          ('device', q.metadata::jsonb ->> '_device')) AS x (kind, value)
            CROSS JOIN LATERAL (
                  SELECT 1 FROM vf.blocks k
                   WHERE k.project_id = p_project AND k.kind = x.kind AND k.value = x.value
                     AND (k.expires_at IS NULL OR k.expires_at > p_at) LIMIT 1) b)
$$;

-- Answers each request of an array: redeemed, replayed, mismatch, a refusal, or rerouted / repriced (nothing was
-- decided: the caller priced with other terms, or a fast sale holds the voucher). Keys are distinct within the
-- array; a customer's nth request counts the ones before it. A single row with ord 0 says that all won, the first with
-- that seq and remaining, each later one with the next. Locks in the order campaign, voucher, sale, customers (by customer_id).
-- The planner settings are pinned because a hot voucher's statistics are always stale.
CREATE FUNCTION vf.redeem_many(
    p_project uuid, p_voucher uuid, p_version bigint, p_campaign uuid, p_campaign_version bigint, p_sale uuid,
    p_ids uuid[], p_keys text[], p_fingerprints bytea[], p_customers text[],
    p_order_values bigint[], p_discounts bigint[], p_order_ids text[], p_metadata text[])
RETURNS TABLE (ord bigint, outcome text, id uuid, seq bigint, remaining bigint, redeemed_at timestamptz,
               order_value_minor bigint, discount_minor bigint, existing uuid, sale uuid)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v vf.vouchers;
    c vf.campaigns;
    s vf.flash_sales;
    v_at timestamptz;
    v_verdict text;
    v_rest bigint;
    v_over text := 'limit_reached';
    v_n bigint := cardinality(p_ids);
    v_is_mixed boolean := false;
    v_known bigint := 0;
    v_blocked bigint[];
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    IF p_campaign IS NOT NULL THEN
        SELECT * INTO c FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = p_campaign FOR NO KEY UPDATE;
    END IF;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = p_voucher FOR NO KEY UPDATE;
    IF p_sale IS NOT NULL THEN
        SELECT * INTO s FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = p_sale FOR NO KEY UPDATE;
        v_over := 'sold_out';
    END IF;
    v_at := clock_timestamp();
    v_verdict := CASE
        WHEN v.id IS NULL THEN 'not_found'
        WHEN v.authority <> 'pg' THEN 'rerouted'
        WHEN v.terms_version <> p_version OR v.campaign_id IS DISTINCT FROM p_campaign
          OR c.terms_version <> p_campaign_version OR v.flash_sale_id IS DISTINCT FROM p_sale THEN 'repriced'
        WHEN v.status <> 'active' THEN 'voucher_inactive'
        WHEN c.status = 'ended' THEN 'ended'
        WHEN c.status = 'draft' THEN 'not_started'
        WHEN c.status = 'paused' OR s.status = 'paused' THEN 'paused'
        WHEN s.status = 'closed' OR s.status = 'settled' OR v_at >= s.ends_at THEN 'ended'
        WHEN v_at < s.starts_at OR v_at < v.starts_at OR v_at < c.starts_at THEN 'not_started'
        WHEN v_at >= v.expires_at OR v_at >= c.expires_at THEN 'voucher_expired'
        WHEN v.sale_only AND p_sale IS NULL THEN 'no_sale'
    END;
    v_rest := least(v.max_redemptions - v.direct_count - v.leased_count,
                    c.max_redemptions - c.direct_count - c.leased_count,
                    s.stock - s.sold_count - s.leased_count);
    -- The common case in a few plain statements: there is enough for all, nobody asked before, and every customer is
    -- a different one below the limit. One row answers all; whatever is mixed takes the general way below.
    IF v_verdict IS NULL AND p_campaign IS NULL AND (v_rest IS NULL OR v_rest >= v_n)
       AND NOT EXISTS (SELECT 1 FROM unnest(p_keys) AS q (key) CROSS JOIN LATERAL (
               SELECT 1 FROM vf.redemptions k WHERE k.idempotency_key = q.key AND k.voucher_id = p_voucher
                  AND k.project_id = p_project LIMIT 1) r)
       AND (NOT EXISTS (SELECT 1 FROM vf.blocks k WHERE k.project_id = p_project)
            OR vf.blocked_of(p_project, v.code_norm, p_customers, p_metadata, v_at) IS NULL) THEN
        IF v.per_customer_limit IS NOT NULL THEN
            SELECT count(DISTINCT q.customer) < v_n OR coalesce(max(r.live_count) >= v.per_customer_limit, false),
                   count(r.live_count)
              INTO v_is_mixed, v_known
              FROM unnest(p_customers) AS q (customer) LEFT JOIN LATERAL (
                   SELECT k.live_count FROM vf.customer_counts k WHERE k.customer_id = q.customer
                      AND k.scope_id = p_voucher AND k.project_id = p_project LIMIT 1) r ON true;
        END IF;
        IF NOT v_is_mixed THEN
            INSERT INTO vf.redemptions (project_id, lease_id, seq, id, voucher_id, sale_id, sale_seq, idempotency_key,
                   fingerprint, customer_id, order_id, order_value_minor, discount_minor, remaining, metadata,
                   redeemed_at)
            SELECT p_project, p_voucher, v.next_number + q.ord - 1, q.id, p_voucher, p_sale,
                   CASE WHEN p_sale IS NOT NULL THEN v.next_number + q.ord - 1 - s.seq_base END,
                   q.key, q.fingerprint, q.customer, q.order_id, q.order_value, q.discount, v_rest - q.ord,
                   q.metadata::jsonb, v_at
              FROM unnest(p_ids, p_keys, p_fingerprints, p_customers, p_order_values, p_discounts, p_order_ids,
                          p_metadata) WITH ORDINALITY
                AS q (id, key, fingerprint, customer, order_value, discount, order_id, metadata, ord);
            IF v.per_customer_limit IS NOT NULL AND v_known = 0 THEN
                -- Who came meanwhile makes this fail, and each be asked again alone.
                INSERT INTO vf.customer_counts
                       (project_id, scope_id, customer_id, live_count, limit_max, last_redemption_id)
                SELECT p_project, p_voucher, q.customer, 1, v.per_customer_limit, q.id
                  FROM unnest(p_customers, p_ids) AS q (customer, id) ORDER BY q.customer;
            ELSIF v.per_customer_limit IS NOT NULL THEN
                INSERT INTO vf.customer_counts AS k
                       (project_id, scope_id, customer_id, live_count, limit_max, last_redemption_id)
                SELECT p_project, p_voucher, q.customer, 1, v.per_customer_limit, q.id
                  FROM unnest(p_customers, p_ids) AS q (customer, id) ORDER BY q.customer
                    ON CONFLICT (customer_id, scope_id, project_id) DO UPDATE
                       SET live_count = k.live_count + 1, limit_max = excluded.limit_max,
                           last_redemption_id = excluded.last_redemption_id;
            END IF;
            UPDATE vf.vouchers k SET direct_count = k.direct_count + v_n, next_number = k.next_number + v_n
             WHERE k.project_id = p_project AND k.id = p_voucher;
            IF p_sale IS NOT NULL THEN
                UPDATE vf.flash_sales k SET sold_count = k.sold_count + v_n
                 WHERE k.project_id = p_project AND k.id = p_sale;
            END IF;
            INSERT INTO vf.outbox (project_id, event, subject, data)
            VALUES (p_project, 'voucher.redeemed', p_voucher,
                    jsonb_build_object('first', v.next_number, 'count', v_n));
            RETURN QUERY SELECT 0::bigint, 'redeemed', NULL::uuid, v.next_number - coalesce(s.seq_base, 0), v_rest - 1,
                                v_at, NULL::bigint, NULL::bigint, NULL::uuid, p_sale;
            RETURN;
        END IF;
    END IF;
    IF v_verdict IS NULL AND EXISTS (SELECT 1 FROM vf.blocks k WHERE k.project_id = p_project) THEN
        v_blocked := vf.blocked_of(p_project, v.code_norm, p_customers, p_metadata, v_at);
    END IF;
    RETURN QUERY
    WITH req AS MATERIALIZED (
        SELECT q.* FROM unnest(p_ids, p_keys, p_fingerprints, p_customers, p_order_values, p_discounts,
                               p_order_ids, p_metadata) WITH ORDINALITY
            AS q (id, key, fingerprint, customer, order_value, discount, order_id, metadata, ord)
    ), seen AS MATERIALIZED (
        SELECT q.ord, q.fingerprint = r.fingerprint AS same, r.id, coalesce(r.sale_seq, r.seq) AS seq, r.remaining,
               r.redeemed_at, r.order_value_minor, r.discount_minor, r.sale_id
          FROM req q CROSS JOIN LATERAL (
               SELECT k.* FROM vf.redemptions k
                WHERE k.idempotency_key = q.key AND k.voucher_id = p_voucher AND k.project_id = p_project
                LIMIT 1) r
    ), fresh AS MATERIALIZED (
        SELECT q.*, CASE
                   WHEN v_verdict IS NOT NULL THEN v_verdict
                   WHEN q.ord = ANY (v_blocked) THEN 'blocked'
                   WHEN q.customer IS NULL AND (v.per_customer_limit IS NOT NULL OR c.per_customer_limit IS NOT NULL)
                        THEN 'customer_required'
               END AS refusal,
               least(v.per_customer_limit - coalesce(vc.live_count, 0),
                     c.per_customer_limit - coalesce(cc.live_count, 0)) AS customer_rest,
               CASE WHEN vc.live_count >= v.per_customer_limit THEN vc.last_redemption_id
                    ELSE coalesce(cc.last_redemption_id, vc.last_redemption_id) END AS existing
          FROM req q
          LEFT JOIN LATERAL (
               SELECT k.live_count, k.last_redemption_id FROM vf.customer_counts k
                WHERE k.customer_id = q.customer AND k.scope_id = p_voucher AND k.project_id = p_project
                  AND v.per_customer_limit IS NOT NULL LIMIT 1) vc ON true
          LEFT JOIN LATERAL (
               SELECT k.live_count, k.last_redemption_id FROM vf.customer_counts k
                WHERE k.customer_id = q.customer AND k.scope_id = p_campaign AND k.project_id = p_project
                  AND c.per_customer_limit IS NOT NULL LIMIT 1) cc ON true
         WHERE NOT EXISTS (SELECT 1 FROM seen WHERE seen.ord = q.ord)
    ), counted AS MATERIALIZED (
        SELECT f.*, f.refusal IS NULL AND (f.customer_rest IS NULL OR f.customer_rest >= row_number() OVER (
                        PARTITION BY f.customer, f.refusal ORDER BY f.ord)) AS is_eligible
          FROM fresh f
    ), placed AS MATERIALIZED (
        SELECT f.*, row_number() OVER (PARTITION BY f.is_eligible ORDER BY f.ord) AS place FROM counted f
    ), wins AS MATERIALIZED (
        SELECT p.* FROM placed p WHERE p.is_eligible AND (v_rest IS NULL OR p.place <= v_rest)
    ), held AS MATERIALIZED (
        SELECT w.customer, count(*) AS n, (array_agg(w.id ORDER BY w.place DESC))[1] AS last_id
          FROM wins w WHERE w.customer_rest IS NOT NULL GROUP BY w.customer
    ), rows AS (
        INSERT INTO vf.redemptions (project_id, lease_id, seq, id, voucher_id, campaign_id, sale_id, sale_seq,
               idempotency_key, fingerprint, customer_id, order_id, order_value_minor, discount_minor, remaining,
               metadata, redeemed_at)
        SELECT p_project, p_voucher, v.next_number + w.place - 1, w.id, p_voucher, p_campaign, p_sale,
               CASE WHEN p_sale IS NOT NULL THEN v.next_number + w.place - 1 - s.seq_base END,
               w.key, w.fingerprint, w.customer, w.order_id, w.order_value, w.discount, v_rest - w.place,
               w.metadata::jsonb, v_at
          FROM wins w ORDER BY w.place
    ), counts AS (
        INSERT INTO vf.customer_counts AS k (project_id, scope_id, customer_id, live_count, limit_max, last_redemption_id)
        SELECT p_project, x.scope, h.customer, h.n, x.limit_max, h.last_id
          FROM held h CROSS JOIN (VALUES (p_voucher, v.per_customer_limit), (p_campaign, c.per_customer_limit))
               AS x (scope, limit_max)
         WHERE x.limit_max IS NOT NULL ORDER BY h.customer, x.scope
            ON CONFLICT (customer_id, scope_id, project_id) DO UPDATE
               SET live_count = k.live_count + excluded.live_count, limit_max = excluded.limit_max,
                   last_redemption_id = excluded.last_redemption_id
    ), total AS MATERIALIZED (
        SELECT count(*) AS n FROM wins
    ), voucher AS (
        UPDATE vf.vouchers k SET direct_count = k.direct_count + t.n, next_number = k.next_number + t.n
          FROM total t WHERE k.project_id = p_project AND k.id = p_voucher AND t.n > 0
    ), campaign AS (
        UPDATE vf.campaigns k SET direct_count = k.direct_count + t.n
          FROM total t WHERE k.project_id = p_project AND k.id = p_campaign AND t.n > 0
    ), sale AS (
        UPDATE vf.flash_sales k SET sold_count = k.sold_count + t.n
          FROM total t WHERE k.project_id = p_project AND k.id = p_sale AND t.n > 0
    ), event AS (
        INSERT INTO vf.outbox (project_id, event, subject, data)
        SELECT p_project, 'voucher.redeemed', p_voucher,
               jsonb_build_object('first', v.next_number, 'count', t.n)
          FROM total t WHERE t.n > 0
    )
    SELECT e.ord, CASE WHEN e.same THEN 'replayed' ELSE 'mismatch' END, e.id, e.seq, e.remaining, e.redeemed_at,
           e.order_value_minor, e.discount_minor, NULL::uuid, e.sale_id
      FROM seen e
    UNION ALL
    SELECT p.ord, CASE WHEN p.refusal IS NOT NULL THEN p.refusal
                       WHEN NOT p.is_eligible AND p.customer_rest <= coalesce(h.n, 0) THEN 'customer_limit_reached'
                       WHEN p.is_eligible AND (v_rest IS NULL OR p.place <= v_rest) THEN 'redeemed'
                       ELSE v_over END,
           p.id, v.next_number + p.place - 1 - coalesce(s.seq_base, 0), v_rest - p.place, v_at,
           p.order_value, p.discount, coalesce(h.last_id, p.existing), p_sale
      FROM placed p LEFT JOIN LATERAL (SELECT x.n, x.last_id FROM held x WHERE x.customer = p.customer) h ON true;
END $$;

-- The same under a campaign's limits: the campaign row is the shared one, its vouchers follow in id order.
-- p_starts cuts the arrays: lot i is voucher p_vouchers[i], items p_starts[i] .. p_starts[i + 1] - 1.
CREATE FUNCTION vf.redeem_campaign(
    p_project uuid, p_campaign uuid, p_campaign_version bigint,
    p_vouchers uuid[], p_versions bigint[], p_sales uuid[], p_starts integer[],
    p_ids uuid[], p_keys text[], p_fingerprints bytea[], p_customers text[],
    p_order_values bigint[], p_discounts bigint[], p_order_ids text[], p_metadata text[])
RETURNS TABLE (ord bigint, outcome text, id uuid, seq bigint, remaining bigint, redeemed_at timestamptz,
               order_value_minor bigint, discount_minor bigint, existing uuid, sale uuid)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    i integer;
    a integer;
    z integer;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    PERFORM 1 FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = p_campaign FOR NO KEY UPDATE;
    FOR i IN 1 .. cardinality(p_vouchers) LOOP
        a := p_starts[i];
        z := coalesce(p_starts[i + 1], cardinality(p_ids) + 1) - 1;
        RETURN QUERY SELECT r.ord + a - 1, r.outcome, r.id, r.seq, r.remaining, r.redeemed_at, r.order_value_minor,
                            r.discount_minor, r.existing, r.sale
          FROM vf.redeem_many(p_project, p_vouchers[i], p_versions[i], p_campaign, p_campaign_version, p_sales[i],
                   p_ids[a:z], p_keys[a:z], p_fingerprints[a:z], p_customers[a:z], p_order_values[a:z],
                   p_discounts[a:z], p_order_ids[a:z], p_metadata[a:z]) r;
    END LOOP;
END $$;

-- redeem_many for several vouchers, none of them under a campaign, in one commit: each is decided for itself. Vouchers
-- come in id order, so that nobody waits for each other in a circle. p_starts cuts the arrays: lot i is voucher
-- p_vouchers[i], items p_starts[i] .. p_starts[i + 1] - 1; ord counts in the lot.
CREATE FUNCTION vf.redeem_lots(
    p_project uuid, p_vouchers uuid[], p_versions bigint[], p_sales uuid[], p_starts integer[],
    p_ids uuid[], p_keys text[], p_fingerprints bytea[], p_customers text[],
    p_order_values bigint[], p_discounts bigint[], p_order_ids text[], p_metadata text[])
RETURNS TABLE (lot integer, ord bigint, outcome text, id uuid, seq bigint, remaining bigint, redeemed_at timestamptz,
               order_value_minor bigint, discount_minor bigint, existing uuid, sale uuid)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    i integer;
    a integer;
    z integer;
BEGIN
    FOR i IN 1 .. cardinality(p_vouchers) LOOP
        a := p_starts[i];
        z := coalesce(p_starts[i + 1], cardinality(p_ids) + 1) - 1;
        RETURN QUERY SELECT i, r.ord, r.outcome, r.id, r.seq, r.remaining, r.redeemed_at, r.order_value_minor,
                            r.discount_minor, r.existing, r.sale
          FROM vf.redeem_many(p_project, p_vouchers[i], p_versions[i], NULL, NULL, p_sales[i],
                   p_ids[a:z], p_keys[a:z], p_fingerprints[a:z], p_customers[a:z], p_order_values[a:z],
                   p_discounts[a:z], p_order_ids[a:z], p_metadata[a:z]) r;
    END LOOP;
END $$;

-- Ends a live hold as released, redeemed or expired (only once its time is over) and gives back what it took; false
-- where it was not live any more. Locks campaign, voucher.
CREATE FUNCTION vf.end_hold(p_project uuid, p_id uuid, p_status text)
RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    h vf.holds;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO h FROM vf.holds k WHERE k.project_id = p_project AND k.id = p_id;
    PERFORM 1 FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = h.campaign_id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = h.voucher_id FOR NO KEY UPDATE;
    UPDATE vf.holds k SET status = p_status, ended_at = clock_timestamp()
     WHERE k.project_id = p_project AND k.id = p_id AND k.status = 'held'
       AND (p_status <> 'expired' OR k.expires_at <= clock_timestamp());
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE vf.campaigns k SET direct_count = k.direct_count - 1, held_count = k.held_count - 1
     WHERE k.project_id = p_project AND k.id = h.campaign_id;
    UPDATE vf.vouchers k
       SET direct_count = k.direct_count - 1, held_count = k.held_count - 1, crowd_version = k.crowd_version + 1
     WHERE k.project_id = p_project AND k.id = h.voucher_id;
    UPDATE vf.customer_counts k SET live_count = k.live_count - 1
     WHERE k.customer_id = h.customer_id AND k.scope_id IN (h.voucher_id, h.campaign_id)
       AND k.project_id = p_project AND k.live_count > 0;
    UPDATE vf.budgets k SET used = k.used - t.used, reached_at = NULL
      FROM jsonb_populate_recordset(NULL::vf.budgets, h.detail -> 'takings') t
     WHERE k.subject = t.subject AND k.period = t.period AND k.label = t.label AND k.scope_id = t.scope_id
       AND k.project_id = p_project;
    RETURN true;
END $$;

-- Redeems one code, or several for one order: all or nothing, in one commit. With p_hold_s the uses are held for so
-- many seconds instead; p_holds says which hold of each code is redeemed by this, whose use is given back first. Each is priced beforehand; p_takings says
-- what it takes of which budget, by its place in the arrays. Answers a row a code (redeemed, or replayed or mismatch
-- where the key was used before), or one row for the first code that is refused: then nothing was written but that a
-- budget was reached. Rerouted: a flash sale holds the voucher. Locks campaigns, vouchers (each in id order), customers.
CREATE FUNCTION vf.redeem_order(
    p_project uuid, p_customer text, p_order_id text, p_order_value bigint, p_metadata text, p_fingerprint bytea,
    p_vouchers uuid[], p_versions bigint[], p_campaigns uuid[], p_campaign_versions bigint[],
    p_ids uuid[], p_keys text[], p_discounts bigint[], p_details text[], p_takings jsonb,
    p_holds uuid[], p_hold_s bigint)
RETURNS TABLE (ord bigint, outcome text, id uuid, seq bigint, remaining bigint, redeemed_at timestamptz,
               order_value_minor bigint, discount_minor bigint, detail jsonb, existing uuid, label text, used bigint)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    c vf.campaigns;
    v vf.vouchers;
    b vf.budgets;
    h vf.holds;
    t record;
    v_at timestamptz;
    v_ord integer;
    v_seen bigint;
    v_rest bigint;
    v_outcome text;
    v_existing uuid;
    v_taking jsonb;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    PERFORM 1 FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = ANY (p_campaigns)
      ORDER BY k.id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = ANY (p_vouchers)
      ORDER BY k.id FOR NO KEY UPDATE;
    v_at := clock_timestamp();
    RETURN QUERY
    SELECT q.ord, CASE WHEN r.fingerprint = p_fingerprint THEN 'replayed' ELSE 'mismatch' END, r.id,
           coalesce(r.sale_seq, r.seq), r.remaining, r.redeemed_at, r.order_value_minor, r.discount_minor, r.detail,
           NULL::uuid, NULL, NULL::bigint
      FROM unnest(p_vouchers, p_keys) WITH ORDINALITY AS q (voucher, key, ord)
     CROSS JOIN LATERAL (
           SELECT k.* FROM vf.redemptions k
            WHERE k.idempotency_key = q.key AND k.voucher_id = q.voucher AND k.project_id = p_project LIMIT 1) r;
    GET DIAGNOSTICS v_seen = ROW_COUNT;
    IF v_seen > 0 THEN
        RETURN;
    END IF;
    BEGIN
        FOR i IN 1 .. cardinality(p_vouchers) LOOP
            v_ord := i;
            IF p_holds[v_ord] IS NOT NULL THEN
                SELECT * INTO h FROM vf.holds k
                 WHERE k.project_id = p_project AND k.id = p_holds[v_ord] AND k.voucher_id = p_vouchers[v_ord];
                v_outcome := CASE WHEN h.id IS NULL OR h.customer_id IS DISTINCT FROM p_customer THEN 'no_hold'
                                  WHEN h.expires_at <= v_at OR NOT vf.end_hold(p_project, h.id, 'redeemed')
                                       THEN 'hold_expired' END;
                IF v_outcome IS NOT NULL THEN
                    RAISE SQLSTATE 'VF001';
                END IF;
            END IF;
            -- What ran out and nobody swept yet is no longer in the way.
            PERFORM vf.end_hold(p_project, k.id, 'expired') FROM vf.holds k
              WHERE k.voucher_id = p_vouchers[v_ord] AND k.project_id = p_project AND k.status = 'held'
                AND k.expires_at <= v_at;
            SELECT * INTO c FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = p_campaigns[v_ord];
            SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = p_vouchers[v_ord];
            v_rest := least(v.max_redemptions - v.direct_count - v.leased_count,
                            c.max_redemptions - c.direct_count - c.leased_count);
            v_outcome := CASE
                WHEN v.id IS NULL THEN 'not_found'
                WHEN v.authority <> 'pg' OR v.flash_sale_id IS NOT NULL OR v.sale_only THEN 'rerouted'
                WHEN v.terms_version <> p_versions[v_ord] OR v.campaign_id IS DISTINCT FROM p_campaigns[v_ord]
                  OR c.terms_version <> p_campaign_versions[v_ord] THEN 'repriced'
                WHEN v.status <> 'active' THEN 'voucher_inactive'
                WHEN c.status = 'ended' THEN 'ended'
                WHEN c.status = 'draft' THEN 'not_started'
                WHEN c.status = 'paused' THEN 'paused'
                WHEN v_at < v.starts_at OR v_at < c.starts_at THEN 'not_started'
                WHEN v_at >= v.expires_at OR v_at >= c.expires_at THEN 'voucher_expired'
                WHEN EXISTS (SELECT 1 FROM vf.blocks k WHERE k.project_id = p_project)
                 AND vf.blocked_of(p_project, v.code_norm, ARRAY[p_customer], ARRAY[p_metadata], v_at) IS NOT NULL
                     THEN 'blocked'
                WHEN p_customer IS NULL AND (v.per_customer_limit IS NOT NULL OR c.per_customer_limit IS NOT NULL)
                     THEN 'customer_required'
            END;
            IF v_outcome IS NOT NULL THEN
                RAISE SQLSTATE 'VF001';
            END IF;
            FOR t IN SELECT x.scope, x.most FROM (VALUES (v.id, v.per_customer_limit), (c.id, c.per_customer_limit))
                         AS x (scope, most) WHERE x.most IS NOT NULL ORDER BY x.scope
            LOOP
                INSERT INTO vf.customer_counts AS k
                       (project_id, scope_id, customer_id, live_count, limit_max, last_redemption_id)
                VALUES (p_project, t.scope, p_customer, 1, t.most, p_ids[v_ord])
                    ON CONFLICT (customer_id, scope_id, project_id) DO UPDATE
                       SET live_count = k.live_count + 1, limit_max = excluded.limit_max,
                           last_redemption_id = excluded.last_redemption_id
                     WHERE k.live_count < excluded.limit_max;
                IF NOT FOUND THEN
                    v_outcome := 'customer_limit_reached';
                    SELECT k.last_redemption_id INTO v_existing FROM vf.customer_counts k
                     WHERE k.customer_id = p_customer AND k.scope_id = t.scope AND k.project_id = p_project;
                    RAISE SQLSTATE 'VF001';
                END IF;
            END LOOP;
            IF v_rest <= 0 THEN
                v_outcome := 'limit_reached';
                RAISE SQLSTATE 'VF001';
            END IF;
            FOR v_taking IN SELECT x FROM jsonb_array_elements(p_takings -> (v_ord - 1)) x
            LOOP
                SELECT * INTO b FROM jsonb_populate_record(NULL::vf.budgets, v_taking);
                INSERT INTO vf.budgets AS k (project_id, scope_id, label, subject, period, used, used_max, reached_at)
                SELECT p_project, b.scope_id, b.label, b.subject, b.period, b.used, b.used_max,
                       CASE WHEN b.used = b.used_max THEN v_at END
                 WHERE b.used <= b.used_max
                    ON CONFLICT (subject, period, label, scope_id, project_id) DO UPDATE
                       SET used = k.used + excluded.used, used_max = excluded.used_max,
                           reached_at = CASE WHEN k.used + excluded.used = excluded.used_max
                                             THEN coalesce(k.reached_at, v_at) ELSE k.reached_at END
                     WHERE k.used + excluded.used <= excluded.used_max
                RETURNING k.used, k.used_max INTO v_seen, v_rest;
                IF NOT FOUND THEN
                    v_outcome := 'budget';
                    RAISE SQLSTATE 'VF001';
                END IF;
                IF v_seen = v_rest AND b.subject = '' AND b.scope_id = c.id THEN
                    INSERT INTO vf.outbox (project_id, event, subject, data)
                    VALUES (p_project, 'campaign.budget_reached', c.id, v_taking || jsonb_build_object('used', v_seen));
                END IF;
            END LOOP;
            v_rest := least(v.max_redemptions - v.direct_count - v.leased_count,
                            c.max_redemptions - c.direct_count - c.leased_count) - 1;
            IF p_hold_s IS NOT NULL THEN
                INSERT INTO vf.holds (project_id, id, voucher_id, campaign_id, customer_id, discount_minor, detail,
                                      expires_at)
                VALUES (p_project, p_ids[v_ord], v.id, c.id, p_customer, p_discounts[v_ord],
                        p_details[v_ord]::jsonb, v_at + make_interval(secs => p_hold_s));
                UPDATE vf.vouchers k SET direct_count = k.direct_count + 1, held_count = k.held_count + 1
                 WHERE k.project_id = p_project AND k.id = v.id;
                UPDATE vf.campaigns k SET direct_count = k.direct_count + 1, held_count = k.held_count + 1
                 WHERE k.project_id = p_project AND k.id = c.id;
            ELSE
                INSERT INTO vf.redemptions (project_id, lease_id, seq, id, voucher_id, campaign_id, idempotency_key,
                       fingerprint, customer_id, order_id, order_value_minor, discount_minor, remaining, metadata,
                       redeemed_at, detail)
                VALUES (p_project, v.id, v.next_number, p_ids[v_ord], v.id, c.id, p_keys[v_ord], p_fingerprint, p_customer,
                        p_order_id, p_order_value, p_discounts[v_ord], v_rest, p_metadata::jsonb, v_at,
                        p_details[v_ord]::jsonb);
                UPDATE vf.vouchers k SET direct_count = k.direct_count + 1, next_number = k.next_number + 1
                 WHERE k.project_id = p_project AND k.id = v.id;
                UPDATE vf.campaigns k SET direct_count = k.direct_count + 1
                 WHERE k.project_id = p_project AND k.id = c.id;
                INSERT INTO vf.outbox (project_id, event, subject, data)
                VALUES (p_project, 'voucher.redeemed', v.id, jsonb_build_object('first', v.next_number, 'count', 1));
            END IF;
        END LOOP;
    EXCEPTION WHEN SQLSTATE 'VF001' THEN
        v_seen := NULL;
        IF v_outcome = 'budget' THEN
            SELECT k.used INTO v_seen FROM vf.budgets k
             WHERE k.subject = b.subject AND k.period = b.period AND k.label = b.label AND k.scope_id = b.scope_id
               AND k.project_id = p_project;
            -- The first that no longer fits tells that the budget is spent, once.
            UPDATE vf.budgets k SET reached_at = v_at
             WHERE k.subject = b.subject AND k.period = b.period AND k.label = b.label AND k.scope_id = b.scope_id
               AND k.project_id = p_project AND k.reached_at IS NULL;
            IF FOUND AND b.subject = '' AND b.scope_id = c.id THEN
                INSERT INTO vf.outbox (project_id, event, subject, data)
                VALUES (p_project, 'campaign.budget_reached', c.id, v_taking || jsonb_build_object('used', v_seen));
            END IF;
        END IF;
        RETURN QUERY SELECT v_ord::bigint, v_outcome, NULL::uuid, NULL::bigint, NULL::bigint, NULL::timestamptz,
                            NULL::bigint, NULL::bigint, v_taking, v_existing, b.label, coalesce(v_seen, 0);
        RETURN;
    END;
    IF p_hold_s IS NOT NULL THEN
        RETURN QUERY
        SELECT q.ord, 'held', q.id, NULL::bigint, NULL::bigint, NULL::timestamptz, NULL::bigint, q.discount, NULL::jsonb,
               NULL::uuid, NULL, NULL::bigint
          FROM unnest(p_ids, p_discounts) WITH ORDINALITY AS q (id, discount, ord);
        RETURN;
    END IF;
    RETURN QUERY
    SELECT q.ord, 'redeemed', q.id, r.seq, r.remaining, r.redeemed_at, r.order_value_minor, r.discount_minor,
           r.detail, NULL::uuid, NULL, NULL::bigint
      FROM unnest(p_vouchers, p_ids, p_keys) WITH ORDINALITY AS q (voucher, id, key, ord)
     CROSS JOIN LATERAL (
           SELECT k.* FROM vf.redemptions k
            WHERE k.idempotency_key = q.key AND k.voucher_id = q.voucher AND k.project_id = p_project LIMIT 1) r;
END $$;

-- Gives a unit back and keeps the row. Answers rolled_back, already_rolled_back, rollback_window_passed or not_found,
-- with what the caller needs to release the customer in Redis.
CREATE FUNCTION vf.roll_back(p_project uuid, p_id uuid, p_reason text, p_window interval)
RETURNS TABLE (outcome text, voucher_id uuid, lease_id uuid, lease_state text, customer_id text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    r vf.redemptions;
    v_state text;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO r FROM vf.redemptions k
     WHERE k.project_id = p_project AND k.id = p_id AND k.redeemed_at > '-infinity';
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'not_found', NULL::uuid, NULL::uuid, NULL, NULL;
        RETURN;
    END IF;
    PERFORM 1 FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = r.campaign_id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = r.voucher_id FOR NO KEY UPDATE;
    IF r.granted_size IS NOT NULL THEN
        SELECT k.state INTO v_state FROM vf.leases k
         WHERE k.project_id = p_project AND k.id = r.lease_id FOR SHARE;
    END IF;
    UPDATE vf.redemptions k
       SET status = 'rolled_back', rolled_back_at = clock_timestamp(), rollback_reason = p_reason
     WHERE k.lease_id = r.lease_id AND k.seq = r.seq AND k.status = 'redeemed'
       AND k.redeemed_at > clock_timestamp() - p_window;
    IF NOT FOUND THEN
        SELECT * INTO r FROM vf.redemptions k WHERE k.lease_id = r.lease_id AND k.seq = r.seq;
        RETURN QUERY SELECT CASE r.status WHEN 'rolled_back' THEN 'already_rolled_back'
                                          ELSE 'rollback_window_passed' END,
                            r.voucher_id, NULL::uuid, NULL, NULL;
        RETURN;
    END IF;
    UPDATE vf.campaigns k
       SET direct_count = k.direct_count - (r.granted_size IS NULL)::int,
           leased_count = k.leased_count - (r.granted_size IS NOT NULL)::int
     WHERE k.project_id = p_project AND k.id = r.campaign_id;
    UPDATE vf.vouchers k
       SET direct_count = k.direct_count - (r.granted_size IS NULL)::int,
           leased_count = k.leased_count - (r.granted_size IS NOT NULL)::int,
           crowd_version = k.crowd_version + 1
     WHERE k.project_id = p_project AND k.id = r.voucher_id;
    UPDATE vf.flash_sales k
       SET sold_count = k.sold_count - (r.granted_size IS NULL)::int,
           leased_count = k.leased_count - (r.granted_size IS NOT NULL)::int
     WHERE k.project_id = p_project AND k.id = r.sale_id;
    -- The counts of an open lease live in Redis and reach these rows when it settles.
    IF v_state IS NULL OR v_state = 'settled' THEN
        UPDATE vf.customer_counts k SET live_count = k.live_count - 1
         WHERE k.customer_id = r.customer_id AND k.scope_id IN (r.voucher_id, r.campaign_id)
           AND k.project_id = p_project AND k.live_count > 0;
    END IF;
    UPDATE vf.budgets k SET used = k.used - t.used, reached_at = NULL
      FROM jsonb_populate_recordset(NULL::vf.budgets, r.detail -> 'takings') t
     WHERE k.subject = t.subject AND k.period = t.period AND k.label = t.label AND k.scope_id = t.scope_id
       AND k.project_id = p_project;
    INSERT INTO vf.outbox (project_id, event, subject, data)
    VALUES (p_project, 'redemption.rolled_back', r.id, jsonb_build_object('reason', p_reason));
    RETURN QUERY SELECT 'rolled_back', r.voucher_id, CASE WHEN v_state IS NOT NULL THEN r.lease_id END, v_state,
                        r.customer_id;
END $$;

-- Gives a part of a redemption's discount back, to the budgets it was taken of; the use stays used. Answers as
-- roll_back does, or too_much where more would be given back than was taken off.
CREATE FUNCTION vf.roll_back_part(p_project uuid, p_id uuid, p_amount bigint, p_reason text, p_window interval)
RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    r vf.redemptions;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO r FROM vf.redemptions k
     WHERE k.project_id = p_project AND k.id = p_id AND k.redeemed_at > '-infinity';
    IF NOT FOUND THEN
        RETURN 'not_found';
    END IF;
    PERFORM 1 FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = r.campaign_id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = r.voucher_id FOR NO KEY UPDATE;
    UPDATE vf.redemptions k
       SET returned_minor = coalesce(k.returned_minor, 0) + p_amount, rollback_reason = p_reason,
           -- What is left of it is what a rollback of the rest will give back.
           detail = CASE WHEN k.detail ? 'takings' THEN jsonb_set(k.detail, '{takings}', (
               SELECT jsonb_agg(CASE WHEN split_part(t ->> 'label', '/', 1) = 'discount'
                                     THEN jsonb_set(t, '{used}', to_jsonb((t ->> 'used')::bigint - p_amount))
                                     ELSE t END)
                 FROM jsonb_array_elements(k.detail -> 'takings') t)) ELSE k.detail END
     WHERE k.lease_id = r.lease_id AND k.seq = r.seq AND k.status = 'redeemed'
       AND k.redeemed_at > clock_timestamp() - p_window
       AND coalesce(k.returned_minor, 0) + p_amount <= k.discount_minor;
    IF NOT FOUND THEN
        SELECT * INTO r FROM vf.redemptions k WHERE k.lease_id = r.lease_id AND k.seq = r.seq;
        RETURN CASE WHEN r.status = 'rolled_back' THEN 'already_rolled_back'
                    WHEN r.redeemed_at <= clock_timestamp() - p_window THEN 'rollback_window_passed'
                    ELSE 'too_much' END;
    END IF;
    UPDATE vf.budgets k SET used = k.used - p_amount, reached_at = NULL
      FROM jsonb_populate_recordset(NULL::vf.budgets, r.detail -> 'takings') t
     WHERE split_part(t.label, '/', 1) = 'discount'
       AND k.subject = t.subject AND k.period = t.period AND k.label = t.label AND k.scope_id = t.scope_id
       AND k.project_id = p_project;
    INSERT INTO vf.outbox (project_id, event, subject, data)
    VALUES (p_project, 'redemption.rolled_back', r.id, jsonb_build_object('reason', p_reason, 'amount_minor', p_amount));
    RETURN 'rolled_back';
END $$;

-- ---------------------------------------------------------------------------------------------
-- Gift cards

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

-- ---------------------------------------------------------------------------------------------
-- Fast sales: arm, grow, settle

-- Moves every unit the sale may sell from the voucher to a new lease and takes the voucher's authority, in one
-- commit. Answers armed, or why not: not_found, live (a lease is already out: its id is returned), sold_out.
CREATE FUNCTION vf.arm_lease(p_project uuid, p_sale uuid, p_lease uuid, p_tag bigint, p_run_id text, p_backlog_max bigint)
RETURNS TABLE (outcome text, lease_id uuid, size bigint, seq_base bigint)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    s vf.flash_sales;
    v vf.vouchers;
    c vf.campaigns;
    l vf.leases;
    v_size bigint;
    v_base bigint;
    v_over text;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO s FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = p_sale;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = s.voucher_id;
    SELECT * INTO c FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = v.campaign_id FOR NO KEY UPDATE;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = s.voucher_id FOR NO KEY UPDATE;
    SELECT * INTO s FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = p_sale FOR NO KEY UPDATE;
    IF s.id IS NULL OR s.durability <> 'fast' OR s.status IN ('closed', 'settled') THEN
        RETURN QUERY SELECT 'not_found', NULL::uuid, NULL::bigint, NULL::bigint;
        RETURN;
    END IF;
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.voucher_id = v.id AND k.state <> 'settled';
    IF FOUND THEN
        RETURN QUERY SELECT 'live', l.id, l.size, l.seq_base;
        RETURN;
    END IF;
    v_size := least(s.stock - s.leased_count, v.max_redemptions - v.direct_count - v.leased_count,
                    c.max_redemptions - c.direct_count - c.leased_count);
    IF v_size > 0 THEN
        v_size := least(v_size, vf.quota_rest(p_project));
        v_over := CASE WHEN v_size <= 0 THEN 'plan_limit' END;
    END IF;
    IF v_size <= 0 THEN
        RETURN QUERY SELECT coalesce(v_over, 'sold_out'), NULL::uuid, NULL::bigint, NULL::bigint;
        RETURN;
    END IF;
    SELECT coalesce(max(k.seq_base + k.open_to), 0) INTO v_base
      FROM vf.leases k WHERE k.project_id = p_project AND k.sale_id = p_sale;
    INSERT INTO vf.leases (project_id, id, tag, sale_id, voucher_id, campaign_id, size, open_to, backlog_max, seq_base,
                           run_id, pg_lineage)
    VALUES (p_project, p_lease, p_tag, p_sale, v.id, v.campaign_id, v_size, v_size, p_backlog_max, v_base,
            p_run_id, vf.lineage());
    INSERT INTO vf.lease_grants (project_id, lease_id, size) VALUES (p_project, p_lease, v_size);
    INSERT INTO vf.lease_progress (project_id, lease_id) VALUES (p_project, p_lease);
    UPDATE vf.campaigns k SET leased_count = k.leased_count + v_size
     WHERE k.project_id = p_project AND k.id = v.campaign_id;
    UPDATE vf.vouchers k SET leased_count = k.leased_count + v_size, authority = 'flash',
           terms_version = k.terms_version + 1
     WHERE k.project_id = p_project AND k.id = v.id;
    UPDATE vf.flash_sales k SET leased_count = k.leased_count + v_size WHERE k.project_id = p_project AND k.id = p_sale;
    RETURN QUERY SELECT 'armed', p_lease, v_size, v_base;
END $$;

-- Raises an open lease by whatever the sale, the voucher and the campaign still have: more stock, or units that
-- rollbacks gave back. Compare-and-set on the size the caller saw; answers the size that now holds.
CREATE FUNCTION vf.grow_lease(p_project uuid, p_lease uuid, p_size_seen bigint)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    l vf.leases;
    v vf.vouchers;
    c vf.campaigns;
    s vf.flash_sales;
    v_more bigint;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease;
    SELECT * INTO c FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = l.campaign_id FOR NO KEY UPDATE;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = l.voucher_id FOR NO KEY UPDATE;
    SELECT * INTO s FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = l.sale_id FOR NO KEY UPDATE;
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease FOR NO KEY UPDATE;
    IF l.state IS DISTINCT FROM 'open' OR l.size <> p_size_seen THEN
        RETURN l.size;
    END IF;
    v_more := least(s.stock - s.leased_count, v.max_redemptions - v.direct_count - v.leased_count,
                    c.max_redemptions - c.direct_count - c.leased_count);
    IF v_more > 0 THEN
        v_more := least(v_more, vf.quota_rest(p_project));
    END IF;
    IF v_more <= 0 THEN
        RETURN l.size;
    END IF;
    INSERT INTO vf.lease_grants (project_id, lease_id, size) VALUES (p_project, p_lease, l.size + v_more);
    UPDATE vf.leases k SET size = k.size + v_more, open_to = k.size + v_more
     WHERE k.project_id = p_project AND k.id = p_lease;
    UPDATE vf.campaigns k SET leased_count = k.leased_count + v_more
     WHERE k.project_id = p_project AND k.id = l.campaign_id;
    UPDATE vf.vouchers k SET leased_count = k.leased_count + v_more
     WHERE k.project_id = p_project AND k.id = l.voucher_id;
    UPDATE vf.flash_sales k SET leased_count = k.leased_count + v_more
     WHERE k.project_id = p_project AND k.id = l.sale_id;
    RETURN l.size + v_more;
END $$;

-- Writes wins of one lease, in seq order, with the stream offset they reach: all or nothing. A second reconciler
-- finds the offset moved and gets 'stale', and so does one that read from another Redis process than the lease's, or
-- before its last judgement: after a split, its stream and the one that goes on tell different wins for one number. What cannot be the ledger's (above
-- open_to, or another win's number or key, or a number in p_poison whose entry could not be read) goes to quarantine
-- with its reason, and the offset moves on. A lease that is settled takes nothing more.
CREATE FUNCTION vf.settle_wins(
    p_project uuid, p_lease uuid, p_run_id text, p_judged bigint, p_from text, p_to text,
    p_seqs bigint[], p_ids uuid[], p_keys text[], p_fingerprints bytea[], p_customers text[],
    p_order_values bigint[], p_discounts bigint[], p_order_ids text[], p_metadata text[], p_remaining bigint[],
    p_at_ms bigint[], p_poison bigint[], p_poison_raw text[])
RETURNS TABLE (outcome text, inserted bigint, replayed bigint, same_key bigint, quarantined bigint, accounted bigint)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    l vf.leases;
    v_n bigint := cardinality(p_seqs);
    v_ins bigint;
    v_rep bigint := 0;
    v_same bigint := 0;
    v_bad bigint := 0;
    v_acc bigint;
    v_added bigint[];
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease FOR SHARE;
    IF l.state = 'settled' THEN
        RETURN QUERY SELECT 'closed', 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint;
        RETURN;
    ELSIF p_run_id = ANY (l.past_run_ids)
       OR l.state <> 'fenced' AND (p_run_id <> l.run_id OR p_judged <> l.judged) THEN
        RETURN QUERY SELECT 'stale', 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint;
        RETURN;
    END IF;
    PERFORM 1 FROM vf.lease_progress k WHERE k.lease_id = p_lease AND k.project_id = p_project
        AND k.last_id = p_from FOR NO KEY UPDATE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 'stale', 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint;
        RETURN;
    END IF;
    -- Nearly always none of them is there yet, and to look for each before it is added would be a quarter of its cost.
    BEGIN
        INSERT INTO vf.redemptions (project_id, lease_id, seq, granted_size, id, voucher_id, campaign_id, sale_id, sale_seq,
               idempotency_key, fingerprint, customer_id, order_id, order_value_minor, discount_minor, remaining, metadata,
               redeemed_at)
        SELECT p_project, p_lease, q.seq, l.size, q.id, l.voucher_id, l.campaign_id, l.sale_id, l.seq_base + q.seq,
               q.key, q.fingerprint, q.customer, q.order_id, q.order_value, q.discount, q.remaining, q.metadata::jsonb,
               to_timestamp(q.at_ms / 1000.0)
          FROM unnest(p_seqs, p_ids, p_keys, p_fingerprints, p_customers, p_order_values, p_discounts, p_order_ids,
                      p_metadata, p_remaining, p_at_ms)
               AS q (seq, id, key, fingerprint, customer, order_value, discount, order_id, metadata, remaining, at_ms)
         WHERE q.seq BETWEEN 1 AND l.open_to;
        GET DIAGNOSTICS v_ins = ROW_COUNT;
        v_added := CASE WHEN v_ins = v_n THEN p_seqs ELSE ARRAY(
            SELECT x FROM unnest(p_seqs) AS x WHERE x BETWEEN 1 AND l.open_to ORDER BY x) END;
    EXCEPTION WHEN unique_violation THEN
        WITH added AS (
            INSERT INTO vf.redemptions (project_id, lease_id, seq, granted_size, id, voucher_id, campaign_id, sale_id, sale_seq,
                   idempotency_key, fingerprint, customer_id, order_id, order_value_minor, discount_minor, remaining, metadata,
                   redeemed_at)
            SELECT p_project, p_lease, q.seq, l.size, q.id, l.voucher_id, l.campaign_id, l.sale_id, l.seq_base + q.seq,
                   q.key, q.fingerprint, q.customer, q.order_id, q.order_value, q.discount, q.remaining, q.metadata::jsonb,
                   to_timestamp(q.at_ms / 1000.0)
              FROM unnest(p_seqs, p_ids, p_keys, p_fingerprints, p_customers, p_order_values, p_discounts, p_order_ids,
                          p_metadata, p_remaining, p_at_ms)
                   AS q (seq, id, key, fingerprint, customer, order_value, discount, order_id, metadata, remaining, at_ms)
             WHERE q.seq BETWEEN 1 AND l.open_to
                ON CONFLICT DO NOTHING RETURNING seq
        )
        SELECT count(*), coalesce(array_agg(a.seq ORDER BY a.seq), '{}') INTO v_ins, v_added FROM added a;
    END;
    IF v_ins < v_n THEN
        -- Rows of this very call are visible here too: they equal their request and count as 'stored'.
        WITH judged AS (
            SELECT q.seq, q.key, q.customer,
                   CASE WHEN r.id = q.id AND r.idempotency_key = q.key THEN 'stored'
                        WHEN r.id IS NULL AND k.id IS NOT NULL AND q.seq <= l.open_to THEN 'same_key'
                        WHEN q.seq > l.open_to THEN 'closed'
                        ELSE 'conflict' END AS verdict
              FROM unnest(p_seqs, p_ids, p_keys, p_customers) AS q (seq, id, key, customer)
              LEFT JOIN LATERAL (SELECT x.id, x.idempotency_key FROM vf.redemptions x
                    WHERE x.lease_id = p_lease AND x.seq = q.seq LIMIT 1) r ON true
              LEFT JOIN LATERAL (SELECT x.id FROM vf.redemptions x WHERE x.idempotency_key = q.key
                    AND x.voucher_id = l.voucher_id AND x.project_id = p_project LIMIT 1) k ON true
        ), bad AS (
            INSERT INTO vf.quarantine (project_id, lease_id, seq, reason, entry)
            SELECT p_project, p_lease, j.seq, j.verdict, jsonb_build_object('key', j.key, 'customer', j.customer)
              FROM judged j WHERE j.verdict IN ('closed', 'conflict')
            RETURNING 1
        )
        SELECT count(*) FILTER (WHERE j.verdict = 'stored') - v_ins, count(*) FILTER (WHERE j.verdict = 'same_key'),
               (SELECT count(*) FROM bad)
          INTO v_rep, v_same, v_bad FROM judged j;
    END IF;
    INSERT INTO vf.quarantine (project_id, lease_id, seq, reason, entry)
    SELECT p_project, p_lease, q.seq, 'unreadable', to_jsonb(q.raw)
      FROM unnest(p_poison, p_poison_raw) AS q (seq, raw);
    v_bad := v_bad + cardinality(p_poison);
    v_n := v_n + cardinality(p_poison);
    UPDATE vf.lease_progress k
       SET last_id = p_to,
           accounted = greatest(k.accounted, (SELECT max(x) FROM unnest(p_seqs || p_poison) x)),
           read_count = k.read_count + v_n, inserted_count = k.inserted_count + v_ins,
           replayed_count = k.replayed_count + v_rep, same_key_count = k.same_key_count + v_same,
           quarantined_count = k.quarantined_count + v_bad
     WHERE k.lease_id = p_lease AND k.project_id = p_project
    RETURNING k.accounted INTO v_acc;
    IF v_ins > 0 THEN
        INSERT INTO vf.outbox (project_id, event, subject, data)
        VALUES (p_project, 'voucher.redeemed', p_lease,
                CASE WHEN v_added[v_ins] - v_added[1] = v_ins - 1
                     THEN jsonb_build_object('first', v_added[1], 'count', v_ins)
                     ELSE jsonb_build_object('first', v_added[1], 'count', v_ins, 'seqs', v_added) END);
    END IF;
    RETURN QUERY SELECT 'applied', v_ins, v_rep, v_same, v_bad, v_acc;
END $$;

-- Ends a lease: lowers open_to for good, returns the units above it, burns the holes below it, adds its wins to the
-- customers' counts and gives the authority back. Called when the stream is drained, or when it is known how far
-- answered wins can reach: p_open_to, or without one, as far as the backlog lets them. Nothing happens if the lease is
-- no longer in p_state or, where p_run_id is given, that Redis process is no longer the lease's: what the caller saw is
-- over. Answers settled, or why not: not_found, changed.
CREATE FUNCTION vf.settle_lease(p_project uuid, p_lease uuid, p_state text, p_run_id text, p_open_to bigint)
RETURNS TABLE (outcome text, open_to bigint, returned bigint, burned bigint)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    l vf.leases;
    v vf.vouchers;
    v_to bigint;
    v_rows bigint;
    v_returned bigint;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease;
    PERFORM 1 FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = l.campaign_id FOR NO KEY UPDATE;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = l.voucher_id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = l.sale_id FOR NO KEY UPDATE;
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease FOR NO KEY UPDATE;
    IF l.id IS NULL OR l.state = 'settled' THEN
        RETURN QUERY SELECT 'not_found', NULL::bigint, NULL::bigint, NULL::bigint;
        RETURN;
    ELSIF l.state <> p_state OR l.run_id <> p_run_id THEN
        RETURN QUERY SELECT 'changed', NULL::bigint, NULL::bigint, NULL::bigint;
        RETURN;
    END IF;
    SELECT count(*), greatest(coalesce(max(k.seq), 0), p_open_to) INTO v_rows, v_to
      FROM vf.redemptions k WHERE k.lease_id = p_lease;
    IF p_open_to IS NULL THEN
        SELECT greatest(v_to, k.accounted + l.backlog_max) INTO v_to
          FROM vf.lease_progress k WHERE k.project_id = p_project AND k.lease_id = p_lease;
    END IF;
    v_to := least(v_to, l.size);
    v_returned := l.size - v_to;
    UPDATE vf.leases k
       SET state = 'settled', open_to = v_to, returned = v_returned, burned = v_to - v_rows,
           settled_at = clock_timestamp()
     WHERE k.project_id = p_project AND k.id = p_lease;
    UPDATE vf.campaigns k SET leased_count = k.leased_count - v_returned
     WHERE k.project_id = p_project AND k.id = l.campaign_id;
    UPDATE vf.vouchers k
       SET leased_count = k.leased_count - v_returned, authority = 'pg', terms_version = k.terms_version + 1,
           crowd_version = k.crowd_version + 1
     WHERE k.project_id = p_project AND k.id = l.voucher_id;
    UPDATE vf.flash_sales k
       SET leased_count = k.leased_count - v_returned, burned_count = k.burned_count + v_to - v_rows,
           status = CASE WHEN k.status = 'closed' THEN 'settled' ELSE k.status END,
           updated_at = clock_timestamp()
     WHERE k.project_id = p_project AND k.id = l.sale_id;
    IF v.per_customer_limit IS NOT NULL THEN
        INSERT INTO vf.customer_counts AS k
               (project_id, scope_id, customer_id, live_count, limit_max, last_redemption_id)
        SELECT p_project, l.voucher_id, r.customer_id, count(*), greatest(v.per_customer_limit, count(*)),
               (array_agg(r.id ORDER BY r.seq DESC))[1]
          FROM vf.redemptions r
         WHERE r.lease_id = p_lease AND r.status = 'redeemed' AND r.customer_id IS NOT NULL
         GROUP BY r.customer_id ORDER BY r.customer_id
            ON CONFLICT (customer_id, scope_id, project_id) DO UPDATE
               SET live_count = k.live_count + excluded.live_count,
                   limit_max = greatest(k.limit_max, k.live_count + excluded.live_count),
                   last_redemption_id = excluded.last_redemption_id;
    END IF;
    INSERT INTO vf.outbox (project_id, event, subject, data)
    VALUES (p_project, 'flash_sale.settled', l.sale_id,
            jsonb_build_object('lease', p_lease, 'sold', v_rows, 'returned', v_returned, 'burned', v_to - v_rows));
    RETURN QUERY SELECT 'settled', v_to, v_returned, v_to - v_rows;
END $$;

-- Seats a worker at a lease, before it may send the first claim: only while the lease is served by the Redis process
-- that the worker saw. Whoever judges or settles counts it from here on. A new process has sealed nothing.
CREATE FUNCTION vf.join_lease(p_project uuid, p_lease uuid, p_worker text, p_node text, p_run_id text)
RETURNS TABLE (joined boolean, was_registered boolean)
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    PERFORM 1 FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease
        AND k.state IN ('open', 'draining') AND k.run_id = p_run_id FOR SHARE;
    IF NOT FOUND THEN
        RETURN QUERY SELECT false, EXISTS (
            SELECT 1 FROM vf.lease_workers w WHERE w.lease_id = p_lease AND w.worker_id = p_worker);
        RETURN;
    END IF;
    RETURN QUERY
    INSERT INTO vf.lease_workers AS w (lease_id, worker_id, node_id) VALUES (p_lease, p_worker, p_node)
        ON CONFLICT (lease_id, worker_id) DO UPDATE
           SET node_id = excluded.node_id, seen_at = clock_timestamp(), sealed_run_id = NULL, mark = NULL
    RETURNING true, w.seen_at <> w.registered_at;
END $$;

-- Writes that a worker answers no more wins of a lease, and its mark. It counts only until the next judgement, which
-- lifts seals: one that arrives later speaks of a worker that may have gone on since. Told for a dead neighbour, it
-- counts only if nobody has seen that one since p_seen_at. Answers whether it counts.
CREATE FUNCTION vf.seal_lease(p_project uuid, p_lease uuid, p_worker text, p_node text, p_run_id text,
                              p_judged integer, p_mark bigint, p_seen_at timestamptz)
RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    PERFORM 1 FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease
        AND k.judged = p_judged FOR SHARE;
    IF NOT FOUND THEN
        RETURN false;
    ELSIF p_seen_at IS NULL THEN
        INSERT INTO vf.lease_workers AS w (lease_id, worker_id, node_id, sealed_run_id, mark)
        VALUES (p_lease, p_worker, p_node, p_run_id, p_mark)
            ON CONFLICT (lease_id, worker_id) DO UPDATE
               SET sealed_run_id = excluded.sealed_run_id, mark = excluded.mark, seen_at = clock_timestamp();
    ELSE
        UPDATE vf.lease_workers w SET sealed_run_id = p_run_id, mark = p_mark, seen_at = clock_timestamp()
         WHERE w.lease_id = p_lease AND w.worker_id = p_worker AND w.seen_at = p_seen_at;
    END IF;
    RETURN FOUND;
END $$;

-- Takes a worker's seal back before it answers wins again, if the lease is still served by that Redis process and
-- nothing was judged since the worker looked. Answers whether it may.
CREATE FUNCTION vf.unseal_lease(p_project uuid, p_lease uuid, p_worker text, p_run_id text, p_judged integer)
RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    PERFORM 1 FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease
        AND k.state IN ('open', 'draining') AND k.run_id = p_run_id AND k.judged = p_judged FOR SHARE;
    IF NOT FOUND THEN
        RETURN false;
    END IF;
    UPDATE vf.lease_workers w SET sealed_run_id = NULL, mark = NULL, seen_at = clock_timestamp()
     WHERE w.lease_id = p_lease AND w.worker_id = p_worker;
    RETURN FOUND;
END $$;

-- Decides, once for all workers, what a lease is after Redis came back as another process: intact (every registered
-- worker has sealed and told its mark, and Redis still knows every number answered or settled), waiting, or fenced.
CREATE FUNCTION vf.judge_lease(
    p_project uuid, p_lease uuid, p_run_id_old text, p_run_id_new text, p_issued bigint, p_deadline interval)
RETURNS TABLE (outcome text, run_id text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    l vf.leases;
    v_mark bigint;
    v_waiting bigint;
    v_silent bigint;
    v_top bigint;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease FOR NO KEY UPDATE;
    IF l.id IS NULL OR l.state IN ('settled', 'fenced') OR l.run_id <> p_run_id_old THEN
        RETURN QUERY SELECT coalesce(l.state, 'settled'), l.run_id;
        RETURN;
    END IF;
    SELECT count(*) FILTER (WHERE w.sealed_run_id IS DISTINCT FROM p_run_id_new
                              AND w.seen_at > clock_timestamp() - p_deadline),
           count(*) FILTER (WHERE w.sealed_run_id IS DISTINCT FROM p_run_id_new
                                  AND w.seen_at <= clock_timestamp() - p_deadline
                               OR w.sealed_run_id = p_run_id_new AND w.mark IS NULL),
           coalesce(max(w.mark) FILTER (WHERE w.sealed_run_id = p_run_id_new), 0)
      INTO v_waiting, v_silent, v_mark
      FROM vf.lease_workers w WHERE w.lease_id = p_lease;
    SELECT coalesce(max(k.seq), 0) INTO v_top FROM vf.redemptions k WHERE k.lease_id = p_lease;
    IF v_silent > 0 OR p_issued IS NULL OR p_issued < v_top
       OR (v_waiting = 0 AND p_issued < v_mark) THEN
        UPDATE vf.leases k
           SET state = 'fenced', judged = k.judged + 1,
               fence_reason = CASE WHEN v_silent > 0 THEN v_silent || ' worker(s) whose marks nobody knows'
                   WHEN p_issued IS NULL THEN 'the lease is gone from Redis'
                   WHEN p_issued < v_top THEN 'Redis knows ' || p_issued || ', PostgreSQL has ' || v_top
                   ELSE 'Redis knows ' || p_issued || ', workers answered up to ' || v_mark END
         WHERE k.project_id = p_project AND k.id = p_lease;
        RETURN QUERY SELECT 'fenced', l.run_id;
    ELSIF v_waiting > 0 THEN
        RETURN QUERY SELECT 'waiting', l.run_id;
    ELSE
        UPDATE vf.leases k
           SET run_id = p_run_id_new, judged = k.judged + 1,
               past_run_ids = CASE WHEN p_run_id_new = k.run_id THEN k.past_run_ids
                                   ELSE array_remove(k.past_run_ids || k.run_id, p_run_id_new) END
         WHERE k.project_id = p_project AND k.id = p_lease;
        UPDATE vf.lease_workers w SET sealed_run_id = NULL, mark = NULL WHERE w.lease_id = p_lease;
        RETURN QUERY SELECT 'intact', p_run_id_new;
    END IF;
END $$;

-- Gives a restored database back what Redis knows of a lease, fenced, so that its stream is written and it settles.
-- A lease that is out and lacks a grant gets it; one that is not there at all is made as large as its highest number,
-- as far as the stock goes. The sale's status becomes what Redis heard of it. Answers created, held, settled (nothing
-- to do), busy (an older lease has to settle first, and the sale is paused until then), no_sale or no_room, and the
-- size that holds.
CREATE FUNCTION vf.recover_lease(
    p_project uuid, p_lease uuid, p_tag bigint, p_sale uuid, p_seq_base bigint, p_issued bigint, p_backlog_max bigint,
    p_run_id text, p_redis_state text, p_reason text)
RETURNS TABLE (outcome text, size bigint)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    l vf.leases;
    v vf.vouchers;
    c vf.campaigns;
    s vf.flash_sales;
    v_rest bigint;
    v_more bigint;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO s FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = p_sale;
    IF s.id IS NULL THEN
        RETURN QUERY SELECT 'no_sale', 0::bigint;
        RETURN;
    END IF;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = s.voucher_id;
    SELECT * INTO c FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = v.campaign_id FOR NO KEY UPDATE;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = s.voucher_id FOR NO KEY UPDATE;
    SELECT * INTO s FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = p_sale FOR NO KEY UPDATE;
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.voucher_id = v.id
        AND (k.id = p_lease OR k.state <> 'settled') ORDER BY k.id = p_lease DESC LIMIT 1 FOR NO KEY UPDATE;
    IF l.id = p_lease AND l.state = 'settled' THEN
        RETURN QUERY SELECT 'settled', l.size;
        RETURN;
    ELSIF l.id <> p_lease THEN
        -- Nobody may arm the sale between the two.
        UPDATE vf.flash_sales k SET status = 'paused', updated_at = clock_timestamp()
         WHERE k.project_id = p_project AND k.id = p_sale AND k.status IN ('scheduled', 'open');
        RETURN QUERY SELECT 'busy', 0::bigint;
        RETURN;
    END IF;
    v_rest := least(s.stock - s.sold_count - s.leased_count, v.max_redemptions - v.direct_count - v.leased_count,
                    c.max_redemptions - c.direct_count - c.leased_count);
    v_more := least(p_issued - coalesce(l.size, 0), v_rest);
    IF l.id IS NULL AND v_more <= 0 THEN
        RETURN QUERY SELECT 'no_room', 0::bigint;
        RETURN;
    END IF;
    UPDATE vf.flash_sales k
       SET status = CASE WHEN p_redis_state IN ('closed', 'open', 'paused') THEN p_redis_state ELSE k.status END,
           closed_at = CASE WHEN p_redis_state = 'closed' THEN coalesce(k.closed_at, clock_timestamp())
                            ELSE k.closed_at END,
           opened_at = coalesce(k.opened_at, clock_timestamp()), updated_at = clock_timestamp()
     WHERE k.project_id = p_project AND k.id = p_sale AND k.status IN ('scheduled', 'open', 'paused');
    IF l.id IS NULL THEN
        INSERT INTO vf.leases (project_id, id, tag, sale_id, voucher_id, campaign_id, state, size, open_to, backlog_max,
                               seq_base, run_id, pg_lineage, fence_reason)
        VALUES (p_project, p_lease, p_tag, p_sale, v.id, v.campaign_id, 'fenced', v_more, v_more, p_backlog_max,
                p_seq_base, p_run_id, vf.lineage(), p_reason);
        INSERT INTO vf.lease_progress (project_id, lease_id) VALUES (p_project, p_lease);
        UPDATE vf.vouchers k SET authority = 'flash', terms_version = k.terms_version + 1
         WHERE k.project_id = p_project AND k.id = v.id;
    ELSE
        UPDATE vf.leases k
           SET state = 'fenced', fence_reason = coalesce(k.fence_reason, p_reason), pg_lineage = vf.lineage(),
               size = k.size + greatest(v_more, 0), open_to = k.size + greatest(v_more, 0)
         WHERE k.project_id = p_project AND k.id = p_lease;
    END IF;
    IF v_more > 0 THEN
        INSERT INTO vf.lease_grants (project_id, lease_id, size)
        VALUES (p_project, p_lease, coalesce(l.size, 0) + v_more);
        UPDATE vf.campaigns k SET leased_count = k.leased_count + v_more
         WHERE k.project_id = p_project AND k.id = v.campaign_id;
        UPDATE vf.vouchers k SET leased_count = k.leased_count + v_more
         WHERE k.project_id = p_project AND k.id = v.id;
        UPDATE vf.flash_sales k SET leased_count = k.leased_count + v_more
         WHERE k.project_id = p_project AND k.id = p_sale;
    END IF;
    RETURN QUERY SELECT CASE WHEN l.id IS NULL THEN 'created' ELSE 'held' END,
                        coalesce(l.size, 0) + greatest(v_more, 0);
END $$;

-- Writes the redemption of a receipt at its own number, which settling burned. Answers claimed, stored (it is there), or
-- why not: unsettled, void (returned, released or another's), same_key or customer_limit with the redemption in the way.
CREATE FUNCTION vf.claim_receipt(
    p_project uuid, p_lease uuid, p_seq bigint, p_id uuid, p_key text, p_fingerprint bytea, p_customer text,
    p_order_value bigint, p_discount bigint, p_order_id text, p_metadata jsonb, p_remaining bigint,
    p_redeemed_at timestamptz)
RETURNS TABLE (outcome text, existing uuid)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    l vf.leases;
    v vf.vouchers;
    r vf.redemptions;
    v_held vf.customer_counts;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease;
    PERFORM 1 FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = l.campaign_id FOR NO KEY UPDATE;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = l.voucher_id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = l.sale_id FOR NO KEY UPDATE;
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease FOR NO KEY UPDATE;
    SELECT * INTO r FROM vf.redemptions k WHERE k.lease_id = p_lease AND k.seq = p_seq;
    IF r.id = p_id THEN
        RETURN QUERY SELECT 'stored', r.id;
        RETURN;
    ELSIF l.state <> 'settled' THEN
        RETURN QUERY SELECT 'unsettled', NULL::uuid;
        RETURN;
    ELSIF r.id IS NOT NULL OR p_seq > l.open_to OR l.burned = 0
       OR EXISTS (SELECT 1 FROM vf.released_numbers k WHERE k.lease_id = p_lease AND k.seq = p_seq) THEN
        RETURN QUERY SELECT 'void', NULL::uuid;
        RETURN;
    END IF;
    SELECT * INTO r FROM vf.redemptions k
     WHERE k.idempotency_key = p_key AND k.voucher_id = l.voucher_id AND k.project_id = p_project;
    IF FOUND THEN
        RETURN QUERY SELECT 'same_key', r.id;
        RETURN;
    END IF;
    SELECT * INTO v_held FROM vf.customer_counts k
     WHERE k.customer_id = p_customer AND k.scope_id = l.voucher_id AND k.project_id = p_project;
    IF v_held.live_count >= v.per_customer_limit THEN
        RETURN QUERY SELECT 'customer_limit', v_held.last_redemption_id;
        RETURN;
    END IF;
    INSERT INTO vf.redemptions (project_id, lease_id, seq, granted_size, id, voucher_id, campaign_id, sale_id, sale_seq,
           idempotency_key, fingerprint, customer_id, order_id, order_value_minor, discount_minor, remaining, metadata,
           redeemed_at)
    VALUES (p_project, p_lease, p_seq, l.size, p_id, l.voucher_id, l.campaign_id, l.sale_id, l.seq_base + p_seq, p_key,
            p_fingerprint, p_customer, p_order_id, p_order_value, p_discount, p_remaining, p_metadata, p_redeemed_at);
    UPDATE vf.leases k SET burned = k.burned - 1 WHERE k.project_id = p_project AND k.id = p_lease;
    UPDATE vf.lease_progress k
       SET read_count = k.read_count + 1, inserted_count = k.inserted_count + 1
     WHERE k.lease_id = p_lease AND k.project_id = p_project;
    UPDATE vf.flash_sales k SET burned_count = k.burned_count - 1, updated_at = clock_timestamp()
     WHERE k.project_id = p_project AND k.id = l.sale_id;
    UPDATE vf.vouchers k SET crowd_version = k.crowd_version + 1
     WHERE k.project_id = p_project AND k.id = l.voucher_id;
    IF v.per_customer_limit IS NOT NULL AND p_customer IS NOT NULL THEN
        INSERT INTO vf.customer_counts AS k
               (project_id, scope_id, customer_id, live_count, limit_max, last_redemption_id)
        VALUES (p_project, l.voucher_id, p_customer, 1, v.per_customer_limit, p_id)
            ON CONFLICT (customer_id, scope_id, project_id) DO UPDATE
               SET live_count = k.live_count + 1, last_redemption_id = excluded.last_redemption_id;
    END IF;
    INSERT INTO vf.outbox (project_id, event, subject, data)
    VALUES (p_project, 'voucher.redeemed', p_lease, jsonb_build_object('first', p_seq, 'count', 1));
    RETURN QUERY SELECT 'claimed', p_id;
END $$;

-- Gives the units of burned numbers back, all or none. p_numbers are the sale's numbers, as its answers and `doctor` name
-- them. Answers a row a number: released (now or before); or, where one is not burned, only those that are not:
-- not_burned. From then on the number is nobody's: a receipt for it is void. Locks campaign, voucher, sale, leases.
CREATE FUNCTION vf.release_numbers(p_project uuid, p_sale uuid, p_numbers bigint[])
RETURNS TABLE (number bigint, outcome text)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    s vf.flash_sales;
    v vf.vouchers;
    l record;
    v_now bigint := 0;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO s FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = p_sale;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = s.voucher_id;
    PERFORM 1 FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = v.campaign_id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = s.voucher_id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = p_sale FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.leases k WHERE k.project_id = p_project AND k.sale_id = p_sale ORDER BY k.id FOR NO KEY UPDATE;
    RETURN QUERY
    SELECT q.number, 'not_burned' FROM unnest(p_numbers) AS q (number)
     WHERE NOT EXISTS (
           SELECT 1 FROM vf.leases k
            WHERE k.project_id = p_project AND k.sale_id = p_sale AND k.state = 'settled'
              AND q.number BETWEEN k.seq_base + 1 AND k.seq_base + k.open_to
              AND NOT EXISTS (SELECT 1 FROM vf.redemptions r
                               WHERE r.lease_id = k.id AND r.seq = q.number - k.seq_base))
     ORDER BY q.number;
    IF FOUND THEN
        RETURN;
    END IF;
    FOR l IN SELECT k.id, k.seq_base, k.open_to FROM vf.leases k
              WHERE k.project_id = p_project AND k.sale_id = p_sale AND k.state = 'settled'
    LOOP
        INSERT INTO vf.released_numbers (project_id, lease_id, seq)
        SELECT p_project, l.id, q.number - l.seq_base FROM (SELECT DISTINCT x.number FROM unnest(p_numbers) AS x (number)) q
         WHERE q.number BETWEEN l.seq_base + 1 AND l.seq_base + l.open_to
            ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS v_now = ROW_COUNT;
        UPDATE vf.leases k SET burned = k.burned - v_now, released = k.released + v_now
         WHERE k.project_id = p_project AND k.id = l.id;
        UPDATE vf.campaigns k SET leased_count = k.leased_count - v_now
         WHERE k.project_id = p_project AND k.id = v.campaign_id;
        UPDATE vf.vouchers k SET leased_count = k.leased_count - v_now, crowd_version = k.crowd_version + 1
         WHERE k.project_id = p_project AND k.id = v.id;
        UPDATE vf.flash_sales k
           SET leased_count = k.leased_count - v_now, burned_count = k.burned_count - v_now,
               updated_at = clock_timestamp()
         WHERE k.project_id = p_project AND k.id = p_sale;
        IF v_now > 0 THEN
            INSERT INTO vf.outbox (project_id, event, subject, data)
            VALUES (p_project, 'flash_sale.released', p_sale, jsonb_build_object('lease', l.id, 'count', v_now));
        END IF;
    END LOOP;
    RETURN QUERY SELECT DISTINCT q.number, 'released' FROM unnest(p_numbers) AS q (number) ORDER BY q.number;
END $$;

-- ---------------------------------------------------------------------------------------------
-- Events

-- Publishes what waits in the outbox: each row becomes an event under an id above all before it, 48 bits of milliseconds, 16
-- of its place, 40 random ones and 24 zeros, which count a row's redemptions. Who committed first wrote first under the same
-- lock, so rows that are seen together are in order by number, and one that comes into sight later was committed later.
-- Answers how many rows left the outbox and between which ids their events are; none while somebody else publishes.
CREATE FUNCTION vf.publish_events(p_rows_max bigint, p_events_max bigint)
RETURNS TABLE (row_count bigint, first_id uuid, last_id uuid)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_ms bigint;
    v_told record;
BEGIN
    SELECT greatest(k.last_ms + 1, floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) INTO v_ms
      FROM vf.event_clock k FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN QUERY SELECT 0::bigint, NULL::uuid, NULL::uuid;
        RETURN;
    END IF;
    WITH waiting AS MATERIALIZED (
        SELECT k.*, q.*, row_number() OVER up_to AS place, sum(q.count) OVER up_to AS events
          FROM (SELECT x.* FROM vf.outbox x ORDER BY x.number LIMIT p_rows_max) k
         CROSS JOIN LATERAL (
               SELECT w.is_many, CASE WHEN w.is_many THEN (k.data ->> 'first')::bigint END AS first,
                      CASE WHEN w.is_many THEN (k.data ->> 'count')::bigint ELSE 1 END AS count,
                      CASE WHEN w.is_many AND k.data ? 'seqs'
                           THEN ARRAY(SELECT x::bigint FROM jsonb_array_elements_text(k.data -> 'seqs') x) END AS seqs
                 FROM (SELECT k.event = 'voucher.redeemed' AS is_many) w) q
        WINDOW up_to AS (ORDER BY k.number ROWS UNBOUNDED PRECEDING)
    ), due AS MATERIALIZED (
        SELECT w.*, (lpad(to_hex(v_ms), 12, '0') || lpad(to_hex(w.place - 1), 4, '0')
                     || left(replace(gen_random_uuid()::text, '-', ''), 10) || '000000')::uuid AS id
          FROM waiting w WHERE w.place = 1 OR w.events <= p_events_max
    ), told AS (
        INSERT INTO vf.events (project_id, id, type, subject, data, at, count, first_seq, last_seq, seqs)
        SELECT d.project_id, d.id, d.event, d.subject, CASE WHEN d.is_many THEN '{}' ELSE d.data END, d.at, d.count,
               d.first, coalesce(d.seqs[cardinality(d.seqs)], d.first + d.count - 1), d.seqs
          FROM due d
    ), gone AS (
        DELETE FROM vf.outbox k USING due d WHERE k.number = d.number AND k.project_id = d.project_id
    )
    SELECT count(*) AS row_count, (array_agg(d.id ORDER BY d.place))[1] AS first_id,
           (array_agg(d.id ORDER BY d.place DESC))[1] AS last_id
      INTO v_told FROM due d;
    UPDATE vf.event_clock k SET last_ms = v_ms WHERE v_told.row_count > 0;
    RETURN QUERY SELECT v_told.row_count, v_told.first_id, v_told.last_id;
END $$;

-- What some events add to the figures, of one project or of all: those after p_after up to p_to, and with p_waiting those that
-- wait to be published.
CREATE FUNCTION vf.facts(p_project uuid, p_after uuid, p_to uuid, p_waiting boolean)
RETURNS TABLE (project_id uuid, campaign_id uuid, sale_id uuid, voucher_id uuid, at timestamptz, redeemed bigint,
               discount_minor bigint, order_value_minor bigint, undone bigint, undone_discount_minor bigint,
               undone_value_minor bigint, returned_minor bigint, rolled_back bigint)
LANGUAGE sql STABLE
AS $$
    -- OFFSET 0 keeps each look-up by its own index: statistics of few vouchers with many redemptions speak for reading all.
    WITH told AS MATERIALIZED (
        SELECT e.project_id, e.type, e.subject, e.data, e.first_seq, e.last_seq, e.seqs
          FROM vf.events e
         WHERE e.id > p_after AND e.id <= p_to AND (p_project IS NULL OR e.project_id = p_project)
           AND e.type IN ('voucher.redeemed', 'redemption.rolled_back')
        UNION ALL
        SELECT o.project_id, o.event, o.subject, o.data, (o.data ->> 'first')::bigint,
               coalesce((o.data #>> '{seqs,-1}')::bigint,
                        (o.data ->> 'first')::bigint + (o.data ->> 'count')::bigint - 1),
               CASE WHEN o.data ? 'seqs'
                    THEN ARRAY(SELECT x::bigint FROM jsonb_array_elements_text(o.data -> 'seqs') x) END
          FROM vf.outbox o
         WHERE p_waiting AND (p_project IS NULL OR o.project_id = p_project)
           AND o.event IN ('voucher.redeemed', 'redemption.rolled_back')
    )
    SELECT r.project_id, r.campaign_id, r.sale_id, r.voucher_id, r.redeemed_at, 1::bigint, r.discount_minor,
           r.order_value_minor, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint
      FROM told t
     CROSS JOIN LATERAL (SELECT * FROM vf.redemptions k
                          WHERE k.lease_id = t.subject AND k.seq BETWEEN t.first_seq AND t.last_seq OFFSET 0) r
     WHERE t.type = 'voucher.redeemed' AND (t.seqs IS NULL OR r.seq = ANY (t.seqs))
    UNION ALL
    SELECT r.project_id, r.campaign_id, r.sale_id, r.voucher_id, r.redeemed_at, 0, 0, 0,
           CASE WHEN t.data ? 'amount_minor' THEN 0 ELSE 1 END,
           CASE WHEN t.data ? 'amount_minor' THEN 0 ELSE r.discount_minor - coalesce(r.returned_minor, 0) END,
           CASE WHEN t.data ? 'amount_minor' THEN 0 ELSE r.order_value_minor END,
           coalesce((t.data ->> 'amount_minor')::bigint, 0), 0
      FROM told t
     CROSS JOIN LATERAL (SELECT * FROM vf.redemptions k
                          WHERE k.project_id = t.project_id AND k.id = t.subject AND k.redeemed_at > '-infinity' OFFSET 0) r
     WHERE t.type = 'redemption.rolled_back'
    UNION ALL
    SELECT r.project_id, r.campaign_id, r.sale_id, r.voucher_id, r.rolled_back_at, 0, 0, 0, 0, 0, 0, 0, 1
      FROM told t
     CROSS JOIN LATERAL (SELECT * FROM vf.redemptions k
                          WHERE k.project_id = t.project_id AND k.id = t.subject AND k.redeemed_at > '-infinity' OFFSET 0) r
     WHERE t.type = 'redemption.rolled_back' AND NOT t.data ? 'amount_minor'
$$;

-- Adds facts, which are given by what selects them, to every row they belong to: of the project, its campaigns and sales by
-- the minute and quarter of an hour, of sales by the second, of vouchers by the quarter, and of all times.
CREATE FUNCTION vf.add_facts(p_after uuid, p_to uuid) RETURNS void LANGUAGE sql
AS $$
    WITH f AS MATERIALIZED (
        SELECT x.project_id, x.campaign_id, x.sale_id, x.voucher_id, date_bin('1 second', x.at, 'epoch') AS at,
               sum(x.redeemed) AS redeemed, sum(x.discount_minor) AS discount_minor,
               sum(x.order_value_minor) AS order_value_minor, sum(x.undone) AS undone,
               sum(x.undone_discount_minor) AS undone_discount_minor, sum(x.undone_value_minor) AS undone_value_minor,
               sum(x.returned_minor) AS returned_minor, sum(x.rolled_back) AS rolled_back
          FROM vf.facts(NULL, p_after, p_to, false) x GROUP BY 1, 2, 3, 4, 5
    )
    INSERT INTO vf.figures AS k
    SELECT f.project_id, s.scope_id, s.kind, g.grain_s,
           CASE g.grain_s WHEN 0 THEN '-infinity' ELSE date_bin(make_interval(secs => g.grain_s), f.at, 'epoch') END,
           sum(f.redeemed), sum(f.discount_minor), sum(f.order_value_minor), sum(f.undone),
           sum(f.undone_discount_minor), sum(f.undone_value_minor), sum(f.returned_minor), sum(f.rolled_back)
      FROM f
     CROSS JOIN LATERAL (VALUES (f.project_id, 'p'), (f.campaign_id, 'c'), (f.sale_id, 's'), (f.voucher_id, 'v'))
           AS s (scope_id, kind)
      JOIN (VALUES (0, 'pcsv'), (1, 's'), (60, 'pcs'), (900, 'pcsv')) AS g (grain_s, kinds)
        ON position(s.kind IN g.kinds) > 0
     WHERE s.scope_id IS NOT NULL
     GROUP BY 1, 2, 3, 4, 5
     ORDER BY 1, 2, 4, 5
        ON CONFLICT (project_id, scope_id, grain_s, bucket) DO UPDATE
           SET redeemed = k.redeemed + excluded.redeemed, discount_minor = k.discount_minor + excluded.discount_minor,
               order_value_minor = k.order_value_minor + excluded.order_value_minor, undone = k.undone + excluded.undone,
               undone_discount_minor = k.undone_discount_minor + excluded.undone_discount_minor,
               undone_value_minor = k.undone_value_minor + excluded.undone_value_minor,
               returned_minor = k.returned_minor + excluded.returned_minor,
               rolled_back = k.rolled_back + excluded.rolled_back
$$;

-- Adds the next events to the figures and moves the mark, in one commit; answers how many rows of events, or NULL where what
-- came before events is not added yet. Nothing while somebody else does.
CREATE FUNCTION vf.roll_up(p_rows_max bigint, p_events_max bigint)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    v_mark vf.figures_mark;
    v_to uuid;
    v_count bigint;
BEGIN
    SELECT * INTO v_mark FROM vf.figures_mark k FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    ELSIF v_mark.event_id IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT (array_agg(y.id ORDER BY y.id DESC))[1], count(*) INTO v_to, v_count
      FROM (SELECT x.id, sum(x.count) OVER (ORDER BY x.id) - x.count AS before
              FROM (SELECT e.id, e.count FROM vf.events e WHERE e.id > v_mark.event_id ORDER BY e.id LIMIT p_rows_max) x) y
     WHERE y.before < p_events_max;
    IF v_count > 0 THEN
        PERFORM vf.add_facts(v_mark.event_id, v_to);
        UPDATE vf.figures_mark k SET event_id = v_to;
    END IF;
    RETURN v_count;
END $$;

-- Adds every redemption there is, once, where the figures begin. Run it in a REPEATABLE READ transaction: then the ledger,
-- the events and the outbox are of one moment. Answers whether it is done; not while something waits to be published.
CREATE FUNCTION vf.begin_figures()
RETURNS boolean
LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM 1 FROM vf.figures_mark k WHERE k.event_id IS NULL FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN true;
    ELSIF EXISTS (SELECT 1 FROM vf.outbox o WHERE o.event IN ('voucher.redeemed', 'redemption.rolled_back')) THEN
        RETURN false;
    END IF;
    INSERT INTO vf.figures
    SELECT f.project_id, s.scope_id, s.kind, g.grain_s,
           CASE g.grain_s WHEN 0 THEN '-infinity' ELSE date_bin(make_interval(secs => g.grain_s), f.at, 'epoch') END,
           sum(f.redeemed), sum(f.discount_minor), sum(f.order_value_minor), sum(f.undone),
           sum(f.undone_discount_minor), sum(f.undone_value_minor), sum(f.returned_minor), sum(f.rolled_back)
      FROM (SELECT r.project_id, r.campaign_id, r.sale_id, r.voucher_id, r.redeemed_at, 1, r.discount_minor,
                   r.order_value_minor, u.undone, u.undone * (r.discount_minor - coalesce(r.returned_minor, 0)),
                   u.undone * r.order_value_minor, coalesce(r.returned_minor, 0), 0
              FROM vf.redemptions r
             CROSS JOIN LATERAL (SELECT (r.status = 'rolled_back')::integer AS undone) u
            UNION ALL
            SELECT r.project_id, r.campaign_id, r.sale_id, r.voucher_id, r.rolled_back_at, 0, 0, 0, 0, 0, 0, 0, 1
              FROM vf.redemptions r WHERE r.status = 'rolled_back')
           AS f (project_id, campaign_id, sale_id, voucher_id, at, redeemed, discount_minor, order_value_minor, undone,
                 undone_discount_minor, undone_value_minor, returned_minor, rolled_back)
     CROSS JOIN LATERAL (VALUES (f.project_id, 'p'), (f.campaign_id, 'c'), (f.sale_id, 's'), (f.voucher_id, 'v'))
           AS s (scope_id, kind)
      JOIN (VALUES (0, 'pcsv'), (1, 's'), (60, 'pcs'), (900, 'pcsv')) AS g (grain_s, kinds)
        ON position(s.kind IN g.kinds) > 0
     WHERE s.scope_id IS NOT NULL
     GROUP BY 1, 2, 3, 4, 5;
    UPDATE vf.figures_mark k
       SET event_id = coalesce((SELECT e.id FROM vf.events e ORDER BY e.id DESC LIMIT 1), '00000000-0000-0000-0000-000000000000');
    RETURN true;
END $$;

-- Writes what a statement changed of how many vouchers there are. As vf_definer: whoever makes vouchers writes no counts.
CREATE FUNCTION vf.note_vouchers() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO vf.voucher_changes (project_id, is_active, expires_at, count)
        VALUES (OLD.project_id, OLD.status = 'active', coalesce(OLD.expires_at, 'infinity'), -1),
               (NEW.project_id, NEW.status = 'active', coalesce(NEW.expires_at, 'infinity'), 1);
    ELSE
        INSERT INTO vf.voucher_changes (project_id, is_active, expires_at, count)
        SELECT t.project_id, t.status = 'active', coalesce(t.expires_at, 'infinity'),
               CASE TG_OP WHEN 'INSERT' THEN count(*) ELSE -count(*) END
          FROM touched t GROUP BY 1, 2, 3;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER vouchers_made AFTER INSERT ON vf.vouchers REFERENCING NEW TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION vf.note_vouchers();
CREATE TRIGGER vouchers_gone AFTER DELETE ON vf.vouchers REFERENCING OLD TABLE AS touched
    FOR EACH STATEMENT EXECUTE FUNCTION vf.note_vouchers();
-- Of these columns alone: a redeem changes others, and pays nothing.
CREATE TRIGGER vouchers_changed AFTER UPDATE OF status, expires_at ON vf.vouchers
    FOR EACH ROW WHEN ((OLD.status, OLD.expires_at) IS DISTINCT FROM (NEW.status, NEW.expires_at))
    EXECUTE FUNCTION vf.note_vouchers();

-- Counts the next changes, and the vouchers whose time is over since; answers how many changes, or NULL where it has not
-- begun. Nothing while somebody else does. One statement does it, so that vouchers and changes are of one moment: those
-- whose time is over since, as they are now, less what changes that are not counted say of them.
CREATE FUNCTION vf.count_vouchers(p_rows_max bigint, p_pause_s integer)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    v_from timestamptz;
    v_to timestamptz := clock_timestamp();
    v_count bigint;
BEGIN
    SELECT m.expired_to INTO v_from FROM vf.voucher_mark m FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN 0;
    ELSIF v_from IS NULL THEN
        RETURN NULL;
    ELSIF v_from > v_to - make_interval(secs => p_pause_s) AND NOT EXISTS (SELECT 1 FROM vf.voucher_changes) THEN
        RETURN 0;
    END IF;
    WITH taken AS (
        DELETE FROM vf.voucher_changes c
         WHERE c.ctid = ANY (ARRAY(SELECT x.ctid FROM vf.voucher_changes x LIMIT p_rows_max))
        RETURNING c.project_id, c.is_active, c.expires_at, c.count
    ), added AS (
        INSERT INTO vf.voucher_counts AS k (project_id, active_count, disabled_count, expired_count)
        SELECT n.project_id, sum(n.active), sum(n.disabled), sum(n.expired)
          FROM (SELECT t.project_id, CASE WHEN t.is_active THEN t.count ELSE 0 END AS active,
                       CASE WHEN t.is_active THEN 0 ELSE t.count END AS disabled,
                       CASE WHEN t.is_active AND t.expires_at <= v_to THEN t.count ELSE 0 END AS expired
                  FROM taken t
                UNION ALL
                SELECT p.id, 0, 0, v.expired
                  FROM vf.projects p
                 CROSS JOIN LATERAL (
                       SELECT count(*) AS expired FROM vf.vouchers k
                        WHERE k.project_id = p.id AND k.status = 'active' AND k.expires_at > v_from AND k.expires_at <= v_to) v
                 WHERE v.expired > 0
                UNION ALL
                SELECT c.project_id, 0, 0, -c.count FROM vf.voucher_changes c
                 WHERE c.is_active AND c.expires_at > v_from AND c.expires_at <= v_to) n
          JOIN vf.projects p ON p.id = n.project_id
         GROUP BY 1 ORDER BY 1
            ON CONFLICT (project_id) DO UPDATE
               SET active_count = k.active_count + excluded.active_count,
                   disabled_count = k.disabled_count + excluded.disabled_count,
                   expired_count = k.expired_count + excluded.expired_count
    ), moved AS (
        UPDATE vf.voucher_mark SET expired_to = v_to
    )
    SELECT count(*) INTO v_count FROM taken;
    RETURN v_count;
END $$;

-- Counts every voucher there is, once, where counting begins. Run it in a REPEATABLE READ transaction: then vouchers and
-- changes are of one moment. Answers whether it is done.
CREATE FUNCTION vf.begin_voucher_counts()
RETURNS boolean
LANGUAGE plpgsql
AS $$
DECLARE
    v_to timestamptz := clock_timestamp();
BEGIN
    PERFORM 1 FROM vf.voucher_mark m WHERE m.expired_to IS NULL FOR NO KEY UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        RETURN true;
    END IF;
    INSERT INTO vf.voucher_counts
    SELECT k.project_id, count(*) FILTER (WHERE k.status = 'active'), count(*) FILTER (WHERE k.status <> 'active'),
           count(*) FILTER (WHERE k.status = 'active' AND k.expires_at <= v_to)
      FROM vf.vouchers k GROUP BY 1;
    DELETE FROM vf.voucher_changes;
    UPDATE vf.voucher_mark m SET expired_to = v_to;
    RETURN true;
END $$;

-- How many vouchers of a project are active and in their time, disabled, and over, counting what is not counted yet.
CREATE FUNCTION vf.vouchers_of(p_project uuid)
RETURNS TABLE (active_count bigint, disabled_count bigint, expired_count bigint)
LANGUAGE sql STABLE
AS $$
    SELECT n.active - n.expired, n.disabled, n.expired
      FROM (SELECT (coalesce(k.active_count, 0) + c.active)::bigint AS active,
                   (coalesce(k.disabled_count, 0) + c.disabled)::bigint AS disabled,
                   (coalesce(k.expired_count, 0) + c.expired + e.expired)::bigint AS expired
              FROM vf.voucher_mark m
              LEFT JOIN vf.voucher_counts k ON k.project_id = p_project
             CROSS JOIN LATERAL (
                   SELECT coalesce(sum(c.count) FILTER (WHERE c.is_active), 0) AS active,
                          coalesce(sum(c.count) FILTER (WHERE NOT c.is_active), 0) AS disabled,
                          coalesce(sum(c.count) FILTER (WHERE c.is_active AND c.expires_at <= m.expired_to), 0) AS expired
                     FROM vf.voucher_changes c WHERE c.project_id = p_project AND m.expired_to IS NOT NULL) c
             CROSS JOIN LATERAL (
                   SELECT count(*) AS expired FROM vf.vouchers v
                    WHERE v.project_id = p_project AND v.status = 'active'
                      AND v.expires_at > m.expired_to AND v.expires_at <= now()) e
             WHERE m.expired_to IS NOT NULL
            UNION ALL
            SELECT v.active, v.disabled, v.expired
              FROM vf.voucher_mark m
             CROSS JOIN LATERAL (
                   SELECT count(*) FILTER (WHERE v.status = 'active') AS active,
                          count(*) FILTER (WHERE v.status <> 'active') AS disabled,
                          count(*) FILTER (WHERE v.status = 'active' AND v.expires_at <= now()) AS expired
                     FROM vf.vouchers v WHERE v.project_id = p_project AND m.expired_to IS NULL) v
             WHERE m.expired_to IS NULL) n
$$;
GRANT CREATE ON SCHEMA vf TO vf_definer;
ALTER FUNCTION vf.note_vouchers() OWNER TO vf_definer;
REVOKE CREATE ON SCHEMA vf FROM vf_definer;

INSERT INTO vf.history (lineage) VALUES (vf.lineage());
INSERT INTO vf.event_clock DEFAULT VALUES;
INSERT INTO vf.figures_mark DEFAULT VALUES;
INSERT INTO vf.voucher_mark DEFAULT VALUES;
INSERT INTO vf.fraud_mark DEFAULT VALUES;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
GRANT EXECUTE ON FUNCTION vf.audit_hash(bytea, vf.audit_log) TO vf_definer;
REVOKE EXECUTE ON FUNCTION vf.purge_project(uuid, bigint) FROM vf_app;
