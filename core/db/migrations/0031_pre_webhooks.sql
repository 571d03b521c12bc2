-- Webhooks: who is told of events, and how telling goes.

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

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['vf.webhooks', 'vf.deliveries', 'vf.delivery_attempts'] LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', t);
        EXECUTE format(
            'CREATE POLICY of_project ON %s TO vf_app '
            'USING (project_id = (SELECT nullif(current_setting(''app.project_id'', true), '''')::uuid)) '
            'WITH CHECK (project_id = (SELECT nullif(current_setting(''app.project_id'', true), '''')::uuid))', t);
        EXECUTE format('CREATE POLICY of_operator ON %s TO vf_worker USING (true) WITH CHECK (true)', t);
        EXECUTE format('CREATE POLICY of_deletion ON %s TO vf_definer USING (project_id IN (SELECT p.id FROM vf.projects p '
                       'WHERE p.status = ''deleting''))', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE ON %s TO vf_app, vf_worker', t);
        EXECUTE format('GRANT SELECT, DELETE ON %s TO vf_definer', t);
    END LOOP;
END $$;
REVOKE UPDATE ON vf.delivery_attempts FROM vf_app, vf_worker;
GRANT DELETE ON vf.deliveries TO vf_worker;
