-- Sales, their leases, and the processes that serve them.

-- name: insert_voucher :exec
-- The voucher a sale makes for itself: it sells only inside a sale, and only as many as the stock.
INSERT INTO vf.vouchers (project_id, id, code, code_norm, discount_type, discount_bp, discount_minor, min_order_minor,
       max_redemptions, per_customer_limit, sale_only)
VALUES (@project_id, @id, @code, @code_norm, @discount_type, @discount_bp, @discount_minor, @min_order_minor,
        @stock, @per_customer_limit, true);

-- name: voucher_for_sale :one
-- An existing voucher that a sale is to be held on, with what may stand in its way.
SELECT v.id, v.status, v.max_redemptions, v.direct_count + v.leased_count AS taken, c.per_customer_limit AS campaign_customer_limit,
       v.promotion IS NULL AND c.promotion IS NULL AS is_plain
  FROM vf.vouchers v LEFT JOIN vf.campaigns c ON c.project_id = v.project_id AND c.id = v.campaign_id
 WHERE v.project_id = @project_id AND v.code_norm = @code_norm;

-- name: insert :exec
-- A new sale; one that is not over yet on the same voucher violates flash_sales_one_live.
INSERT INTO vf.flash_sales (project_id, id, voucher_id, name, durability, stock, first_stock, starts_at,
       ends_at, publishable_claims)
VALUES (@project_id, @id, @voucher_id, @sale_name, @durability, @stock, @stock, @starts_at, @ends_at,
        @publishable_claims);

-- name: read :one
-- One sale with its voucher's terms, its counts in the ledger and the lease that is out.
SELECT s.project_id, s.id, s.voucher_id, s.name, v.code, v.code_norm, s.durability, s.status, s.stock, s.sold_count,
       s.leased_count, s.burned_count, s.starts_at, s.ends_at, s.opened_at, s.closed_at, s.created_at,
       v.discount_type, v.discount_bp, v.discount_minor, v.min_order_minor, v.per_customer_limit, v.sale_only,
       l.id AS lease_id, l.state AS lease_state, l.size AS lease_size, l.armed_at, l.run_id, l.seq_base,
       s.publishable_claims, coalesce(p.accounted, 0) AS lease_accounted,
       least(s.stock - s.sold_count - s.leased_count, v.max_redemptions - v.direct_count - v.leased_count,
             c.max_redemptions - c.direct_count - c.leased_count) AS free_units,
       clock_timestamp() AS now
  FROM vf.flash_sales s
  JOIN vf.vouchers v ON v.project_id = s.project_id AND v.id = s.voucher_id
  LEFT JOIN vf.campaigns c ON c.project_id = v.project_id AND c.id = v.campaign_id
  LEFT JOIN vf.leases l ON l.project_id = s.project_id AND l.sale_id = s.id AND l.state <> 'settled'
  LEFT JOIN vf.lease_progress p ON p.project_id = l.project_id AND p.lease_id = l.id
 WHERE s.project_id = @project_id AND s.id = @id;

-- name: exists :one
-- Whether there is such a sale.
SELECT EXISTS (SELECT 1 FROM vf.flash_sales s WHERE s.project_id = @project_id AND s.id = @id);

-- name: list :many
-- A page of sale ids, newest first, below the cursor.
SELECT s.id FROM vf.flash_sales s
 WHERE s.project_id = @project_id AND (@before::uuid IS NULL OR s.id < @before)
 ORDER BY s.id DESC
 LIMIT @limit;

-- name: id_of_code :one
-- The latest sale on a voucher, for a claim by code outside a window.
SELECT s.id FROM vf.flash_sales s
 WHERE s.project_id = @project_id AND s.voucher_id = @voucher_id
 ORDER BY s.id DESC LIMIT 1;

-- name: patch :one
-- Changes what may change: the stock only upwards, the window while it is not over; the voucher of a sale-made code
-- grows with the stock.
WITH sale AS (
    UPDATE vf.flash_sales s
       SET name = coalesce(@sale_name, s.name),
           stock = coalesce(@stock, s.stock),
           sold_out_at = CASE WHEN @stock > s.stock THEN NULL ELSE s.sold_out_at END,
           starts_at = CASE WHEN @sets_starts_at THEN @starts_at::timestamptz ELSE s.starts_at END,
           ends_at = CASE WHEN @sets_ends_at THEN @ends_at::timestamptz ELSE s.ends_at END,
           updated_at = clock_timestamp()
     WHERE s.project_id = @project_id AND s.id = @id AND s.status NOT IN ('closed', 'settled')
       AND coalesce(@stock, s.stock) >= s.stock
       AND (NOT @sets_starts_at OR s.status = 'scheduled')
    RETURNING s.voucher_id, s.stock, s.project_id
), voucher AS (
    UPDATE vf.vouchers v
       SET max_redemptions = CASE WHEN v.sale_only THEN sale.stock ELSE v.max_redemptions END,
           crowd_version = v.crowd_version + 1, updated_at = clock_timestamp()
      FROM sale WHERE v.project_id = sale.project_id AND v.id = sale.voucher_id
)
SELECT sale.voucher_id FROM sale;

-- name: lock_voucher :exec
-- Takes the voucher's row first, as every writer of a sale does.
SELECT 1 FROM vf.vouchers v JOIN vf.flash_sales s ON s.project_id = v.project_id AND s.voucher_id = v.id
 WHERE s.project_id = @project_id AND s.id = @id FOR NO KEY UPDATE OF v;

-- name: open_strict :one
-- Puts a strict sale on its voucher: from here on every redeem of the code is the sale's. Sale-wide numbers start
-- where the voucher's stood when it first opened.
WITH before AS (
    SELECT s.status FROM vf.flash_sales s WHERE s.project_id = @project_id AND s.id = @id
), sale AS (
    UPDATE vf.flash_sales s
       SET status = CASE WHEN @by_hand OR s.starts_at IS NULL OR s.starts_at <= clock_timestamp() THEN 'open'
                         ELSE s.status END,
           starts_at = CASE WHEN @by_hand AND s.starts_at > clock_timestamp() THEN clock_timestamp()
                            ELSE s.starts_at END,
           seq_base = CASE WHEN s.opened_at IS NULL THEN v.next_number - 1 ELSE s.seq_base END,
           opened_at = coalesce(s.opened_at, clock_timestamp()), updated_at = clock_timestamp()
      FROM vf.vouchers v
     WHERE s.project_id = @project_id AND s.id = @id AND s.durability = 'strict'
       AND s.status IN ('scheduled', 'open', 'paused')
       AND (s.ends_at IS NULL OR s.ends_at > clock_timestamp())
       AND v.project_id = s.project_id AND v.id = s.voucher_id
    RETURNING s.project_id, s.voucher_id, s.id, s.status, s.name, v.code
), told AS (
    INSERT INTO vf.outbox (project_id, event, subject, data)
    SELECT sale.project_id, 'flash_sale.opened', sale.id, jsonb_build_object('name', sale.name, 'code', sale.code)
      FROM sale, before WHERE sale.status = 'open' AND before.status <> 'open'
), voucher AS (
    UPDATE vf.vouchers v
       SET flash_sale_id = sale.id, terms_version = v.terms_version + (v.flash_sale_id IS DISTINCT FROM sale.id)::int,
           crowd_version = v.crowd_version + 1
      FROM sale WHERE v.project_id = sale.project_id AND v.id = sale.voucher_id
)
SELECT sale.voucher_id FROM sale;

-- name: set_open :exec
-- Says that a fast sale is open: its lease is loaded and served. Locked by its voucher, as every writer does.
WITH before AS (
    SELECT s.status, v.code FROM vf.flash_sales s
      JOIN vf.vouchers v ON v.project_id = s.project_id AND v.id = s.voucher_id
     WHERE s.project_id = @project_id AND s.id = @id
), sale AS (
    UPDATE vf.flash_sales s
       SET status = 'open', opened_at = coalesce(s.opened_at, clock_timestamp()),
           starts_at = CASE WHEN @by_hand AND s.starts_at > clock_timestamp() THEN clock_timestamp() ELSE s.starts_at END,
           updated_at = clock_timestamp()
     WHERE s.project_id = @project_id AND s.id = @id AND s.status IN ('scheduled', 'open', 'paused')
       AND (@by_hand OR s.starts_at IS NULL OR s.starts_at <= clock_timestamp())
    RETURNING s.project_id, s.id, s.name
), told AS (
    INSERT INTO vf.outbox (project_id, event, subject, data)
    SELECT sale.project_id, 'flash_sale.opened', sale.id, jsonb_build_object('name', sale.name, 'code', before.code)
      FROM sale, before WHERE before.status <> 'open'
)
SELECT 1 FROM sale;

-- name: pause :one
-- Pauses an open sale.
WITH before AS (
    SELECT s.status FROM vf.flash_sales s WHERE s.project_id = @project_id AND s.id = @id
), sale AS (
    UPDATE vf.flash_sales s SET status = 'paused', updated_at = clock_timestamp()
     WHERE s.project_id = @project_id AND s.id = @id AND s.status IN ('open', 'paused')
    RETURNING s.project_id, s.voucher_id, s.id, s.name
), told AS (
    INSERT INTO vf.outbox (project_id, event, subject, data)
    SELECT sale.project_id, 'flash_sale.paused', sale.id, jsonb_build_object('name', sale.name)
      FROM sale, before WHERE before.status <> 'paused'
), voucher AS (
    UPDATE vf.vouchers v SET crowd_version = v.crowd_version + 1
      FROM sale WHERE v.project_id = sale.project_id AND v.id = sale.voucher_id
)
SELECT sale.voucher_id FROM sale;

-- name: close :one
-- Ends a sale for good: a strict one leaves its voucher at once, a fast one's lease starts to drain. A sale without
-- a lease has nothing to settle.
WITH lease AS (
    UPDATE vf.leases l SET state = 'draining'
     WHERE l.project_id = @project_id AND l.sale_id = @id AND l.state IN ('arming', 'open')
    RETURNING l.id
), out AS (
    SELECT EXISTS (SELECT 1 FROM vf.leases l WHERE l.project_id = @project_id AND l.sale_id = @id
                      AND l.state <> 'settled') AS has_lease
), before AS (
    SELECT s.status FROM vf.flash_sales s WHERE s.project_id = @project_id AND s.id = @id
), sale AS (
    UPDATE vf.flash_sales s
       SET status = CASE WHEN out.has_lease THEN 'closed' ELSE 'settled' END,
           closed_at = coalesce(s.closed_at, clock_timestamp()), updated_at = clock_timestamp()
      FROM out
     WHERE s.project_id = @project_id AND s.id = @id AND s.status <> 'settled'
    RETURNING s.project_id, s.voucher_id, s.id, s.status, s.name, s.sold_count
), told AS (
    INSERT INTO vf.outbox (project_id, event, subject, data)
    SELECT sale.project_id, t.event, sale.id, t.data
      FROM sale, before, LATERAL (VALUES
           ('flash_sale.closed', jsonb_build_object('name', sale.name), before.status <> 'closed'),
           ('flash_sale.settled', jsonb_build_object('sold', sale.sold_count, 'returned', 0, 'burned', 0),
            sale.status = 'settled')) AS t (event, data, is_so)
     WHERE t.is_so
), voucher AS (
    UPDATE vf.vouchers v
       SET flash_sale_id = NULL, terms_version = v.terms_version + 1, crowd_version = v.crowd_version + 1
      FROM sale
     WHERE v.project_id = sale.project_id AND v.id = sale.voucher_id AND v.flash_sale_id = sale.id
)
SELECT sale.voucher_id FROM sale;

-- name: arm_lease :one
-- Moves the sale's units from the voucher to a new lease.
SELECT outcome, lease_id, size, seq_base
  FROM vf.arm_lease(@project_id, @id, @lease_id, @tag, @run_id, @backlog_max);

-- name: lease_open :exec
-- Says that a lease is loaded into Redis.
UPDATE vf.leases l SET state = 'open', opened_at = clock_timestamp()
 WHERE l.project_id = @project_id AND l.id = @lease_id AND l.state = 'arming';

-- name: grow_lease :one
-- Raises a lease by what there is to sell beyond it.
SELECT vf.grow_lease(@project_id, @lease_id, @size_seen) AS size;

-- name: lease_facts :one
-- What Redis must know of a lease that is being armed.
SELECT l.id AS lease_id, l.size, l.backlog_max, l.pg_lineage, l.state, s.starts_at, s.ends_at, s.status,
       v.per_customer_limit, s.voucher_id, l.sale_id, l.tag, l.seq_base, clock_timestamp() AS now
  FROM vf.leases l
  JOIN vf.flash_sales s ON s.project_id = l.project_id AND s.id = l.sale_id
  JOIN vf.vouchers v ON v.project_id = l.project_id AND v.id = l.voucher_id
 WHERE l.project_id = @project_id AND l.id = @lease_id;

-- name: unserved :one
-- How many living API workers do not serve a lease at this size yet.
SELECT count(*) AS n FROM vf.api_workers w
 WHERE w.beat_at > clock_timestamp() - @alive_within::interval
   AND NOT EXISTS (SELECT 1 FROM vf.lease_workers k
                    WHERE k.lease_id = @lease_id AND k.worker_id = w.id AND k.serving_size >= @size);

-- name: clock :one
-- PostgreSQL's time.
SELECT clock_timestamp() AS now;

-- name: tell_sold_out :exec
-- Operator: tells of open sales of which nothing is left, once; more stock lets it be told again. Of a fast sale all numbers
-- must be decided here.
WITH due AS (
    SELECT s.project_id, s.id FROM vf.flash_sales s
     WHERE s.status = 'open' AND s.sold_out_at IS NULL AND s.sold_count + s.leased_count = s.stock
       AND NOT EXISTS (SELECT 1 FROM vf.leases l
                         JOIN vf.lease_progress p ON p.lease_id = l.id AND p.project_id = l.project_id
                        WHERE l.project_id = s.project_id AND l.sale_id = s.id AND l.state <> 'settled'
                          AND p.accounted < l.size)
     LIMIT 100 FOR NO KEY UPDATE SKIP LOCKED
), told AS (
    UPDATE vf.flash_sales s SET sold_out_at = clock_timestamp() FROM due d
     WHERE s.project_id = d.project_id AND s.id = d.id RETURNING s.project_id, s.id, s.name, s.stock
)
INSERT INTO vf.outbox (project_id, event, subject, data)
SELECT t.project_id, 'flash_sale.sold_out', t.id, jsonb_build_object('name', t.name, 'stock', t.stock) FROM told t;
