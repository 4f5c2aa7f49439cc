-- The router's schema. Ids are TEXT, times are BIGINT milliseconds since 1970, JSON is TEXT, booleans are 0 and 1.
-- Words (status, class, reason, channel, type) are spelled as on the wire. Every tenant-scoped row carries tenant_id.

CREATE TABLE tenants (
    id          TEXT PRIMARY KEY,
    name        TEXT NOT NULL UNIQUE,
    brand       TEXT NOT NULL,           -- what recipients read in confirmations: "BRAND: you will get no more texts"
    created_at  BIGINT NOT NULL
);

CREATE TABLE api_keys (
    id           TEXT PRIMARY KEY,
    tenant_id    TEXT NOT NULL REFERENCES tenants (id),
    name         TEXT NOT NULL,
    prefix       TEXT NOT NULL UNIQUE,   -- sb_live_ or sb_test_ and the first characters: finds the row, is no secret
    hash         BLOB NOT NULL,          -- SHA-256 of the whole key
    scopes       TEXT NOT NULL,          -- JSON array of words
    test         BIGINT NOT NULL,
    expires_at   BIGINT,
    revoked_at   BIGINT,
    last_used_at BIGINT,
    created_at   BIGINT NOT NULL
);
CREATE INDEX api_keys_by_tenant ON api_keys (tenant_id, id);

CREATE TABLE hosts (
    id           TEXT PRIMARY KEY,
    name         TEXT NOT NULL,
    public_key   BLOB NOT NULL UNIQUE,   -- Ed25519, 32 bytes
    session      TEXT,                   -- the link session it has now, NULL when it has none
    boot         TEXT,
    version      TEXT,
    created_at   BIGINT NOT NULL,
    last_seen_at BIGINT
);

CREATE TABLE enrolment_tokens (
    hash       BLOB PRIMARY KEY,         -- SHA-256 of the token
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at    BIGINT,
    host_id    TEXT
);

CREATE TABLE phones (
    id                  TEXT PRIMARY KEY,
    number              TEXT NOT NULL UNIQUE,      -- E.164
    host_id             TEXT REFERENCES hosts (id),-- the host that serves it
    label               TEXT,
    exclusive_tenant_id TEXT REFERENCES tenants (id), -- NULL: pooled
    state               TEXT NOT NULL,             -- a word of PhoneState, as last reported; "stopped" before that
    reasons             TEXT NOT NULL,             -- JSON array of reason codes: why it is not ready
    channels            TEXT NOT NULL,             -- JSON array of channels, as last reported or configured
    warming_priority    BIGINT NOT NULL,
    messages_today      BIGINT NOT NULL,           -- counts for `day`, 0 when `day` is not today
    day                 BIGINT NOT NULL,           -- days since 1970, UTC
    last_used_at        BIGINT,
    journal             TEXT,                      -- the journal its bridge has now
    created_at          BIGINT NOT NULL,
    updated_at          BIGINT NOT NULL
);
CREATE INDEX phones_by_host ON phones (host_id);

-- How far the events of a journal have been taken in; a phone has a new journal when its bridge's file was lost.
CREATE TABLE phone_journals (
    phone_id   TEXT NOT NULL REFERENCES phones (id),
    journal    TEXT NOT NULL,
    acked_seq  BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (phone_id, journal)
);

CREATE TABLE leases (
    phone_id   TEXT PRIMARY KEY REFERENCES phones (id),
    epoch      BIGINT NOT NULL,          -- only grows
    host_id    TEXT NOT NULL REFERENCES hosts (id),
    granted_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);
CREATE INDEX leases_by_host ON leases (host_id);

CREATE TABLE messages (
    id            TEXT PRIMARY KEY,
    tenant_id     TEXT NOT NULL,
    direction     TEXT NOT NULL,         -- outbound | inbound
    kind          TEXT NOT NULL,         -- tenant | confirmation (ours, after an opt-out; exempt from it)
    test          BIGINT NOT NULL,       -- made with a test key: has no job, never reaches a phone
    recipient     TEXT NOT NULL,         -- the other side, outbound and inbound alike
    asked_from    TEXT,                  -- the number the tenant asked for
    phone_id      TEXT,                  -- the phone of the newest attempt (outbound), that received it (inbound)
    channel_asked TEXT NOT NULL,         -- auto or a channel
    channel_used  TEXT,
    class         TEXT NOT NULL,
    text          TEXT,
    metadata      TEXT,                  -- JSON object
    status        TEXT NOT NULL,
    reason        TEXT,                  -- why it ended so
    detail        TEXT,
    held_reason   TEXT,                  -- why it waits; NULL when it does not
    next_at       BIGINT,                -- when it is looked at again
    send_at       BIGINT,
    expires_at    BIGINT NOT NULL,
    attempts      BIGINT NOT NULL,       -- attempts made so far; the newest attempt's number
    sequence      BIGINT NOT NULL,       -- of its newest event
    guid          TEXT,                  -- Messages' own id, once known
    cancel_asked  BIGINT NOT NULL,       -- 1: it is wanted back; the phone is asked until it answers
    recall_reason TEXT,                  -- why, where it is not the tenant who wants it back: opted_out
    created_at    BIGINT NOT NULL,
    updated_at    BIGINT NOT NULL
);
CREATE INDEX messages_by_tenant ON messages (tenant_id, id);
CREATE INDEX messages_by_tenant_status ON messages (tenant_id, status, id);
CREATE INDEX messages_by_tenant_recipient ON messages (tenant_id, recipient, id);
CREATE INDEX messages_by_phone_guid ON messages (phone_id, guid) WHERE guid IS NOT NULL;
-- What an opt-out has to stop, and what falls out of the queue at its expiry: small, whatever the history's size.
CREATE INDEX messages_on_the_way ON messages (tenant_id, recipient, kind, id)
    WHERE status IN ('queued', 'scheduled', 'dispatching');
CREATE INDEX messages_expiring ON messages (expires_at) WHERE status IN ('queued', 'scheduled');

-- Read by message alone, so the id has no index of its own.
CREATE TABLE message_events (
    id         TEXT NOT NULL,
    message_id TEXT NOT NULL REFERENCES messages (id),
    tenant_id  TEXT NOT NULL,
    sequence   BIGINT NOT NULL,          -- from 1, per message
    type       TEXT NOT NULL,
    at         BIGINT NOT NULL,          -- when it happened, by the clock of whoever saw it
    phone_id   TEXT,
    attempt    BIGINT,
    channel    TEXT,
    reason     TEXT,
    detail     TEXT,
    PRIMARY KEY (message_id, sequence)
);

CREATE TABLE attempts (
    message_id   TEXT NOT NULL REFERENCES messages (id),
    attempt      BIGINT NOT NULL,        -- from 1
    tenant_id    TEXT NOT NULL,
    phone_id     TEXT NOT NULL,
    epoch        BIGINT NOT NULL,
    journal      TEXT,                   -- the phone's journal then: only its answer says that nothing was sent
    state        TEXT NOT NULL,          -- offered | accepted | started | done
    route        TEXT NOT NULL,          -- JSON array of channels
    offered_at   BIGINT NOT NULL,        -- the newest offer
    start_before BIGINT NOT NULL,
    answered_at  BIGINT,
    PRIMARY KEY (message_id, attempt)
);
-- The attempts to offer again, and those in flight on a phone.
CREATE INDEX attempts_offered ON attempts (phone_id, offered_at) WHERE state = 'offered';
CREATE INDEX attempts_open ON attempts (phone_id) WHERE state <> 'done';

-- A message that dispatch has still to look at. A claim sets claimed_until and moves run_at there, so that a claim
-- whose worker died falls due by itself.
CREATE TABLE jobs (
    message_id    TEXT PRIMARY KEY REFERENCES messages (id),
    tenant_id     TEXT NOT NULL,
    run_at        BIGINT NOT NULL,
    class_rank    BIGINT NOT NULL,       -- 0 otp, 1 transactional, 2 conversational, 3 marketing
    held_reason   TEXT,
    claimed_by    TEXT,
    claimed_until BIGINT
);
CREATE INDEX jobs_due ON jobs (run_at);
CREATE INDEX jobs_due_by_rank ON jobs (class_rank, run_at);
CREATE INDEX jobs_held ON jobs (held_reason, message_id) WHERE held_reason IS NOT NULL;

CREATE TABLE opt_outs (
    tenant_id  TEXT NOT NULL,
    recipient  TEXT NOT NULL,
    state      TEXT NOT NULL,            -- opted_out | opted_in
    method     TEXT NOT NULL,            -- keyword | api | operator
    keyword    TEXT,
    message_id TEXT,                     -- the inbound message that did it
    at         BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, recipient)
);

-- Who last talked with whom on which phone: sticky choice outbound, attribution inbound.
CREATE TABLE bindings (
    tenant_id      TEXT NOT NULL,
    recipient      TEXT NOT NULL,
    phone_id       TEXT NOT NULL,
    last_at        BIGINT NOT NULL,
    last_direction TEXT NOT NULL,
    PRIMARY KEY (tenant_id, recipient, phone_id)
);
CREATE INDEX bindings_by_phone ON bindings (phone_id, recipient, last_at);

-- Inbound messages are taken once, whatever a bridge repeats.
CREATE TABLE received_guids (
    phone_id TEXT NOT NULL,
    guid     TEXT NOT NULL,
    at       BIGINT NOT NULL,
    PRIMARY KEY (phone_id, guid)
);

-- Events that belong to nothing we know or could not be taken in, as the phone told them: acknowledged, and so kept here.
CREATE TABLE unplaced_events (
    phone_id TEXT NOT NULL,
    journal  TEXT NOT NULL,
    seq      BIGINT NOT NULL,
    type     TEXT NOT NULL,
    at       BIGINT NOT NULL,            -- when we took it
    why      TEXT NOT NULL,
    body     TEXT NOT NULL,              -- the event's JSON
    PRIMARY KEY (phone_id, journal, seq)
);

CREATE TABLE idempotency (
    scope       TEXT NOT NULL,           -- the tenant's id, or "operator"
    route       TEXT NOT NULL,
    key         TEXT NOT NULL,
    fingerprint BLOB NOT NULL,           -- SHA-256 of the canonical body
    status      BIGINT NOT NULL,
    body        TEXT NOT NULL,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (scope, route, key)
);
CREATE INDEX idempotency_by_age ON idempotency (created_at);

CREATE TABLE webhook_endpoints (
    id              TEXT PRIMARY KEY,
    tenant_id       TEXT NOT NULL REFERENCES tenants (id),
    url             TEXT NOT NULL,
    secret          TEXT NOT NULL,       -- whsec_…: signing needs it in the clear
    events          TEXT NOT NULL,       -- JSON array of types; ["*"] for all
    description     TEXT,
    disabled_at     BIGINT,
    disabled_reason TEXT,
    failing_since   BIGINT,
    created_at      BIGINT NOT NULL
);
CREATE INDEX webhook_endpoints_by_tenant ON webhook_endpoints (tenant_id, id);

CREATE TABLE webhook_jobs (
    id            TEXT PRIMARY KEY,      -- dlv_…
    endpoint_id   TEXT NOT NULL REFERENCES webhook_endpoints (id),
    tenant_id     TEXT NOT NULL,
    event_id      TEXT NOT NULL,         -- the webhook-id: the same across retries and endpoints
    type          TEXT NOT NULL,
    body          TEXT NOT NULL,
    state         TEXT NOT NULL,         -- pending | delivered | failed
    run_at        BIGINT NOT NULL,
    attempts      BIGINT NOT NULL,
    claimed_until BIGINT,
    created_at    BIGINT NOT NULL
);
CREATE INDEX webhook_jobs_due ON webhook_jobs (run_at) WHERE state = 'pending';
CREATE INDEX webhook_jobs_due_by_endpoint ON webhook_jobs (endpoint_id, run_at) WHERE state = 'pending';
CREATE INDEX webhook_jobs_by_endpoint ON webhook_jobs (endpoint_id, id);

CREATE TABLE webhook_attempts (
    job_id  TEXT NOT NULL REFERENCES webhook_jobs (id),
    attempt BIGINT NOT NULL,
    at      BIGINT NOT NULL,
    status  BIGINT,                      -- HTTP status; NULL when there was none
    error   TEXT,
    ms      BIGINT NOT NULL,
    PRIMARY KEY (job_id, attempt)
);
