-- Notices: parts of quotas and budgets that owners were told of.

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
ALTER TABLE vf.notices ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.notices FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.notices TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.notices TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_deletion ON vf.notices TO vf_definer USING (project_id IN (SELECT p.id FROM vf.projects p
    WHERE p.status = 'deleting'));
GRANT SELECT ON vf.notices TO vf_app;
GRANT SELECT, INSERT ON vf.notices TO vf_worker;
GRANT SELECT, DELETE ON vf.notices TO vf_definer;
