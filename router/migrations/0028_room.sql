-- Messages are written one after the other, so that their pages are full, and each grows by its phone and its guid later:
-- every page would have to be divided. Zeroes keep the place of what comes.
ALTER TABLE messages ADD COLUMN room BLOB;  -- zeroes, until the message's guid is known
