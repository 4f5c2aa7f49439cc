-- The canaries that have arrived: who wrote them may ask after the router was restarted. They are no tenant's.

CREATE TABLE canaries (
    message_id TEXT NOT NULL,
    phone_id   TEXT NOT NULL REFERENCES phones (id), -- where it arrived
    sender     TEXT NOT NULL,                        -- the number that it came from
    host_id    TEXT,                                 -- the host that told of it, where that is known
    at         BIGINT NOT NULL,                      -- when the bridge noted it, by its host's clock
    taken_at   BIGINT NOT NULL,                      -- when it was taken in here
    PRIMARY KEY (message_id, phone_id)
) WITHOUT ROWID;
