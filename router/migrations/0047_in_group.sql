-- Into which group a message was written: what it says later, in an edit, is said to that group.
ALTER TABLE messages ADD COLUMN in_group TEXT;
