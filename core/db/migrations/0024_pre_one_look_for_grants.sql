-- One look for the grants of a statement's wins, in place of a foreign key's one for each row: a fifth of what a win costs.

ALTER TABLE vf.redemptions DROP CONSTRAINT redemptions_grant;
DROP TRIGGER redemptions_voucher ON vf.redemptions;
DROP TRIGGER redemptions_stay ON vf.redemptions;
DROP FUNCTION vf.refuse_unknown_vouchers();
DROP FUNCTION vf.refuse_another_voucher();

-- A redemption's voucher and a win's grant exist, and stay. Foreign keys would say so row by row, at a fifth of what a win
-- costs (docs/decisions/0018-one-look-for-all-vouchers-of-a-commit.md); these look once a statement. The rows they look
-- for can't go meanwhile: whoever redeems has locked the voucher, whoever settles the lease.
CREATE FUNCTION vf.refuse_unknown_sources() RETURNS trigger LANGUAGE plpgsql
AS $$
DECLARE
    v_unknown text;
BEGIN
    SELECT CASE WHEN v.id IS NULL THEN 'voucher' ELSE 'grant' END INTO v_unknown
      FROM (SELECT DISTINCT a.project_id, a.voucher_id, a.lease_id, a.granted_size FROM added a) n
      LEFT JOIN vf.vouchers v ON v.project_id = n.project_id AND v.id = n.voucher_id
      LEFT JOIN vf.lease_grants g
             ON g.lease_id = n.lease_id AND g.size = n.granted_size AND g.project_id = n.project_id
     WHERE v.id IS NULL OR n.granted_size IS NOT NULL AND g.lease_id IS NULL
     LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'a redemption names a % that is not there', v_unknown
            USING ERRCODE = '23503', CONSTRAINT = 'redemptions_' || v_unknown, TABLE = 'redemptions', SCHEMA = 'vf';
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION vf.refuse_another_source() RETURNS trigger LANGUAGE plpgsql
AS $$
BEGIN
    IF (NEW.project_id, NEW.voucher_id) IS DISTINCT FROM (OLD.project_id, OLD.voucher_id) THEN
        RAISE EXCEPTION 'a redemption stays with its voucher'
            USING ERRCODE = '23503', CONSTRAINT = 'redemptions_voucher', TABLE = 'redemptions', SCHEMA = 'vf';
    ELSIF (NEW.lease_id, NEW.granted_size) IS DISTINCT FROM (OLD.lease_id, OLD.granted_size) THEN
        RAISE EXCEPTION 'a win stays with its grant'
            USING ERRCODE = '23503', CONSTRAINT = 'redemptions_grant', TABLE = 'redemptions', SCHEMA = 'vf';
    END IF;
    RETURN NEW;
END $$;
-- Nobody is granted less afterwards. Only an operator's hand comes here: no role of ours may change or delete a grant.
CREATE FUNCTION vf.keep_grants() RETURNS trigger LANGUAGE plpgsql
AS $$
BEGIN
    PERFORM 1 FROM vf.leases k WHERE k.project_id = OLD.project_id AND k.id = OLD.lease_id FOR NO KEY UPDATE;
    IF TG_OP = 'UPDATE' OR EXISTS (SELECT 1 FROM vf.redemptions r WHERE r.lease_id = OLD.lease_id) THEN
        RAISE EXCEPTION 'the lease has redemptions'
            USING ERRCODE = '23503', CONSTRAINT = 'redemptions_grant', TABLE = 'redemptions', SCHEMA = 'vf';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER redemptions_sources AFTER INSERT ON vf.redemptions REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION vf.refuse_unknown_sources();
CREATE TRIGGER redemptions_stay BEFORE UPDATE OF project_id, voucher_id, lease_id, granted_size ON vf.redemptions
    FOR EACH ROW EXECUTE FUNCTION vf.refuse_another_source();
CREATE TRIGGER lease_grants_stay BEFORE DELETE OR UPDATE ON vf.lease_grants
    FOR EACH ROW EXECUTE FUNCTION vf.keep_grants();

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
