-- Since when the account of a phone counts as blocked, by the word of the host that serves it. That host may be gone when it is asked
-- who may take the phone over, and another Mac has the same account.
ALTER TABLE phones ADD COLUMN blocked_at BIGINT;
UPDATE phones SET blocked_at = updated_at WHERE reasons LIKE '%"account_blocked"%';
-- Since when a phone has not been ready on a host: since it was ready last, however often it is said anew why.
ALTER TABLE phone_hosts ADD COLUMN unready_since BIGINT;
UPDATE phone_hosts SET unready_since = changed_at WHERE state <> 'ready';
