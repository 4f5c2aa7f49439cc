-- Until when the newest start leaves alone what may have been in hand; in the past where it waits for nothing. The next start
-- must know it: a pause that began anew with each start would never end for a router whose lives are shorter.
ALTER TABLE starts ADD COLUMN quiet_until BIGINT NOT NULL DEFAULT 0;
