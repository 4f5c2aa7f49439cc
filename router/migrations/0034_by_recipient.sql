-- What is looked up by recipient lies anywhere in its index, so that every message writes a page of each such index that
-- nothing else is on: beside a long history that costs more than all the rest. There are fewer of them now.

-- What is on its way to a recipient and what was sent to them stand in one index, apart from each other. It is written when
-- a message is accepted and when it has left, and not whenever its status changes.
ALTER TABLE messages ADD COLUMN on_the_way BIGINT NOT NULL DEFAULT 0; -- 1: outbound, and queued, scheduled or dispatching
UPDATE messages SET on_the_way = 1
    WHERE direction = 'outbound' AND status IN ('queued', 'scheduled', 'dispatching');
DROP INDEX messages_by_tenant_recipient;
DROP INDEX messages_on_the_way;
CREATE INDEX messages_by_recipient ON messages (tenant_id, recipient, on_the_way, id);

-- By recipient first, bindings are found by their phone as well as by their tenant: few of either have talked with one
-- person. Whose a phone's bindings are is asked when another one takes its place, and then all are read.
CREATE TABLE bindings_by_recipient (
    recipient       TEXT NOT NULL,
    phone_id        TEXT NOT NULL,
    tenant_id       TEXT NOT NULL,
    last_at         BIGINT NOT NULL,
    last_direction  TEXT NOT NULL,
    last_inbound_at BIGINT,              -- an answer is one only soon after a question
    unanswered      BIGINT NOT NULL DEFAULT 0, -- messages to it since it last wrote
    PRIMARY KEY (recipient, phone_id, tenant_id)
) WITHOUT ROWID;
INSERT INTO bindings_by_recipient
    (recipient, phone_id, tenant_id, last_at, last_direction, last_inbound_at, unanswered)
    SELECT recipient, phone_id, tenant_id, last_at, last_direction, last_inbound_at, unanswered FROM bindings
    ORDER BY recipient, phone_id, tenant_id;
DROP TABLE bindings;
ALTER TABLE bindings_by_recipient RENAME TO bindings;
