-- Where from and how often a key may be used, which key has taken its place, and which phones are of the sandbox: they
-- alone take what test keys send.

ALTER TABLE api_keys ADD COLUMN allow TEXT;          -- JSON array of networks; NULL: from anywhere
ALTER TABLE api_keys ADD COLUMN tier TEXT;           -- starter | growth | custom; NULL: as the router is set up
ALTER TABLE api_keys ADD COLUMN per_second BIGINT;   -- of custom
ALTER TABLE api_keys ADD COLUMN burst BIGINT;        -- of custom
ALTER TABLE api_keys ADD COLUMN rotated_to TEXT;     -- the key that has taken its place

ALTER TABLE phones ADD COLUMN sandbox BIGINT NOT NULL DEFAULT 0;
CREATE INDEX phones_of_sandbox ON phones (id) WHERE sandbox = 1;
