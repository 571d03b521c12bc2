-- name: applied :many
-- Every migration this database has had, for telling whether the code and the schema fit.
SELECT name, checksum FROM vf.migrations ORDER BY name;
