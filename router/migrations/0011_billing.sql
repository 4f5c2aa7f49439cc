-- Who pays, what is counted, and what was paid. Days are numbers such as 20261127, months such as 202611, both UTC.

-- Only tenants that have a plan with limits, a credit or somebody who pays for them have a row: no row, no limit. `quota` and
-- `price` are what the plan says, written here so that one statement decides.
CREATE TABLE billing_accounts (
    tenant_id           TEXT PRIMARY KEY REFERENCES tenants (id),
    plan                TEXT,            -- NULL: the default plan of the configuration
    quota               BIGINT,          -- messages a month; NULL: any number
    price               BIGINT NOT NULL, -- credits a message
    payer_id            TEXT,            -- the tenant that pays for this one; NULL: itself
    credit              BIGINT NOT NULL,
    month               BIGINT NOT NULL, -- the one that `used` and `warned` are of
    used                BIGINT NOT NULL, -- messages reserved in it, those of the tenants that it pays for among them
    warned              BIGINT NOT NULL, -- the highest percentage that was told
    stripe_customer     TEXT UNIQUE,
    stripe_subscription TEXT,            -- the one that the plan comes from
    stripe_at           BIGINT,          -- when the newest event about it was made, in seconds as Stripe counts
    stripe_rank         BIGINT,          -- of events of one second: 0 created, 1 updated, 2 deleted
    updated_at          BIGINT NOT NULL
);
CREATE INDEX billing_accounts_by_payer ON billing_accounts (payer_id) WHERE payer_id IS NOT NULL;

-- What a message was charged. Given back, the row is gone: so nothing is given back twice.
CREATE TABLE charges (
    message_id TEXT PRIMARY KEY,
    tenant_id  TEXT NOT NULL,            -- whose message
    payer_id   TEXT NOT NULL,            -- whose money
    month      BIGINT NOT NULL,          -- whose quota
    credits    BIGINT NOT NULL
);

-- Every change of a credit but the charges of messages. Never deleted.
CREATE TABLE credit_ledger (
    id        TEXT PRIMARY KEY,          -- evt_…: sorts by time
    tenant_id TEXT NOT NULL,
    at        BIGINT NOT NULL,
    amount    BIGINT NOT NULL,           -- credits added; negative: taken
    balance   BIGINT NOT NULL,           -- after it
    source    TEXT NOT NULL,             -- operator | stripe
    reason    TEXT NOT NULL,             -- for people
    reference TEXT                       -- an invoice, a payment: the same one is never booked twice
);
CREATE INDEX credit_ledger_by_tenant ON credit_ledger (tenant_id, id);
CREATE UNIQUE INDEX credit_ledger_by_reference ON credit_ledger (tenant_id, reference) WHERE reference IS NOT NULL;

-- What tenants have used. Counted for whoever sends; test keys and messages of our own are not among it.
CREATE TABLE usage (
    tenant_id        TEXT NOT NULL,
    day              BIGINT NOT NULL,
    class            TEXT NOT NULL,
    channel          TEXT NOT NULL,      -- as asked for, where it is not known what was used
    accepted         BIGINT NOT NULL,
    segments         BIGINT NOT NULL,    -- of accepted messages, if they all went as SMS
    sent             BIGINT NOT NULL,
    returned         BIGINT NOT NULL,    -- given back, because no phone ever began to send it
    credits          BIGINT NOT NULL,    -- charged
    credits_returned BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, day, class, channel)
);
CREATE INDEX usage_by_day ON usage (day, tenant_id, class, channel);

-- Events of Stripe that were taken: the same one again changes nothing.
CREATE TABLE stripe_events (
    id      TEXT PRIMARY KEY,            -- evt_… of Stripe's
    type    TEXT NOT NULL,
    created BIGINT NOT NULL,             -- seconds, as Stripe counts
    at      BIGINT NOT NULL,             -- when we took it
    outcome TEXT NOT NULL
);
CREATE INDEX stripe_events_by_age ON stripe_events (at);
