-- What the list of vouchers narrowed by status walks, in place of all vouchers.
CREATE INDEX vouchers_disabled ON vf.vouchers (project_id, id) WHERE status = 'disabled';
CREATE INDEX vouchers_expiry ON vf.vouchers (project_id, expires_at);
