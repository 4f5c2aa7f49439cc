-- What the sandbox knows of people is its own: what a test key says of them changes nothing that live messages obey.

CREATE TABLE opt_outs_by_mode (
    tenant_id  TEXT NOT NULL,
    test       BIGINT NOT NULL DEFAULT 0, -- obeyed by messages of the sandbox, and by those alone
    recipient  TEXT NOT NULL,
    state      TEXT NOT NULL,            -- opted_out | opted_in
    method     TEXT NOT NULL,            -- keyword | inferred | api | import | operator | provider
    keyword    TEXT,
    message_id TEXT,                     -- the inbound message that did it
    at         BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, test, recipient)
);
INSERT INTO opt_outs_by_mode (tenant_id, test, recipient, state, method, keyword, message_id, at)
    SELECT tenant_id, 0, recipient, state, method, keyword, message_id, at FROM opt_outs;
DROP TABLE opt_outs;
ALTER TABLE opt_outs_by_mode RENAME TO opt_outs;

ALTER TABLE opt_out_events ADD COLUMN test BIGINT NOT NULL DEFAULT 0;
CREATE INDEX opt_out_events_of_sandbox ON opt_out_events (tenant_id, id) WHERE test = 1;

CREATE TABLE contacts_by_mode (
    tenant_id  TEXT NOT NULL,
    test       BIGINT NOT NULL DEFAULT 0,
    recipient  TEXT NOT NULL,
    time_zone  TEXT,                     -- IANA name
    state      TEXT,                     -- two letters, of the United States
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, test, recipient)
);
INSERT INTO contacts_by_mode (tenant_id, test, recipient, time_zone, state, created_at, updated_at)
    SELECT tenant_id, 0, recipient, time_zone, state, created_at, updated_at FROM contacts;
DROP TABLE contacts;
ALTER TABLE contacts_by_mode RENAME TO contacts;

-- Made with a test key: it is told of the sandbox, and of nothing else. The others are told of everything else.
ALTER TABLE webhook_endpoints ADD COLUMN test BIGINT NOT NULL DEFAULT 0;

-- Made with a test key: a test key may change it. Those of live keys it may read and use.
ALTER TABLE templates ADD COLUMN test BIGINT NOT NULL DEFAULT 0;
