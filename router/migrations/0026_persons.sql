-- Several numbers and addresses of one person, as far as their tenant says so: who stops one of them stops all.

ALTER TABLE contacts ADD COLUMN person TEXT; -- the tenant's own word for who it is
CREATE INDEX contacts_by_person ON contacts (tenant_id, test, person) WHERE person IS NOT NULL;
