-- What an attempt used, as JSON; none for one that was given up, or that ended before this column was there.
ALTER TABLE attempts ADD COLUMN usage TEXT;
