-- When this router was started, and how often in a row it died soon after: what it may have had in hand is looked at
-- again only after a pause then.

CREATE TABLE starts (
    id         BIGINT PRIMARY KEY,           -- 1: there is one row
    started_at BIGINT NOT NULL,              -- the newest start
    deaths     BIGINT NOT NULL,              -- deaths in a row before it, each soon after its start
    stopped    BIGINT NOT NULL               -- 1: it ended as it was told to, with nothing in hand
);
