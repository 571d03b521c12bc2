-- Customers that are registered.

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

ALTER TABLE vf.customers ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.customers FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.customers TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.customers TO vf_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE, DELETE ON vf.customers TO vf_app, vf_worker;
