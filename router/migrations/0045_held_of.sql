-- What a tenant has waiting for something is found without reading what others have.
CREATE INDEX jobs_held_of ON jobs (held_reason, tenant_id, message_id) WHERE held_reason IS NOT NULL;
