-- Who knows a number or address as one of several of a person, whoever's contact it is: a STOP there reaches the tenants that
-- have written to another one of them.

CREATE INDEX contacts_linked ON contacts (recipient) WHERE person IS NOT NULL;
