-- Jobs that are due stand apart from those that wait for their time, so that neither hides the other: the next one of a class
-- and tenant is one look-up, however long the queues are and however many tenants wait.

ALTER TABLE jobs ADD COLUMN ready BIGINT NOT NULL DEFAULT 0;  -- 1: due, and not claimed
ALTER TABLE jobs ADD COLUMN claims BIGINT NOT NULL DEFAULT 0; -- since a decision was last written down
DROP INDEX jobs_due;
DROP INDEX jobs_due_by_rank;
CREATE INDEX jobs_waiting ON jobs (run_at) WHERE ready = 0;
CREATE INDEX jobs_ready ON jobs (class_rank, tenant_id, run_at) WHERE ready = 1;
-- What was claimed and never decided, more than once: it may be what ends the worker.
CREATE INDEX jobs_suspect ON jobs (run_at) WHERE ready = 1 AND claims > 1;
