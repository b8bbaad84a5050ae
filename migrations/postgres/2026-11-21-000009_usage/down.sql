ALTER TABLE attempts DROP COLUMN usage;
