-- Whom a phone has exchanged messages with. Whom it has written to first counts as a new contact of the day.

CREATE TABLE phone_contacts (
    recipient TEXT NOT NULL,
    phone_id  TEXT NOT NULL,
    since     BIGINT NOT NULL,
    counted   BIGINT NOT NULL,           -- 1: we wrote first, so `since` takes a place among the new contacts
    attempts  BIGINT NOT NULL,           -- made on this phone and not given back as never started
    heard     BIGINT NOT NULL,           -- 1: the recipient has written to this phone
    PRIMARY KEY (recipient, phone_id)
);
CREATE INDEX phone_contacts_counted ON phone_contacts (phone_id, since) WHERE counted = 1;
INSERT INTO phone_contacts (recipient, phone_id, since, counted, attempts, heard)
    SELECT recipient, phone_id, MIN(last_at), 0, 1, 1 FROM bindings GROUP BY recipient, phone_id;

ALTER TABLE bindings ADD COLUMN unanswered BIGINT NOT NULL DEFAULT 0; -- messages to it since it last wrote

ALTER TABLE phones ADD COLUMN daily_cap BIGINT;     -- messages a day; NULL: as configured for all
ALTER TABLE phones ADD COLUMN in_service_at BIGINT; -- since when the number is used; NULL: since it was enrolled
