-- What a message is tried over and what goes with it, and what was learnt of how its recipient can be reached.

ALTER TABLE messages ADD COLUMN fallback TEXT;       -- JSON array of channels; NULL: what follows the channel by itself
ALTER TABLE messages ADD COLUMN media TEXT;          -- JSON array of {url, name?, sha256?}

-- The newest that a tenant's own messages, or an answer to its question, have shown of each channel of a recipient.
CREATE TABLE capabilities (
    tenant_id TEXT NOT NULL,
    test      BIGINT NOT NULL,           -- learnt on the sandbox, for the sandbox
    recipient TEXT NOT NULL,
    channel   TEXT NOT NULL,
    able      BIGINT NOT NULL,
    at        BIGINT NOT NULL,           -- when it was seen, by the clock of whoever saw it
    PRIMARY KEY (tenant_id, test, recipient, channel)
);

-- When a tenant last had a phone asked what it knows of a recipient; the phone's answer is written down for who asked.
CREATE TABLE capability_questions (
    phone_id  TEXT NOT NULL,
    recipient TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    test      BIGINT NOT NULL,
    asked_at  BIGINT NOT NULL,
    PRIMARY KEY (phone_id, recipient, tenant_id, test)
);
CREATE INDEX capability_questions_by_tenant ON capability_questions (tenant_id, test, recipient, asked_at);
