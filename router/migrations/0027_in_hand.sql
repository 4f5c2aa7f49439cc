-- What the one dispatcher and the one deliverer of webhooks are at is known to them alone: a job is not written again
-- because somebody looks at it.

CREATE TABLE jobs_by_key (
    message_id    TEXT PRIMARY KEY REFERENCES messages (id),
    tenant_id     TEXT NOT NULL,
    run_at        BIGINT NOT NULL,
    class_rank    BIGINT NOT NULL,           -- 0 otp, 1 transactional, 2 conversational, 3 marketing
    held_reason   TEXT,
    ready         BIGINT NOT NULL DEFAULT 0, -- 1: due
    claims        BIGINT NOT NULL DEFAULT 0  -- how often it was looked at and not decided since it last was decided
) WITHOUT ROWID;
INSERT INTO jobs_by_key (message_id, tenant_id, run_at, class_rank, held_reason, ready, claims)
    SELECT message_id, tenant_id, run_at, class_rank, held_reason, ready, claims FROM jobs ORDER BY message_id;
DROP TABLE jobs;
ALTER TABLE jobs_by_key RENAME TO jobs;
CREATE INDEX jobs_held ON jobs (held_reason, message_id) WHERE held_reason IS NOT NULL;
CREATE INDEX jobs_waiting ON jobs (run_at) WHERE ready = 0;
CREATE INDEX jobs_ready ON jobs (class_rank, tenant_id, run_at) WHERE ready = 1;
CREATE INDEX jobs_suspect ON jobs (run_at) WHERE ready = 1 AND claims > 1;

-- The messages that the dispatcher is at. Those among them that are still due when a router starts were never decided.
CREATE TABLE jobs_in_hand (
    id       BIGINT PRIMARY KEY,             -- 1: there is one row
    messages TEXT NOT NULL                   -- JSON array of ids
);
INSERT INTO jobs_in_hand (id, messages) VALUES (1, '[]');

-- By endpoint they are looked up, and counted.
DROP INDEX webhook_jobs_due;
ALTER TABLE webhook_jobs DROP COLUMN claimed_until;

CREATE TABLE webhook_attempts_by_key (
    job_id   TEXT NOT NULL REFERENCES webhook_jobs (id),
    attempt  BIGINT NOT NULL,
    at       BIGINT NOT NULL,
    status   BIGINT,                         -- HTTP status; NULL when there was none
    error    TEXT,
    ms       BIGINT NOT NULL,
    response TEXT,                           -- how the answer's body began
    PRIMARY KEY (job_id, attempt)
) WITHOUT ROWID;
INSERT INTO webhook_attempts_by_key (job_id, attempt, at, status, error, ms, response)
    SELECT job_id, attempt, at, status, error, ms, response FROM webhook_attempts ORDER BY job_id, attempt;
DROP TABLE webhook_attempts;
ALTER TABLE webhook_attempts_by_key RENAME TO webhook_attempts;
