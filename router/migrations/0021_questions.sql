-- Questions to phones of what they know of a recipient are kept for 30 days.

CREATE INDEX capability_questions_by_age ON capability_questions (asked_at);
