-- A part of a discount can be given back. The check is not proved for old rows, which have nothing to check.

ALTER TABLE vf.redemptions ADD COLUMN returned_minor bigint;
ALTER TABLE vf.redemptions
    ADD CONSTRAINT redemptions_returned CHECK (returned_minor BETWEEN 1 AND discount_minor) NOT VALID;
ALTER TABLE vf.redemptions VALIDATE CONSTRAINT redemptions_returned;

-- Gives a part of a redemption's discount back, to the budgets it was taken of; the use stays used. Answers as
-- roll_back does, or too_much where more would be given back than was taken off.
CREATE FUNCTION vf.roll_back_part(p_project uuid, p_id uuid, p_amount bigint, p_reason text, p_window interval)
RETURNS text
LANGUAGE plpgsql
AS $$
DECLARE
    r vf.redemptions;
BEGIN
    PERFORM set_config('app.project_id', p_project::text, true);
    SELECT * INTO r FROM vf.redemptions k
     WHERE k.project_id = p_project AND k.id = p_id AND k.redeemed_at > '-infinity';
    IF NOT FOUND THEN
        RETURN 'not_found';
    END IF;
    PERFORM 1 FROM vf.campaigns k WHERE k.project_id = p_project AND k.id = r.campaign_id FOR NO KEY UPDATE;
    PERFORM 1 FROM vf.vouchers k WHERE k.project_id = p_project AND k.id = r.voucher_id FOR NO KEY UPDATE;
    UPDATE vf.redemptions k
       SET returned_minor = coalesce(k.returned_minor, 0) + p_amount, rollback_reason = p_reason,
           -- What is left of it is what a rollback of the rest will give back.
           detail = CASE WHEN k.detail ? 'takings' THEN jsonb_set(k.detail, '{takings}', (
               SELECT jsonb_agg(CASE WHEN split_part(t ->> 'label', '/', 1) = 'discount'
                                     THEN jsonb_set(t, '{used}', to_jsonb((t ->> 'used')::bigint - p_amount))
                                     ELSE t END)
                 FROM jsonb_array_elements(k.detail -> 'takings') t)) ELSE k.detail END
     WHERE k.lease_id = r.lease_id AND k.seq = r.seq AND k.status = 'redeemed'
       AND k.redeemed_at > clock_timestamp() - p_window
       AND coalesce(k.returned_minor, 0) + p_amount <= k.discount_minor;
    IF NOT FOUND THEN
        SELECT * INTO r FROM vf.redemptions k WHERE k.lease_id = r.lease_id AND k.seq = r.seq;
        RETURN CASE WHEN r.status = 'rolled_back' THEN 'already_rolled_back'
                    WHEN r.redeemed_at <= clock_timestamp() - p_window THEN 'rollback_window_passed'
                    ELSE 'too_much' END;
    END IF;
    UPDATE vf.budgets k SET used = k.used - p_amount, reached_at = NULL
      FROM jsonb_populate_recordset(NULL::vf.budgets, r.detail -> 'takings') t
     WHERE split_part(t.label, '/', 1) = 'discount'
       AND k.subject = t.subject AND k.period = t.period AND k.label = t.label AND k.scope_id = t.scope_id
       AND k.project_id = p_project;
    INSERT INTO vf.outbox (project_id, event, subject, data)
    VALUES (p_project, 'redemption.rolled_back', r.id, jsonb_build_object('reason', p_reason, 'amount_minor', p_amount));
    RETURN 'rolled_back';
END $$;


REVOKE ALL ON ALL FUNCTIONS IN SCHEMA vf FROM PUBLIC;
GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA vf TO vf_app, vf_worker;
