-- A copy is looked for by its content among all that was told, not among the newest alone.
CREATE INDEX heard_print ON heard (print) WHERE print IS NOT NULL;
