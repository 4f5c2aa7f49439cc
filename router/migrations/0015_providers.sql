-- Providers of SMS. The number of each stands among the phones, so that conversations, attempts and stories are as with
-- any other; no host serves it, and the pool does not know it.

ALTER TABLE phones ADD COLUMN provider TEXT; -- whose number it is; NULL: a phone's

CREATE TABLE providers (
    name        TEXT PRIMARY KEY,
    kind        TEXT NOT NULL,           -- twilio | telnyx
    phone_id    TEXT NOT NULL UNIQUE REFERENCES phones (id),
    settings    TEXT NOT NULL,           -- JSON: what is no secret
    key_id      TEXT NOT NULL,           -- which key the credentials are sealed with
    credentials BLOB NOT NULL,           -- AES-256-GCM, bound to kind and name: nonce, ciphertext, tag
    enabled     BIGINT NOT NULL,
    priority    BIGINT NOT NULL,         -- lower is asked first
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL
);

-- One row: what the operator has set for all of them.
CREATE TABLE provider_choices (
    id             BIGINT PRIMARY KEY,   -- 1
    mrr_cents      BIGINT,               -- monthly recurring revenue, US cents
    mrr_as_of      BIGINT,
    twilio_allowed BIGINT NOT NULL,
    switched_to    TEXT
);

-- What only attempts at providers have.
CREATE TABLE provider_attempts (
    message_id  TEXT NOT NULL,
    attempt     BIGINT NOT NULL,
    tenant_id   TEXT NOT NULL,
    phone_id    TEXT NOT NULL,
    keep_until  BIGINT NOT NULL,         -- how long the provider may keep it
    asked_at    BIGINT,                  -- on disk before the provider is asked
    provider_id TEXT,                    -- by which id the provider knows it
    look_at     BIGINT,                  -- when it is looked for, if nothing is heard before
    looks       BIGINT NOT NULL,
    PRIMARY KEY (message_id, attempt)
);
CREATE UNIQUE INDEX provider_attempts_by_id ON provider_attempts (phone_id, provider_id) WHERE provider_id IS NOT NULL;
CREATE INDEX provider_attempts_to_look ON provider_attempts (phone_id, look_at) WHERE look_at IS NOT NULL;
