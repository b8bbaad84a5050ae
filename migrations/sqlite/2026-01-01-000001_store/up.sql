-- Instants are Unix time in microseconds, digests and UUIDs raw bytes, composite values JSON text.
-- The Postgres tree mirrors this one statement by statement.

CREATE TABLE swarm (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    swarm_id BLOB NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

-- The fence: every batch locks this row; a take-over raises it.
CREATE TABLE epoch (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    current INTEGER NOT NULL
) STRICT;
INSERT INTO epoch (id, current) VALUES (1, 0);

-- The last committed batch, asked for after a COMMIT whose answer was lost.
CREATE TABLE last_batch (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    epoch INTEGER NOT NULL,
    number INTEGER NOT NULL
) STRICT;
INSERT INTO last_batch (id, epoch, number) VALUES (1, 0, 0);

-- Numbers handed out so far; a number is never reused, whatever is deleted.
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO counters (name, value) VALUES ('job', 0), ('worker', 0), ('schedule', 0), ('user', 0), ('group', 0);

CREATE TABLE owner_groups (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    allow_root INTEGER NOT NULL
) STRICT;

CREATE TABLE users (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    password_hash TEXT NOT NULL,
    role TEXT NOT NULL,
    group_id INTEGER NOT NULL REFERENCES owner_groups (id),
    token_version INTEGER NOT NULL,
    failed_logins INTEGER NOT NULL,
    last_failed_at INTEGER,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE refresh_tokens (
    hash BLOB PRIMARY KEY,
    family BLOB NOT NULL,
    user_id INTEGER NOT NULL REFERENCES users (id),
    expires_at INTEGER NOT NULL,
    used INTEGER NOT NULL,
    revoked INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX refresh_tokens_family ON refresh_tokens (family);
CREATE INDEX refresh_tokens_user ON refresh_tokens (user_id);

CREATE TABLE revoked_jwts (
    jti BLOB PRIMARY KEY,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE join_tokens (
    hash BLOB PRIMARY KEY,
    worker TEXT NOT NULL,
    expires_at INTEGER NOT NULL,
    used_at INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE workers (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    key_hash BLOB NOT NULL UNIQUE,
    revoked INTEGER NOT NULL,
    draining INTEGER NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    owner_id INTEGER NOT NULL REFERENCES users (id),
    group_id INTEGER NOT NULL REFERENCES owner_groups (id),
    name TEXT,
    spec TEXT NOT NULL,
    image TEXT NOT NULL,
    input_bytes TEXT NOT NULL,
    first_task INTEGER NOT NULL,
    last_task INTEGER NOT NULL,
    -- Tasks from here to last_task never left the waiting state; last_task + 1 when there is none.
    next_fresh INTEGER NOT NULL,
    live INTEGER NOT NULL CHECK (live >= 0),
    succeeded INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    cancelled INTEGER NOT NULL,
    submitted_at INTEGER NOT NULL,
    start_at INTEGER,
    ended_at INTEGER,
    cancel_requested INTEGER NOT NULL,
    schedule_id INTEGER,
    nominal_at INTEGER,
    idempotency_key TEXT,
    idempotency_digest BLOB,
    CHECK (live + succeeded + failed + cancelled <= last_task - first_task + 1)
) STRICT;
CREATE UNIQUE INDEX jobs_idempotency ON jobs (group_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_unfinished ON jobs (id) WHERE ended_at IS NULL;
CREATE INDEX jobs_group ON jobs (group_id, id);

-- Tasks that are assigned (phase 1), started (2) or wait for another attempt (0).
CREATE TABLE live_tasks (
    job_id INTEGER NOT NULL REFERENCES jobs (id),
    task INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    phase INTEGER NOT NULL,
    not_before INTEGER,
    worker_id INTEGER REFERENCES workers (id),
    assigned_at INTEGER,
    started_at INTEGER,
    losses INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    PRIMARY KEY (job_id, task),
    CHECK (CASE phase
        WHEN 0 THEN not_before IS NOT NULL AND worker_id IS NULL AND assigned_at IS NULL AND started_at IS NULL
        WHEN 1 THEN not_before IS NULL AND worker_id IS NOT NULL AND assigned_at IS NOT NULL AND started_at IS NULL
        WHEN 2 THEN not_before IS NULL AND worker_id IS NOT NULL AND assigned_at IS NOT NULL AND started_at IS NOT NULL
        ELSE 0 = 1 END)
) STRICT, WITHOUT ROWID;

-- One row for each ended attempt.
CREATE TABLE attempts (
    job_id INTEGER NOT NULL REFERENCES jobs (id),
    task INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    worker_id INTEGER NOT NULL REFERENCES workers (id),
    assigned_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER NOT NULL,
    ran_ms INTEGER,
    outcome TEXT NOT NULL,
    is_final INTEGER NOT NULL,
    may_have_run INTEGER NOT NULL,
    log_bytes INTEGER NOT NULL,
    log_cut_bytes INTEGER NOT NULL,
    outputs TEXT NOT NULL,
    PRIMARY KEY (job_id, task, attempt)
) STRICT, WITHOUT ROWID;
-- A task has at most one final record.
CREATE UNIQUE INDEX attempts_final ON attempts (job_id, task) WHERE is_final;

-- Tasks that ended while they waited.
CREATE TABLE ended_ranges (
    job_id INTEGER NOT NULL REFERENCES jobs (id),
    first_task INTEGER NOT NULL,
    last_task INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    ended_at INTEGER NOT NULL,
    PRIMARY KEY (job_id, first_task),
    CHECK (first_task <= last_task)
) STRICT, WITHOUT ROWID;

-- Reports that came too late to count: the first one of each worker about each attempt.
CREATE TABLE superseded (
    job_id INTEGER NOT NULL REFERENCES jobs (id),
    task INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    worker_id INTEGER NOT NULL REFERENCES workers (id),
    outcome TEXT NOT NULL,
    reported_at INTEGER NOT NULL,
    PRIMARY KEY (job_id, task, attempt, worker_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE schedules (
    id INTEGER PRIMARY KEY,
    owner_id INTEGER NOT NULL REFERENCES users (id),
    group_id INTEGER NOT NULL REFERENCES owner_groups (id),
    name TEXT NOT NULL,
    cron TEXT NOT NULL,
    zone TEXT NOT NULL,
    spec TEXT NOT NULL,
    image TEXT NOT NULL,
    input_bytes TEXT NOT NULL,
    paused INTEGER NOT NULL,
    considered_until INTEGER NOT NULL,
    missed INTEGER NOT NULL,
    last_nominal_at INTEGER,
    last_job_id INTEGER,
    UNIQUE (group_id, name)
) STRICT;

-- One job for each schedule and instant; kept when the schedule goes.
CREATE TABLE launches (
    schedule_id INTEGER NOT NULL,
    nominal_at INTEGER NOT NULL,
    job_id INTEGER NOT NULL REFERENCES jobs (id),
    PRIMARY KEY (schedule_id, nominal_at)
) STRICT, WITHOUT ROWID;

-- Which group may read which blob.
CREATE TABLE blob_links (
    group_id INTEGER NOT NULL REFERENCES owner_groups (id),
    digest BLOB NOT NULL,
    size_bytes INTEGER NOT NULL,
    linked_at INTEGER NOT NULL,
    PRIMARY KEY (group_id, digest)
) STRICT, WITHOUT ROWID;

CREATE TABLE images (
    group_id INTEGER NOT NULL REFERENCES owner_groups (id),
    name TEXT NOT NULL,
    config BLOB NOT NULL,
    image TEXT NOT NULL,
    platform TEXT NOT NULL,
    pushed_at INTEGER NOT NULL,
    PRIMARY KEY (group_id, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX images_config ON images (group_id, config);
