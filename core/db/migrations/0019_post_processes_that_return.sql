-- What wrote without saying after which judgement it had read is gone with the code that called it.

DROP FUNCTION vf.settle_wins(uuid, uuid, text, text, text, bigint[], uuid[], text[], bytea[], text[], bigint[], bigint[],
                             text[], text[], bigint[], bigint[], bigint[], text[]);
