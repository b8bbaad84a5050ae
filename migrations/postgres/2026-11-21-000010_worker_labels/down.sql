ALTER TABLE workers DROP COLUMN labels;
