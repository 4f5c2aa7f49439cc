-- Messages are written one after the other, so that their pages are full, and each grows by its phone and its guid later:
-- every page would have to be divided. Zeroes keep the place of what comes.
ALTER TABLE messages ADD COLUMN room BLOB;  -- zeroes, until the message's guid is known

-- When they last talked is not looked up by: with it in the index, each message of a conversation would move its place.
DROP INDEX bindings_by_phone;
CREATE INDEX bindings_by_phone ON bindings (phone_id, recipient);
