-- How the subscription of a customer stands that is no tenant yet: Stripe tells of it before it tells whose it is.

CREATE TABLE stripe_waiting (
    customer     TEXT PRIMARY KEY,
    subscription TEXT NOT NULL,
    plan         TEXT,                   -- NULL: it has ended
    created      BIGINT NOT NULL,        -- of the event, in seconds
    rank         BIGINT NOT NULL,        -- of events of one second: 0 created, 1 updated, 2 deleted
    at           BIGINT NOT NULL         -- when we took it
);
CREATE INDEX stripe_waiting_by_age ON stripe_waiting (at);
