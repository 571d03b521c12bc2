-- Segments of customers, and vouchers that are somebody's.

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

-- Whose voucher it is: it is in their wallet.
ALTER TABLE vf.vouchers ADD COLUMN holder text;
CREATE INDEX vouchers_of_holder ON vf.vouchers (holder, project_id, id) WHERE holder IS NOT NULL;

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['vf.segments', 'vf.segment_members']
    LOOP
        EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', t);
        EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', t);
        EXECUTE format(
            'CREATE POLICY of_project ON %s TO vf_app '
            'USING (project_id = (SELECT nullif(current_setting(''app.project_id'', true), '''')::uuid)) '
            'WITH CHECK (project_id = (SELECT nullif(current_setting(''app.project_id'', true), '''')::uuid))', t);
        EXECUTE format('CREATE POLICY of_operator ON %s TO vf_worker USING (true) WITH CHECK (true)', t);
        EXECUTE format('GRANT SELECT, INSERT, UPDATE ON %s TO vf_app, vf_worker', t);
    END LOOP;
END $$;
GRANT DELETE ON vf.segment_members TO vf_app, vf_worker;
