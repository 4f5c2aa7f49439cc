-- One index of what is open: what is offered is found in it by its state, and every message is in it once instead of twice.
DROP INDEX attempts_offered;
DROP INDEX attempts_open;
CREATE INDEX attempts_open ON attempts (phone_id, state, offered_at) WHERE state <> 'done';
