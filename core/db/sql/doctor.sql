-- What `doctor` asks of PostgreSQL: can this server keep the promise.

-- name: server :one
-- Operator: the version, the lineage's clock and the settings a commit's durability hangs on.
SELECT current_setting('server_version_num')::integer AS version_num,
       current_setting('server_version') AS version,
       current_setting('fsync') AS fsync,
       current_setting('full_page_writes') AS full_page_writes,
       current_setting('synchronous_commit') AS synchronous_commit,
       current_setting('max_connections')::integer AS connections_max,
       pg_is_in_recovery() AS is_replica,
       (extract(epoch FROM clock_timestamp()) * 1000)::bigint AS now_ms;
