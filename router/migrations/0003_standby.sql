-- A phone may be configured on several hosts. One serves it (phones.host_id), the others stand by and read along.
-- What phones.state, reasons and journal say is a copy of the serving host's row here.

CREATE TABLE phone_hosts (
    phone_id   TEXT NOT NULL REFERENCES phones (id),
    host_id    TEXT NOT NULL REFERENCES hosts (id),
    state      TEXT NOT NULL,            -- a word of PhoneState, as this host last reported it
    reasons    TEXT NOT NULL,            -- JSON array of reason codes: why it is not ready there
    journal    TEXT,                     -- the journal that its bridge has there
    changed_at BIGINT NOT NULL,          -- since when state and reasons are as they are
    PRIMARY KEY (phone_id, host_id)
);
CREATE INDEX phone_hosts_by_host ON phone_hosts (host_id, phone_id);
INSERT INTO phone_hosts (phone_id, host_id, state, reasons, journal, changed_at)
    SELECT id, host_id, state, reasons, journal, updated_at FROM phones WHERE host_id IS NOT NULL;

ALTER TABLE phones ADD COLUMN handed_to TEXT;       -- the host that it is being handed over to
ALTER TABLE phones ADD COLUMN handed_until BIGINT;  -- when the hand-over counts as failed
ALTER TABLE phones ADD COLUMN moved_at BIGINT;      -- when it last changed hosts
ALTER TABLE phones ADD COLUMN replaced_by TEXT;     -- the phone in its place; it gets nothing itself
ALTER TABLE hosts ADD COLUMN drained_at BIGINT;     -- given nothing new since then
ALTER TABLE hosts ADD COLUMN power TEXT;            -- mains, battery, low or unknown, as last reported
ALTER TABLE leases ADD COLUMN released BIGINT NOT NULL DEFAULT 0; -- 1: its holder has said that it sends no more
-- Two hosts of one phone tell the same twice. Which journal told it, and what it was the second word of.
ALTER TABLE received_guids ADD COLUMN journal TEXT;
ALTER TABLE received_guids ADD COLUMN twin_of TEXT;

-- When the attempt was offered for the first time: a phone that leaves offers unanswered gets no more.
ALTER TABLE attempts ADD COLUMN first_offered_at BIGINT;
