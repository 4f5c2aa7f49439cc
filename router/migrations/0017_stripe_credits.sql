-- What a customer has paid for who is no tenant yet: Stripe may tell of an invoice before it tells whose it is.

CREATE TABLE stripe_waiting_credits (
    customer  TEXT NOT NULL,
    reference TEXT NOT NULL,              -- the invoice or the session: booked once
    credits   BIGINT NOT NULL,
    reason    TEXT NOT NULL,              -- the type of the event
    at        BIGINT NOT NULL,            -- when we took it
    PRIMARY KEY (customer, reference)
);
CREATE INDEX stripe_waiting_credits_by_age ON stripe_waiting_credits (at);
