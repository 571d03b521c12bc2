-- What wrote and settled without saying from which Redis process is gone with the code that called it.

DROP FUNCTION vf.settle_wins(uuid, uuid, text, text, bigint[], uuid[], text[], bytea[], text[], bigint[], bigint[], text[],
                             text[], bigint[], bigint[], bigint[], text[]);
DROP FUNCTION vf.settle_lease(uuid, uuid, bigint);
