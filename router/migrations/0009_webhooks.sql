-- Secrets that are rotated, endpoints that are left alone for a while, deliveries that are made again.

ALTER TABLE webhook_endpoints ADD COLUMN previous_secret TEXT;                -- signs beside the new one
ALTER TABLE webhook_endpoints ADD COLUMN previous_until BIGINT;               -- until then
ALTER TABLE webhook_endpoints ADD COLUMN failures BIGINT NOT NULL DEFAULT 0;  -- attempts that failed since one did not
ALTER TABLE webhook_endpoints ADD COLUMN paused_until BIGINT;                 -- nothing is posted before that

ALTER TABLE webhook_jobs ADD COLUMN round_from BIGINT NOT NULL DEFAULT 0;     -- attempts made before it was last replayed
ALTER TABLE webhook_attempts ADD COLUMN response TEXT;                        -- how the answer's body began
