-- Batches that nobody goes on with have an end, so that those who were to be written to are not kept for ever.

CREATE INDEX batches_idle ON batches (updated_at) WHERE state IN ('draft', 'paused');
