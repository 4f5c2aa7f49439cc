-- What was told of a message beyond that it was told, as JSON: edits, unsends, files that are not
-- here yet. None for most.
ALTER TABLE heard ADD COLUMN seen TEXT;
-- Conversation, sender, direction, text and date as a number: by it a late copy is recognised.
ALTER TABLE heard ADD COLUMN print INTEGER;
