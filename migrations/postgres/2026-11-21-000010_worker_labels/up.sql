-- The labels each worker last said it has, as JSON; none until it first says so.
ALTER TABLE workers ADD COLUMN labels TEXT;
