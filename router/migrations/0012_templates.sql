-- Texts with variables. A change of the text is a new version; what was sent says which one it was made from.

CREATE TABLE templates (
    id         TEXT PRIMARY KEY,
    tenant_id  TEXT NOT NULL REFERENCES tenants (id),
    name       TEXT NOT NULL,
    version    BIGINT NOT NULL,          -- the newest
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    deleted_at BIGINT                    -- nothing new is made from it; what is under way goes on
);
CREATE INDEX templates_by_tenant ON templates (tenant_id, id) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX templates_by_name ON templates (tenant_id, name) WHERE deleted_at IS NULL;

-- Never changed and never deleted.
CREATE TABLE template_versions (
    template_id TEXT NOT NULL REFERENCES templates (id),
    version     BIGINT NOT NULL,         -- from 1
    tenant_id   TEXT NOT NULL,
    text        TEXT NOT NULL,
    defaults    TEXT NOT NULL,           -- JSON object: what stands for variables that are not given
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (template_id, version)
);

ALTER TABLE messages ADD COLUMN template_id TEXT;
ALTER TABLE messages ADD COLUMN template_version BIGINT;
