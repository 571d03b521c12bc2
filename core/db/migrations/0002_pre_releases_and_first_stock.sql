-- The stock a sale was made with, and the rollbacks whose customers Redis has to release.

ALTER TABLE vf.flash_sales ADD COLUMN first_stock bigint;
ALTER TABLE vf.leases ADD COLUMN opened_at timestamptz;
CREATE INDEX redemptions_rolled_back ON vf.redemptions (voucher_id, rolled_back_at) WHERE status = 'rolled_back';
