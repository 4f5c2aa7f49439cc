-- What is kept for 30 days is found by its age, and the operator reads unplaced events newest first.

CREATE INDEX unplaced_events_by_age ON unplaced_events (at, phone_id, journal, seq);
CREATE INDEX received_guids_by_age ON received_guids (at);
CREATE INDEX webhook_jobs_over ON webhook_jobs (run_at, id) WHERE state <> 'pending';
