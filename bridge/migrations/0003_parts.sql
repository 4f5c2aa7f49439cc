-- The files of a message, as JSON, until it is over: where each comes from, and where its copy is.
ALTER TABLE sends ADD COLUMN files TEXT;
-- How many of its parts have been sent.
ALTER TABLE sends ADD COLUMN parts_done INTEGER;
