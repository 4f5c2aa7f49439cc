-- Of two words of one second and rank the one that comes later counts, whatever its id.
ALTER TABLE stripe_subscriptions DROP COLUMN event;
