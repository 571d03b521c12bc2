-- What was refused, and what was only asked.

-- name: count :exec
-- Adds what a process has counted to the running quarter of an hour.
SELECT vf.count_attempts(@projects, @kinds, @reasons, @counts);

-- name: between :many
-- What was counted on some days of a time zone, both included.
SELECT a.kind, a.reason, sum(a.count)::bigint AS count
  FROM vf.attempts a
 WHERE a.project_id = @project_id
   AND a.bucket >= (@from_day::date)::timestamp AT TIME ZONE @time_zone::text
   AND a.bucket < (@to_day::date + 1)::timestamp AT TIME ZONE @time_zone
 GROUP BY 1, 2;
