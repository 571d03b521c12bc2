-- What the last look at the books found, for /metrics.

CREATE TABLE vf.verifications (
    invariant   text PRIMARY KEY,
    violations  bigint NOT NULL CHECK (violations >= 0),
    elapsed_ms  bigint NOT NULL,
    checked_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
GRANT SELECT ON vf.verifications TO vf_app;
GRANT SELECT, INSERT, UPDATE ON vf.verifications TO vf_worker;
