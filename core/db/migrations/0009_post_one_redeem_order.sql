-- The redeem_order that knew no holds; the code that called it is gone.

DROP FUNCTION vf.redeem_order(uuid, text, text, bigint, text, bytea, uuid[], bigint[], uuid[], bigint[], uuid[], text[],
    bigint[], text[], jsonb);
