-- What each worker last said it is and has, as JSON; none until its first link.
ALTER TABLE workers ADD COLUMN facts TEXT;
