-- What each live attempt has sent: it may hand out nothing else. Gone with the attempt.
CREATE TABLE sent_outputs (
    job_id BIGINT NOT NULL REFERENCES jobs (id),
    task BIGINT NOT NULL,
    attempt INTEGER NOT NULL,
    digest BYTEA NOT NULL,
    size_bytes BIGINT NOT NULL,
    PRIMARY KEY (job_id, task, attempt, digest)
);
