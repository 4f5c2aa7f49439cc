-- One text to many recipients, who become messages page by page.

CREATE TABLE batches (
    id               TEXT PRIMARY KEY,
    tenant_id        TEXT NOT NULL REFERENCES tenants (id),
    test             BIGINT NOT NULL,    -- made with a test key: its messages are
    name             TEXT NOT NULL,
    state            TEXT NOT NULL,
    reason           TEXT,               -- why it is paused, where it was not the tenant that did it
    text             TEXT,               -- this, or a template
    template_id      TEXT,
    template_version BIGINT,
    variables        TEXT NOT NULL,      -- JSON object: for variables that a recipient has not
    asked_from       TEXT,
    channel_asked    TEXT NOT NULL,
    class            TEXT NOT NULL,
    metadata         TEXT,               -- JSON object
    send_at          BIGINT,
    ttl_s            BIGINT,
    recipients       BIGINT NOT NULL,    -- rows that count; those behind were left by an upload that did not end
    duplicates       BIGINT NOT NULL,
    invalid          BIGINT NOT NULL,
    expanded         BIGINT NOT NULL,    -- rows that have become messages: moves with them, in one transaction
    created_at       BIGINT NOT NULL,
    updated_at       BIGINT NOT NULL,
    started_at       BIGINT,
    ended_at         BIGINT
);
CREATE INDEX batches_by_tenant ON batches (tenant_id, id);
CREATE INDEX batches_at_work ON batches (id) WHERE state IN ('scheduled', 'running', 'canceling');

CREATE TABLE batch_recipients (
    batch_id   TEXT NOT NULL REFERENCES batches (id),
    position   BIGINT NOT NULL,          -- from 1, without gaps
    tenant_id  TEXT NOT NULL,
    recipient  TEXT NOT NULL,
    variables  TEXT,                     -- JSON object
    message_id TEXT,                     -- once it has one
    PRIMARY KEY (batch_id, position)
);
CREATE UNIQUE INDEX batch_recipients_once ON batch_recipients (batch_id, recipient);

ALTER TABLE messages ADD COLUMN batch_id TEXT;
-- Counts what stands where, and what is in the queue and could be sent now, which is bounded.
CREATE INDEX messages_of_batch ON messages (batch_id, status, held_reason) WHERE batch_id IS NOT NULL;
