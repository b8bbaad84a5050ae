-- What each live attempt has sent: it may hand out nothing else. Gone with the attempt.
CREATE TABLE sent_outputs (
    job_id INTEGER NOT NULL REFERENCES jobs (id),
    task INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    digest BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    PRIMARY KEY (job_id, task, attempt, digest)
) STRICT, WITHOUT ROWID;
