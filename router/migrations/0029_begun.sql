-- What was charged for a message that a phone had begun may pay for another one in its place: it is not given back then either.
ALTER TABLE charges ADD COLUMN begun BIGINT NOT NULL DEFAULT 0;
