-- The journal of one bridge: what this phone was told, did and saw.

-- One row: who this journal is and how far it has come.
CREATE TABLE meta (
    only_row INTEGER PRIMARY KEY CHECK (only_row = 1),
    journal TEXT NOT NULL,
    phone TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    -- The newest event, acknowledged or not; events that were acknowledged are deleted.
    last_seq INTEGER NOT NULL,
    acked_seq INTEGER NOT NULL,
    -- The newest epoch ever seen; commands with an older one are refused.
    max_epoch INTEGER NOT NULL,
    -- How far chat.db has been told, as JSON; none before the first look.
    cursor TEXT,
    -- What was last told of the account.
    account TEXT
) STRICT;

-- Every attempt ever taken or refused, for seven days after its end.
CREATE TABLE sends (
    message TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('accepted', 'started', 'handed', 'doubt', 'found', 'final')),
    -- What was last told of it.
    told_seq INTEGER NOT NULL,
    told TEXT NOT NULL,
    -- Since when it is in this state, and on which boot it came into it.
    since_ms INTEGER NOT NULL,
    boot_ms INTEGER NOT NULL,
    -- What is to be sent; none once it is over.
    epoch INTEGER,
    class TEXT,
    recipient TEXT,
    text TEXT,
    route TEXT,
    channel_index INTEGER,
    start_before_ms INTEGER,
    accepted_ms INTEGER,
    -- The channel before this one and why it failed, as JSON.
    failed TEXT,
    -- The newest row of chat.db before osascript was started.
    mark INTEGER,
    -- Its own row.
    row_id INTEGER,
    guid TEXT,
    stage TEXT CHECK (stage IN ('pending', 'sent', 'delivered')),
    told_unknown INTEGER,
    PRIMARY KEY (message, attempt)
) STRICT, WITHOUT ROWID;

CREATE INDEX sends_live ON sends (accepted_ms) WHERE state <> 'final';
CREATE INDEX sends_final ON sends (since_ms) WHERE state = 'final';

-- Rows of chat.db that belong to one of our sends.
CREATE TABLE claims (
    guid TEXT PRIMARY KEY,
    at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX claims_at ON claims (at_ms);

-- Messages that came in and were told, by guid: a rebuilt chat.db shows them again.
CREATE TABLE heard (
    guid TEXT PRIMARY KEY,
    at_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX heard_at ON heard (at_ms);

-- Events that are not acknowledged.
CREATE TABLE events (
    seq INTEGER PRIMARY KEY,
    at_ms INTEGER NOT NULL,
    epoch INTEGER,
    event TEXT NOT NULL
) STRICT;
