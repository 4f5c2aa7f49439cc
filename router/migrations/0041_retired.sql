-- Since when another host has been enrolled in the place of this one. It gets the phone no more by itself; its bridge's journal is
-- heard for as long as it has something to tell.
ALTER TABLE phone_hosts ADD COLUMN retired_at BIGINT;
