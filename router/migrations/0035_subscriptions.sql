-- What is known of each subscription of each customer, the newest word of it: which one counts is decided from all of them.

CREATE TABLE stripe_subscriptions (
    customer     TEXT NOT NULL,
    subscription TEXT NOT NULL,
    since        BIGINT NOT NULL,        -- when it was made, in seconds; 0: not known
    created      BIGINT NOT NULL,        -- of the event, in seconds
    rank         BIGINT NOT NULL,        -- of events of one second: 0 created, 1 updated, 2 deleted
    event        TEXT NOT NULL,          -- its id, which sorts those of one second and rank
    plan         TEXT,                   -- NULL: it has ended
    passing      BIGINT NOT NULL,        -- 1: forgotten with age, because it has ended or no tenant is its customer
    at           BIGINT NOT NULL,        -- when we took it
    PRIMARY KEY (customer, subscription)
);
INSERT INTO stripe_subscriptions (customer, subscription, since, created, rank, event, plan, passing, at)
    SELECT customer, subscription, 0, created, rank, '', NULL, 1, at FROM stripe_ended;
INSERT INTO stripe_subscriptions (customer, subscription, since, created, rank, event, plan, passing, at)
    SELECT customer, subscription, since, created, rank, '', plan, 1, at FROM stripe_waiting WHERE true
    ON CONFLICT (customer, subscription) DO UPDATE SET since = excluded.since, created = excluded.created,
        rank = excluded.rank, plan = excluded.plan, at = excluded.at
    WHERE (excluded.created, excluded.rank) >= (stripe_subscriptions.created, stripe_subscriptions.rank);
INSERT INTO stripe_subscriptions (customer, subscription, since, created, rank, event, plan, passing, at)
    SELECT stripe_customer, stripe_subscription, stripe_since, stripe_at, stripe_rank, '',
        CASE WHEN stripe_ended = 1 THEN NULL ELSE plan END, stripe_ended, updated_at
    FROM billing_accounts WHERE stripe_customer IS NOT NULL AND stripe_subscription IS NOT NULL
    ON CONFLICT (customer, subscription) DO UPDATE SET since = excluded.since, created = excluded.created,
        rank = excluded.rank, plan = excluded.plan, passing = excluded.passing, at = excluded.at
    WHERE (excluded.created, excluded.rank) >= (stripe_subscriptions.created, stripe_subscriptions.rank);
CREATE INDEX stripe_subscriptions_by_age ON stripe_subscriptions (at) WHERE passing = 1;
DROP TABLE stripe_ended;
DROP TABLE stripe_waiting;
ALTER TABLE billing_accounts DROP COLUMN stripe_subscription;
ALTER TABLE billing_accounts DROP COLUMN stripe_at;
ALTER TABLE billing_accounts DROP COLUMN stripe_rank;
ALTER TABLE billing_accounts DROP COLUMN stripe_since;
ALTER TABLE billing_accounts DROP COLUMN stripe_ended;
