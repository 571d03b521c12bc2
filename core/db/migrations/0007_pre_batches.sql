-- Batches: many vouchers made together.

ALTER TABLE vf.vouchers ADD COLUMN batch_id uuid;
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

ALTER TABLE vf.batches ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.batches FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.batches TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.batches TO vf_worker USING (true) WITH CHECK (true);
GRANT SELECT, INSERT, UPDATE ON vf.batches TO vf_app, vf_worker;
