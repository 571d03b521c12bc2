-- What was refused, to whom.

-- name: note :exec
-- Writes down what was refused, of several projects.
SELECT vf.note_signals(@projects, @ats, @reasons, @codes, @customers, @addresses, @devices);

-- name: erase :exec
-- Forgets what was refused to a customer.
DELETE FROM vf.fraud_signals WHERE project_id = @project_id AND customer_id = @customer_id;

-- name: forget :exec
-- Operator: deletes what was refused longer ago than events are kept, a bounded number at a time.
DELETE FROM vf.fraud_signals s
 WHERE s.ctid = ANY (ARRAY(
       SELECT k.ctid FROM vf.projects p CROSS JOIN LATERAL (
              SELECT x.ctid FROM vf.fraud_signals x
               WHERE x.project_id = p.id AND x.at < clock_timestamp() - make_interval(days => @keep_days::integer)
               LIMIT 10000) k
        LIMIT 10000));
