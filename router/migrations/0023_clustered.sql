-- What happens to every message is written into these tables. SQLite keeps a table and its primary key apart, so that each
-- row is written twice and looked up twice, unless it is told that the key is all that rows are found by.

CREATE TABLE message_events_by_key (
    id         TEXT NOT NULL,
    message_id TEXT NOT NULL,            -- whoever adds a step has changed the message in the same transaction
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
) WITHOUT ROWID;
INSERT INTO message_events_by_key (id, message_id, tenant_id, sequence, type, at, phone_id, attempt, channel, reason, detail)
    SELECT id, message_id, tenant_id, sequence, type, at, phone_id, attempt, channel, reason, detail FROM message_events
    ORDER BY message_id, sequence;
DROP TABLE message_events;
ALTER TABLE message_events_by_key RENAME TO message_events;

CREATE TABLE attempts_by_key (
    message_id       TEXT NOT NULL REFERENCES messages (id),
    attempt          BIGINT NOT NULL,    -- from 1
    tenant_id        TEXT NOT NULL,
    phone_id         TEXT NOT NULL,
    epoch            BIGINT NOT NULL,
    journal          TEXT,               -- the phone's journal then: only its answer says that nothing was sent
    state            TEXT NOT NULL,      -- offered | accepted | started | done
    route            TEXT NOT NULL,      -- JSON array of channels
    offered_at       BIGINT NOT NULL,    -- the newest offer
    start_before     BIGINT NOT NULL,
    answered_at      BIGINT,
    first_offered_at BIGINT,             -- a phone that leaves offers unanswered gets no more
    PRIMARY KEY (message_id, attempt)
) WITHOUT ROWID;
INSERT INTO attempts_by_key (message_id, attempt, tenant_id, phone_id, epoch, journal, state, route, offered_at, start_before,
        answered_at, first_offered_at)
    SELECT message_id, attempt, tenant_id, phone_id, epoch, journal, state, route, offered_at, start_before, answered_at,
        first_offered_at
    FROM attempts ORDER BY message_id, attempt;
DROP TABLE attempts;
ALTER TABLE attempts_by_key RENAME TO attempts;
CREATE INDEX attempts_offered ON attempts (phone_id, offered_at) WHERE state = 'offered';
CREATE INDEX attempts_open ON attempts (phone_id) WHERE state <> 'done';

CREATE TABLE decisions_by_key (
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
) WITHOUT ROWID;
INSERT INTO decisions_by_key (message_id, number, tenant_id, at, verdict, reason, until, class, rules, zones, text_hash)
    SELECT message_id, number, tenant_id, at, verdict, reason, until, class, rules, zones, text_hash FROM decisions
    ORDER BY message_id, number;
DROP TABLE decisions;
ALTER TABLE decisions_by_key RENAME TO decisions;

CREATE TABLE bindings_by_key (
    tenant_id       TEXT NOT NULL,
    recipient       TEXT NOT NULL,
    phone_id        TEXT NOT NULL,
    last_at         BIGINT NOT NULL,
    last_direction  TEXT NOT NULL,
    last_inbound_at BIGINT,              -- an answer is one only soon after a question
    unanswered      BIGINT NOT NULL DEFAULT 0, -- messages to it since it last wrote
    PRIMARY KEY (tenant_id, recipient, phone_id)
) WITHOUT ROWID;
INSERT INTO bindings_by_key (tenant_id, recipient, phone_id, last_at, last_direction, last_inbound_at, unanswered)
    SELECT tenant_id, recipient, phone_id, last_at, last_direction, last_inbound_at, unanswered FROM bindings
    ORDER BY tenant_id, recipient, phone_id;
DROP TABLE bindings;
ALTER TABLE bindings_by_key RENAME TO bindings;
CREATE INDEX bindings_by_phone ON bindings (phone_id, recipient, last_at);

CREATE TABLE phone_contacts_by_key (
    recipient TEXT NOT NULL,
    phone_id  TEXT NOT NULL,
    since     BIGINT NOT NULL,
    counted   BIGINT NOT NULL,           -- 1: we wrote first, so `since` takes a place among the new contacts
    attempts  BIGINT NOT NULL,           -- made on this phone and not given back as never started
    heard     BIGINT NOT NULL,           -- 1: the recipient has written to this phone
    PRIMARY KEY (recipient, phone_id)
) WITHOUT ROWID;
INSERT INTO phone_contacts_by_key (recipient, phone_id, since, counted, attempts, heard)
    SELECT recipient, phone_id, since, counted, attempts, heard FROM phone_contacts ORDER BY recipient, phone_id;
DROP TABLE phone_contacts;
ALTER TABLE phone_contacts_by_key RENAME TO phone_contacts;
CREATE INDEX phone_contacts_counted ON phone_contacts (phone_id, since) WHERE counted = 1;

CREATE TABLE capabilities_by_key (
    tenant_id TEXT NOT NULL,
    test      BIGINT NOT NULL,           -- learnt on the sandbox, for the sandbox
    recipient TEXT NOT NULL,
    channel   TEXT NOT NULL,
    able      BIGINT NOT NULL,
    at        BIGINT NOT NULL,           -- when it was seen, by the clock of whoever saw it
    PRIMARY KEY (tenant_id, test, recipient, channel)
) WITHOUT ROWID;
INSERT INTO capabilities_by_key (tenant_id, test, recipient, channel, able, at)
    SELECT tenant_id, test, recipient, channel, able, at FROM capabilities ORDER BY tenant_id, test, recipient, channel;
DROP TABLE capabilities;
ALTER TABLE capabilities_by_key RENAME TO capabilities;
