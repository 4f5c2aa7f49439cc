-- What is kept for a while, as the configuration says: who was in a batch that is over.

ALTER TABLE batches ADD COLUMN forgotten_at BIGINT; -- when its recipients were deleted; what they became stays
CREATE INDEX batches_over ON batches (ended_at) WHERE ended_at IS NOT NULL AND forgotten_at IS NULL;
