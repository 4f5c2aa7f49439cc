-- What falls due is found by its class first: a code does not wait behind a hundred thousand others that were due before it.

DROP INDEX jobs_waiting;
CREATE INDEX jobs_waiting ON jobs (class_rank, run_at) WHERE ready = 0;
