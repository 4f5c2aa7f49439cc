-- What the operator has read or changed of tenants' data. Written before it is done; never deleted.

CREATE TABLE audit_log (
    id         TEXT PRIMARY KEY,         -- evt_…: sorts by time
    at         BIGINT NOT NULL,
    tenant_id  TEXT,                     -- whose data; NULL: everybody's, or nobody's
    action     TEXT NOT NULL,            -- method and route
    target     TEXT NOT NULL,            -- path and query, as they were asked for
    address    TEXT,                     -- where the request came from
    request_id TEXT NOT NULL,
    status     BIGINT                    -- what was answered; NULL where no answer was given
);
CREATE INDEX audit_log_by_tenant ON audit_log (tenant_id, id);
