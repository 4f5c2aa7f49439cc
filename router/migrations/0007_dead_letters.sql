-- Messages whose attempts are used up, or that ended the router: kept for somebody to look at, try again or discard.

CREATE TABLE dead_letters (
    message_id TEXT PRIMARY KEY REFERENCES messages (id),
    tenant_id  TEXT NOT NULL,
    at         BIGINT NOT NULL,
    reason     TEXT NOT NULL             -- attempts_exhausted | poisoned
);
CREATE INDEX dead_letters_by_tenant ON dead_letters (tenant_id, message_id);
CREATE INDEX dead_letters_by_age ON dead_letters (at);
