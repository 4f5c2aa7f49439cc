-- What the rules are decided by, and what they have decided.

-- A tenant's own choice of rules, as JSON; '{}' is the operator's default.
ALTER TABLE tenants ADD COLUMN rules TEXT NOT NULL DEFAULT '{}';

-- When a recipient last wrote to a tenant on this phone: an answer is one only soon after a question.
ALTER TABLE bindings ADD COLUMN last_inbound_at BIGINT;
UPDATE bindings SET last_inbound_at = last_at WHERE last_direction = 'inbound';

-- What a tenant knows of the people it writes to, better than their numbers tell it.
CREATE TABLE contacts (
    tenant_id  TEXT NOT NULL,
    recipient  TEXT NOT NULL,
    time_zone  TEXT,                     -- IANA name
    state      TEXT,                     -- two letters, of the United States
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant_id, recipient)
);

-- Every change of opt_outs and every wish that changed none, with its evidence. Never deleted.
CREATE TABLE opt_out_events (
    id         TEXT PRIMARY KEY,         -- evt_…, by time
    tenant_id  TEXT NOT NULL,
    recipient  TEXT NOT NULL,
    action     TEXT NOT NULL,            -- opted_out | opted_in | possible | help
    method     TEXT NOT NULL,            -- keyword | inferred | api | import | operator
    at         BIGINT NOT NULL,
    message_id TEXT,                     -- the inbound message that did it
    phone_id   TEXT,                     -- where it came in
    text       TEXT,                     -- what was written, as evidence
    evidence   TEXT,                     -- JSON: where, when and how, where it was not written to us
    rules      TEXT NOT NULL,            -- the version of the rules that judged it
    reviewed_at BIGINT                   -- a person has looked at what was inferred
);
CREATE INDEX opt_out_events_by_recipient ON opt_out_events (tenant_id, recipient, id);
CREATE INDEX opt_out_events_to_review ON opt_out_events (tenant_id, id)
    WHERE reviewed_at IS NULL AND (method = 'inferred' OR action = 'possible');

-- What the rules said of each message, whenever they said something new. Never deleted.
CREATE TABLE decisions (
    message_id TEXT NOT NULL,
    number     BIGINT NOT NULL,          -- from 1, per message
    tenant_id  TEXT NOT NULL,
    at         BIGINT NOT NULL,
    verdict    TEXT NOT NULL,            -- send | hold | block | expire
    reason     TEXT,
    until      BIGINT,                   -- of a hold: when it is asked again; of a send: until when it may start
    class      TEXT NOT NULL,            -- whose rules were applied
    rules      TEXT NOT NULL,            -- the version of the rules
    zones      TEXT NOT NULL,            -- the version of the time zone data
    text_hash  BLOB NOT NULL,            -- SHA-256 of the text
    PRIMARY KEY (message_id, number)
);
