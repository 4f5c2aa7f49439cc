-- Lists read their page alone, however much there is of what they do not show.

CREATE INDEX opt_out_events_live ON opt_out_events (tenant_id, id) WHERE test = 0;
CREATE INDEX messages_of_sandbox ON messages (tenant_id, id) WHERE test = 1;
