-- Which of a customer's subscriptions is the newer one, and whether the one that counts has ended.

ALTER TABLE billing_accounts ADD COLUMN stripe_since BIGINT NOT NULL DEFAULT 0; -- when it was made, in seconds; 0: not known
ALTER TABLE billing_accounts ADD COLUMN stripe_ended BIGINT NOT NULL DEFAULT 0;
UPDATE billing_accounts SET stripe_ended = 1 WHERE stripe_rank = 2;
ALTER TABLE stripe_waiting ADD COLUMN since BIGINT NOT NULL DEFAULT 0;
