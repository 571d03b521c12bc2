-- Plans with quotas: calls by hour, redemptions from the ledger, changes of plan, invoices.

-- What was called in an hour, added up by each process once a second.
CREATE TABLE vf.usage_hours (
    project_id  uuid NOT NULL REFERENCES vf.projects (id),
    hour        timestamptz NOT NULL,
    call_count  bigint NOT NULL CHECK (call_count >= 0),
    PRIMARY KEY (project_id, hour)
);

-- What was used by projects that are gone, for their account's bill.
CREATE TABLE vf.deleted_usage (
    account_id        uuid NOT NULL REFERENCES vf.accounts (id),
    hour              timestamptz NOT NULL,
    call_count        bigint NOT NULL CHECK (call_count >= 0),
    redemption_count  bigint NOT NULL CHECK (redemption_count >= 0),
    PRIMARY KEY (account_id, hour)
);

-- Append-only: when an account went from one plan to another.
CREATE TABLE vf.plan_changes (
    account_id  uuid NOT NULL REFERENCES vf.accounts (id),
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    before      text NOT NULL,
    after       text NOT NULL,
    PRIMARY KEY (account_id, at)
);

-- Append-only: months that are over. lines is what was billed, as text a person reads.
CREATE TABLE vf.invoices (
    account_id    uuid NOT NULL REFERENCES vf.accounts (id),
    month         timestamptz NOT NULL,
    lines         jsonb NOT NULL,
    total_minor   bigint NOT NULL CHECK (total_minor >= 0),
    provider      text NOT NULL,
    reference     text,
    finalized_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (account_id, month)
);

ALTER TABLE vf.usage_hours ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.usage_hours FORCE ROW LEVEL SECURITY;
CREATE POLICY of_project ON vf.usage_hours TO vf_app
    USING (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid))
    WITH CHECK (project_id = (SELECT nullif(current_setting('app.project_id', true), '')::uuid));
CREATE POLICY of_operator ON vf.usage_hours TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_deletion ON vf.usage_hours TO vf_definer
    USING (project_id IN (SELECT p.id FROM vf.projects p WHERE p.status = 'deleting'));
GRANT SELECT, INSERT, UPDATE ON vf.usage_hours TO vf_app, vf_worker;
GRANT SELECT, DELETE ON vf.usage_hours TO vf_definer;
-- Accounts belong to no project: vf_app reaches what is theirs by functions alone.
ALTER TABLE vf.deleted_usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.deleted_usage FORCE ROW LEVEL SECURITY;
ALTER TABLE vf.plan_changes ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.plan_changes FORCE ROW LEVEL SECURITY;
ALTER TABLE vf.invoices ENABLE ROW LEVEL SECURITY;
ALTER TABLE vf.invoices FORCE ROW LEVEL SECURITY;
CREATE POLICY of_operator ON vf.plan_changes TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_operator ON vf.invoices TO vf_worker USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.deleted_usage TO vf_definer USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.plan_changes TO vf_definer USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.invoices TO vf_definer USING (true);
GRANT SELECT, INSERT ON vf.plan_changes, vf.invoices TO vf_worker;
CREATE POLICY of_definer ON vf.usage_hours TO vf_definer USING (true) WITH CHECK (true);
CREATE POLICY of_definer ON vf.redemptions FOR SELECT TO vf_definer USING (true);
CREATE POLICY of_definer ON vf.lease_progress FOR SELECT TO vf_definer USING (true);
GRANT SELECT, INSERT, UPDATE ON vf.deleted_usage TO vf_definer;
GRANT SELECT ON vf.redemptions, vf.lease_progress, vf.invoices TO vf_definer;
GRANT SELECT, INSERT ON vf.plan_changes TO vf_definer;
GRANT SELECT, INSERT, UPDATE ON vf.usage_hours TO vf_definer;
GRANT UPDATE (changed_at) ON vf.api_keys TO vf_definer;

DROP FUNCTION vf.authenticate(bytea);
-- Who presents the key with this digest; no row for an unknown, revoked or expired one, or in a project put away.
CREATE FUNCTION vf.authenticate(p_digest bytea)
RETURNS TABLE (key_id uuid, project_id uuid, account_id uuid, kind text, currency text, scopes text[],
               origins text[], expires_at timestamptz, plan text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT k.id, k.project_id, p.account_id, k.kind, p.currency, k.scopes, k.origins, k.expires_at, a.plan
      FROM vf.api_keys k JOIN vf.projects p ON p.id = k.project_id JOIN vf.accounts a ON a.id = p.account_id
     WHERE k.digest = p_digest AND k.revoked_at IS NULL AND p.status = 'active'
       AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())
$$;

-- ---------------------------------------------------------------------------------------------
-- Plans and usage

-- After how many redemptions a month a plan stops; NULL: it goes on.
CREATE FUNCTION vf.redemptions_until_stop(p_plan text) RETURNS bigint LANGUAGE sql IMMUTABLE
AS $$ SELECT CASE p_plan WHEN 'free' THEN 500 END $$;

-- How many projects a plan has room for; NULL: any number.
CREATE FUNCTION vf.projects_of_plan(p_plan text) RETURNS bigint LANGUAGE sql IMMUTABLE
AS $$ SELECT CASE p_plan WHEN 'free' THEN 1 WHEN 'starter' THEN 2 WHEN 'growth' THEN 5 END $$;

-- An account has no more projects at work than its plan has room for. Its row is locked, so two cannot both be the last.
CREATE FUNCTION vf.project_within_plan() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    v_room bigint;
BEGIN
    SELECT vf.projects_of_plan(a.plan) INTO v_room FROM vf.accounts a WHERE a.id = NEW.account_id FOR NO KEY UPDATE;
    IF (SELECT count(*) FROM vf.projects p WHERE p.account_id = NEW.account_id AND p.status = 'active') > v_room THEN
        RAISE EXCEPTION 'the plan has room for % projects', v_room
              USING ERRCODE = 'check_violation', CONSTRAINT = 'projects_within_plan';
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER projects_within_plan AFTER INSERT OR UPDATE OF status ON vf.projects
    FOR EACH ROW WHEN (NEW.status = 'active') EXECUTE FUNCTION vf.project_within_plan();

-- What a project that is deleted has used stays its account's.
CREATE FUNCTION vf.keep_deleted_usage() RETURNS trigger
LANGUAGE plpgsql
AS $$
BEGIN
    IF TG_TABLE_NAME = 'redemptions' THEN
        INSERT INTO vf.deleted_usage AS u (account_id, hour, call_count, redemption_count)
        SELECT p.account_id, date_trunc('hour', r.redeemed_at, 'UTC'), 0, count(*)
          FROM gone r JOIN vf.projects p ON p.id = r.project_id JOIN vf.accounts a ON a.id = p.account_id
         GROUP BY 1, 2 ORDER BY 1, 2
            ON CONFLICT (account_id, hour) DO UPDATE SET redemption_count = u.redemption_count + excluded.redemption_count;
    ELSE
        INSERT INTO vf.deleted_usage AS u (account_id, hour, call_count, redemption_count)
        SELECT p.account_id, g.hour, sum(g.call_count), 0
          FROM gone g JOIN vf.projects p ON p.id = g.project_id JOIN vf.accounts a ON a.id = p.account_id
         GROUP BY 1, 2 ORDER BY 1, 2
            ON CONFLICT (account_id, hour) DO UPDATE SET call_count = u.call_count + excluded.call_count;
    END IF;
    RETURN NULL;
END $$;

CREATE TRIGGER redemptions_gone AFTER DELETE ON vf.redemptions REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION vf.keep_deleted_usage();
CREATE TRIGGER usage_hours_gone AFTER DELETE ON vf.usage_hours REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION vf.keep_deleted_usage();

-- How many redemptions a project's account may still have this month, of a plan that stops; NULL: any number. Units
-- that are out at Redis are taken. The ledger of such an account is small: it is walked by its own index.
CREATE FUNCTION vf.quota_rest(p_project uuid)
RETURNS bigint
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off SET enable_bitmapscan = off
AS $$
DECLARE
    v_account uuid;
    v_quota bigint;
    v_projects uuid[];
BEGIN
    SELECT a.id, vf.redemptions_until_stop(a.plan), (SELECT array_agg(o.id) FROM vf.projects o WHERE o.account_id = a.id)
      INTO v_account, v_quota, v_projects
      FROM vf.projects p JOIN vf.accounts a ON a.id = p.account_id WHERE p.id = p_project;
    IF v_quota IS NULL THEN
        RETURN NULL;
    END IF;
    RETURN v_quota
         - (SELECT coalesce(sum(u.redemption_count), 0)::bigint FROM vf.deleted_usage u
             WHERE u.account_id = v_account AND u.hour >= date_trunc('month', clock_timestamp(), 'UTC'))
         - (SELECT count(*) FROM vf.redemptions r
             WHERE r.project_id = ANY (v_projects) AND r.redeemed_at > '-infinity'
               AND r.redeemed_at >= date_trunc('month', clock_timestamp(), 'UTC'))
         - (SELECT coalesce(sum(l.size - g.inserted_count), 0)::bigint
              FROM vf.leases l JOIN vf.lease_progress g ON g.project_id = l.project_id AND g.lease_id = l.id
             WHERE l.project_id = ANY (v_projects) AND l.state <> 'settled');
END $$;

-- Adds calls to the running hour. A project that is gone is left out.
CREATE FUNCTION vf.count_calls(p_projects uuid[], p_counts bigint[])
RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    INSERT INTO vf.usage_hours AS u (project_id, hour, call_count)
    SELECT p.id, date_trunc('hour', clock_timestamp(), 'UTC'), k.n
      FROM unnest(p_projects, p_counts) AS k (id, n) JOIN vf.projects p ON p.id = k.id
     ORDER BY p.id
        ON CONFLICT (project_id, hour) DO UPDATE SET call_count = u.call_count + excluded.call_count
$$;

-- How many calls a project's account has made this month.
CREATE FUNCTION vf.calls_of_month(p_project uuid)
RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT coalesce(sum(u.call_count), 0)::bigint
      FROM vf.projects p
     CROSS JOIN LATERAL (
           SELECT k.hour, k.call_count FROM vf.projects o JOIN vf.usage_hours k ON k.project_id = o.id
            WHERE o.account_id = p.account_id
           UNION ALL
           SELECT d.hour, d.call_count FROM vf.deleted_usage d WHERE d.account_id = p.account_id) u
     WHERE p.id = p_project AND u.hour >= date_trunc('month', clock_timestamp(), 'UTC')
$$;

-- The account of a project.
CREATE FUNCTION vf.account_of(p_project uuid)
RETURNS TABLE (account_id uuid, plan text, created_at timestamptz, project_count bigint, changes jsonb)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT a.id, a.plan, a.created_at, (SELECT count(*) FROM vf.projects o WHERE o.account_id = a.id AND o.status = 'active'),
           coalesce((SELECT jsonb_agg(jsonb_build_object('at', c.at, 'before', c.before, 'after', c.after) ORDER BY c.at)
                       FROM vf.plan_changes c WHERE c.account_id = a.id), '[]')
      FROM vf.projects p JOIN vf.accounts a ON a.id = p.account_id
     WHERE p.id = p_project
$$;

-- What an account used, or one project of it, by hour.
CREATE FUNCTION vf.usage_by_hour(p_account uuid, p_project uuid, p_from timestamptz, p_to timestamptz)
RETURNS TABLE (hour timestamptz, call_count bigint, redemption_count bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    WITH mine AS (
        SELECT p.id FROM vf.projects p WHERE p.account_id = p_account AND (p_project IS NULL OR p.id = p_project)
    ), used AS (
        SELECT u.hour, u.call_count, 0 AS redemption_count
          FROM vf.usage_hours u JOIN mine ON mine.id = u.project_id WHERE u.hour >= p_from AND u.hour < p_to
        UNION ALL
        SELECT date_trunc('hour', r.redeemed_at, 'UTC'), 0, 1
          FROM vf.redemptions r JOIN mine ON mine.id = r.project_id WHERE r.redeemed_at >= p_from AND r.redeemed_at < p_to
        UNION ALL
        SELECT d.hour, d.call_count, d.redemption_count
          FROM vf.deleted_usage d
         WHERE d.account_id = p_account AND p_project IS NULL AND d.hour >= p_from AND d.hour < p_to
    )
    SELECT t.hour, sum(t.call_count)::bigint, sum(t.redemption_count)::bigint FROM used t GROUP BY t.hour ORDER BY t.hour
$$;

-- Moves a project's account to another plan, and has the caches of keys look again. 'too_many_projects' where it has
-- no room for those there are.
CREATE FUNCTION vf.change_plan(p_project uuid, p_plan text)
RETURNS text
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    a vf.accounts;
BEGIN
    SELECT k.* INTO a FROM vf.accounts k JOIN vf.projects p ON p.account_id = k.id WHERE p.id = p_project
       FOR NO KEY UPDATE OF k;
    IF a.plan = p_plan THEN
        RETURN 'unchanged';
    END IF;
    IF (SELECT count(*) FROM vf.projects p WHERE p.account_id = a.id AND p.status = 'active') > vf.projects_of_plan(p_plan) THEN
        RETURN 'too_many_projects';
    END IF;
    INSERT INTO vf.plan_changes (account_id, before, after) VALUES (a.id, a.plan, p_plan);
    UPDATE vf.accounts k SET plan = p_plan WHERE k.id = a.id;
    UPDATE vf.api_keys k SET changed_at = clock_timestamp()
     WHERE k.project_id IN (SELECT p.id FROM vf.projects p WHERE p.account_id = a.id);
    RETURN 'changed';
END $$;

-- The invoices of a project's account, newest first.
CREATE FUNCTION vf.invoices_of(p_project uuid)
RETURNS SETOF vf.invoices
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
    SELECT i.* FROM vf.projects p JOIN vf.invoices i ON i.account_id = p.account_id
     WHERE p.id = p_project ORDER BY i.month DESC
$$;

GRANT CREATE ON SCHEMA vf TO vf_definer;
ALTER FUNCTION vf.authenticate(bytea) OWNER TO vf_definer;
GRANT EXECUTE ON FUNCTION vf.redemptions_until_stop(text), vf.projects_of_plan(text) TO vf_definer;
ALTER FUNCTION vf.project_within_plan() OWNER TO vf_definer;
ALTER FUNCTION vf.quota_rest(uuid) OWNER TO vf_definer;
ALTER FUNCTION vf.count_calls(uuid[], bigint[]) OWNER TO vf_definer;
ALTER FUNCTION vf.calls_of_month(uuid) OWNER TO vf_definer;
ALTER FUNCTION vf.account_of(uuid) OWNER TO vf_definer;
ALTER FUNCTION vf.usage_by_hour(uuid, uuid, timestamptz, timestamptz) OWNER TO vf_definer;
ALTER FUNCTION vf.change_plan(uuid, text) OWNER TO vf_definer;
ALTER FUNCTION vf.invoices_of(uuid) OWNER TO vf_definer;
REVOKE CREATE ON SCHEMA vf FROM vf_definer;

-- A lease takes no more than its account may still redeem.
CREATE OR REPLACE FUNCTION vf.arm_lease(p_project uuid, p_sale uuid, p_lease uuid, p_tag bigint, p_run_id text, p_backlog_max bigint)
RETURNS TABLE (outcome text, lease_id uuid, size bigint, seq_base bigint)
LANGUAGE plpgsql
AS $$
#variable_conflict use_column
DECLARE
    s vf.flash_sales;
    v vf.vouchers;
    c vf.campaigns;
    l vf.leases;
    v_size bigint;
    v_base bigint;
    v_over text;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO s FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = p_sale;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = s.voucher_id;
    SELECT * INTO c FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = v.campaign_id FOR NO KEY UPDATE;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = s.voucher_id FOR NO KEY UPDATE;
    SELECT * INTO s FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = p_sale FOR NO KEY UPDATE;
    IF s.id IS NULL OR s.durability <> 'fast' OR s.status IN ('closed', 'settled') THEN
        RETURN QUERY SELECT 'not_found', NULL::uuid, NULL::bigint, NULL::bigint;
        RETURN;
    END IF;
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.voucher_id = v.id AND k.state <> 'settled';
    IF FOUND THEN
        RETURN QUERY SELECT 'live', l.id, l.size, l.seq_base;
        RETURN;
    END IF;
    v_size := least(s.stock - s.leased_count, v.max_redemptions - v.direct_count - v.leased_count,
                    c.max_redemptions - c.direct_count - c.leased_count);
    IF v_size > 0 THEN
        v_size := least(v_size, vf.quota_rest(p_project));
        v_over := CASE WHEN v_size <= 0 THEN 'plan_limit' END;
    END IF;
    IF v_size <= 0 THEN
        RETURN QUERY SELECT coalesce(v_over, 'sold_out'), NULL::uuid, NULL::bigint, NULL::bigint;
        RETURN;
    END IF;
    SELECT coalesce(max(k.seq_base + k.open_to), 0) INTO v_base
      FROM vf.leases k WHERE k.project_id = p_project AND k.sale_id = p_sale;
    INSERT INTO vf.leases (project_id, id, tag, sale_id, voucher_id, campaign_id, size, open_to, backlog_max, seq_base,
                           run_id, pg_lineage)
    VALUES (p_project, p_lease, p_tag, p_sale, v.id, v.campaign_id, v_size, v_size, p_backlog_max, v_base,
            p_run_id, vf.lineage());
    INSERT INTO vf.lease_grants (project_id, lease_id, size) VALUES (p_project, p_lease, v_size);
    INSERT INTO vf.lease_progress (project_id, lease_id) VALUES (p_project, p_lease);
    UPDATE vf.campaigns k SET leased_count = k.leased_count + v_size
     WHERE k.project_id = p_project AND k.id = v.campaign_id;
    UPDATE vf.vouchers k SET leased_count = k.leased_count + v_size, authority = 'flash',
           terms_version = k.terms_version + 1
     WHERE k.project_id = p_project AND k.id = v.id;
    UPDATE vf.flash_sales k SET leased_count = k.leased_count + v_size WHERE k.project_id = p_project AND k.id = p_sale;
    RETURN QUERY SELECT 'armed', p_lease, v_size, v_base;
END $$;

CREATE OR REPLACE FUNCTION vf.grow_lease(p_project uuid, p_lease uuid, p_size_seen bigint)
RETURNS bigint
LANGUAGE plpgsql
AS $$
DECLARE
    l vf.leases;
    v vf.vouchers;
    c vf.campaigns;
    s vf.flash_sales;
    v_more bigint;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease;
    SELECT * INTO c FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = l.campaign_id FOR NO KEY UPDATE;
    SELECT * INTO v FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = l.voucher_id FOR NO KEY UPDATE;
    SELECT * INTO s FROM vf.flash_sales k WHERE k.project_id = p_project AND k.id = l.sale_id FOR NO KEY UPDATE;
    SELECT * INTO l FROM vf.leases k WHERE k.project_id = p_project AND k.id = p_lease FOR NO KEY UPDATE;
    IF l.state IS DISTINCT FROM 'open' OR l.size <> p_size_seen THEN
        RETURN l.size;
    END IF;
    v_more := least(s.stock - s.leased_count, v.max_redemptions - v.direct_count - v.leased_count,
                    c.max_redemptions - c.direct_count - c.leased_count);
    IF v_more > 0 THEN
        v_more := least(v_more, vf.quota_rest(p_project));
    END IF;
    IF v_more <= 0 THEN
        RETURN l.size;
    END IF;
    INSERT INTO vf.lease_grants (project_id, lease_id, size) VALUES (p_project, p_lease, l.size + v_more);
    UPDATE vf.leases k SET size = k.size + v_more, open_to = k.size + v_more
     WHERE k.project_id = p_project AND k.id = p_lease;
    UPDATE vf.campaigns k SET leased_count = k.leased_count + v_more
     WHERE k.project_id = p_project AND k.id = l.campaign_id;
    UPDATE vf.vouchers k SET leased_count = k.leased_count + v_more
     WHERE k.project_id = p_project AND k.id = l.voucher_id;
    UPDATE vf.flash_sales k SET leased_count = k.leased_count + v_more
     WHERE k.project_id = p_project AND k.id = l.sale_id;
    RETURN l.size + v_more;
END $$;

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
REVOKE EXECUTE ON FUNCTION vf.purge_project(uuid, bigint) FROM vf_app;
