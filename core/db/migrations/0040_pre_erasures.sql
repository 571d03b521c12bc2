-- Whoever is erased goes from what is otherwise never changed: in it the shop's own words, and what others answered.
GRANT UPDATE (reason) ON vf.gift_card_transactions TO vf_app;
GRANT UPDATE (data) ON vf.events, vf.outbox TO vf_app;
GRANT UPDATE (body) ON vf.delivery_attempts TO vf_app;
GRANT UPDATE (entry) ON vf.quarantine TO vf_app;
