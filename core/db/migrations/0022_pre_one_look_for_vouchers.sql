-- One look for all vouchers of a statement, in place of a foreign key's one for each row.

ALTER TABLE vf.redemptions DROP CONSTRAINT redemptions_voucher;
-- A count is only written beside a redemption of the same project, or under a row of it that is locked.
ALTER TABLE vf.customer_counts DROP CONSTRAINT customer_counts_project_id_fkey;

-- A redemption's voucher exists, and stays. A foreign key would say so row by row, at a fifth of what a win costs
-- (docs/decisions/0018-one-look-for-all-vouchers-of-a-commit.md); these look once a statement. The voucher's row is locked
-- by whoever redeems, so it can't go meanwhile.
CREATE FUNCTION vf.refuse_unknown_vouchers() RETURNS trigger LANGUAGE plpgsql
AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM (SELECT DISTINCT a.project_id, a.voucher_id FROM added a) n
                WHERE NOT EXISTS (SELECT 1 FROM vf.vouchers v WHERE v.project_id = n.project_id AND v.id = n.voucher_id)) THEN
        RAISE EXCEPTION 'a redemption names a voucher that is not there'
            USING ERRCODE = '23503', CONSTRAINT = 'redemptions_voucher', TABLE = 'redemptions', SCHEMA = 'vf';
    END IF;
    RETURN NULL;
END $$;
CREATE FUNCTION vf.refuse_another_voucher() RETURNS trigger LANGUAGE plpgsql
AS $$
BEGIN
    IF (NEW.project_id, NEW.voucher_id) IS DISTINCT FROM (OLD.project_id, OLD.voucher_id) THEN
        RAISE EXCEPTION 'a redemption stays with its voucher'
            USING ERRCODE = '23503', CONSTRAINT = 'redemptions_voucher', TABLE = 'redemptions', SCHEMA = 'vf';
    END IF;
    RETURN NEW;
END $$;
CREATE FUNCTION vf.keep_redeemed_vouchers() RETURNS trigger LANGUAGE plpgsql
AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND (NEW.project_id, NEW.id) IS NOT DISTINCT FROM (OLD.project_id, OLD.id) THEN
        RETURN NEW;
    END IF;
    IF EXISTS (SELECT 1 FROM vf.redemptions r
                WHERE r.voucher_id = OLD.id AND r.project_id = OLD.project_id AND r.redeemed_at > '-infinity') THEN
        RAISE EXCEPTION 'the voucher has redemptions'
            USING ERRCODE = '23503', CONSTRAINT = 'redemptions_voucher', TABLE = 'redemptions', SCHEMA = 'vf';
    END IF;
    RETURN CASE TG_OP WHEN 'DELETE' THEN OLD ELSE NEW END;
END $$;
CREATE TRIGGER redemptions_voucher AFTER INSERT ON vf.redemptions REFERENCING NEW TABLE AS added
    FOR EACH STATEMENT EXECUTE FUNCTION vf.refuse_unknown_vouchers();
CREATE TRIGGER redemptions_stay BEFORE UPDATE OF project_id, voucher_id ON vf.redemptions
    FOR EACH ROW EXECUTE FUNCTION vf.refuse_another_voucher();
CREATE TRIGGER vouchers_stay BEFORE DELETE OR UPDATE OF project_id, id ON vf.vouchers
    FOR EACH ROW EXECUTE FUNCTION vf.keep_redeemed_vouchers();

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
