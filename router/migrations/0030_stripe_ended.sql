-- Which subscriptions have ended, also of those that do not count: what is told late of one from before that gives no plan.

CREATE TABLE stripe_ended (
    customer     TEXT NOT NULL,
    subscription TEXT NOT NULL,
    created      BIGINT NOT NULL,        -- of the event, in seconds
    rank         BIGINT NOT NULL,        -- of events of one second: 0 created, 1 updated, 2 deleted
    at           BIGINT NOT NULL,        -- when we took it
    PRIMARY KEY (customer, subscription)
);
CREATE INDEX stripe_ended_by_age ON stripe_ended (at);
