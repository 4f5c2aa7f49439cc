-- Messages of which nobody knows what became of them: those are looked for, and are few whatever the history's size.
CREATE INDEX messages_unknown ON messages (updated_at) WHERE status = 'unknown';
