-- Instants are Unix time in microseconds, digests and UUIDs raw bytes, composite values JSON text.
-- The SQLite tree mirrors this one statement by statement.

CREATE TABLE swarm (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    swarm_id BYTEA NOT NULL,
    created_at BIGINT NOT NULL
);

-- The fence: every batch locks this row; a take-over raises it.
CREATE TABLE epoch (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    current BIGINT NOT NULL
);
INSERT INTO epoch (id, current) VALUES (1, 0);

-- The last committed batch, asked for after a COMMIT whose answer was lost.
CREATE TABLE last_batch (
    id BIGINT PRIMARY KEY CHECK (id = 1),
    epoch BIGINT NOT NULL,
    number BIGINT NOT NULL
);
INSERT INTO last_batch (id, epoch, number) VALUES (1, 0, 0);

-- Numbers handed out so far; a number is never reused, whatever is deleted.
CREATE TABLE counters (
    name TEXT PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('job', 0), ('worker', 0), ('schedule', 0), ('user', 0), ('group', 0);

CREATE TABLE owner_groups (
    id BIGINT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    allow_root BOOLEAN NOT NULL
);

CREATE TABLE users (
    id BIGINT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    password_hash TEXT NOT NULL,
    role TEXT NOT NULL,
    group_id BIGINT NOT NULL REFERENCES owner_groups (id),
    token_version BIGINT NOT NULL,
    failed_logins BIGINT NOT NULL,
    last_failed_at BIGINT,
    created_at BIGINT NOT NULL
);

CREATE TABLE refresh_tokens (
    hash BYTEA PRIMARY KEY,
    family BYTEA NOT NULL,
    user_id BIGINT NOT NULL REFERENCES users (id),
    expires_at BIGINT NOT NULL,
    used BOOLEAN NOT NULL,
    revoked BOOLEAN NOT NULL
);
CREATE INDEX refresh_tokens_family ON refresh_tokens (family);
CREATE INDEX refresh_tokens_user ON refresh_tokens (user_id);

CREATE TABLE revoked_jwts (
    jti BYTEA PRIMARY KEY,
    expires_at BIGINT NOT NULL
);

CREATE TABLE join_tokens (
    hash BYTEA PRIMARY KEY,
    worker TEXT NOT NULL,
    expires_at BIGINT NOT NULL,
    used_at BIGINT
);

CREATE TABLE workers (
    id BIGINT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    key_hash BYTEA NOT NULL UNIQUE,
    revoked BOOLEAN NOT NULL,
    draining BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE jobs (
    id BIGINT PRIMARY KEY,
    owner_id BIGINT NOT NULL REFERENCES users (id),
    group_id BIGINT NOT NULL REFERENCES owner_groups (id),
    name TEXT,
    spec TEXT NOT NULL,
    image TEXT NOT NULL,
    input_bytes TEXT NOT NULL,
    first_task BIGINT NOT NULL,
    last_task BIGINT NOT NULL,
    -- Tasks from here to last_task never left the waiting state; last_task + 1 when there is none.
    next_fresh BIGINT NOT NULL,
    live BIGINT NOT NULL CHECK (live >= 0),
    succeeded BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    cancelled BIGINT NOT NULL,
    submitted_at BIGINT NOT NULL,
    start_at BIGINT,
    ended_at BIGINT,
    cancel_requested BOOLEAN NOT NULL,
    schedule_id BIGINT,
    nominal_at BIGINT,
    idempotency_key TEXT,
    idempotency_digest BYTEA,
    CHECK (live + succeeded + failed + cancelled <= last_task - first_task + 1)
);
CREATE UNIQUE INDEX jobs_idempotency ON jobs (group_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_unfinished ON jobs (id) WHERE ended_at IS NULL;
CREATE INDEX jobs_group ON jobs (group_id, id);

-- Tasks that are assigned (phase 1), started (2) or wait for another attempt (0).
CREATE TABLE live_tasks (
    job_id BIGINT NOT NULL REFERENCES jobs (id),
    task BIGINT NOT NULL,
    attempt INTEGER NOT NULL,
    phase INTEGER NOT NULL,
    not_before BIGINT,
    worker_id BIGINT REFERENCES workers (id),
    assigned_at BIGINT,
    started_at BIGINT,
    losses INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    PRIMARY KEY (job_id, task),
    CHECK (CASE phase
        WHEN 0 THEN not_before IS NOT NULL AND worker_id IS NULL AND assigned_at IS NULL AND started_at IS NULL
        WHEN 1 THEN not_before IS NULL AND worker_id IS NOT NULL AND assigned_at IS NOT NULL AND started_at IS NULL
        WHEN 2 THEN not_before IS NULL AND worker_id IS NOT NULL AND assigned_at IS NOT NULL AND started_at IS NOT NULL
        ELSE FALSE END)
);

-- One row for each ended attempt.
CREATE TABLE attempts (
    job_id BIGINT NOT NULL REFERENCES jobs (id),
    task BIGINT NOT NULL,
    attempt INTEGER NOT NULL,
    worker_id BIGINT NOT NULL REFERENCES workers (id),
    assigned_at BIGINT NOT NULL,
    started_at BIGINT,
    ended_at BIGINT NOT NULL,
    ran_ms BIGINT,
    outcome TEXT NOT NULL,
    is_final BOOLEAN NOT NULL,
    may_have_run BOOLEAN NOT NULL,
    log_bytes BIGINT NOT NULL,
    log_cut_bytes BIGINT NOT NULL,
    outputs TEXT NOT NULL,
    PRIMARY KEY (job_id, task, attempt)
);
-- A task has at most one final record.
CREATE UNIQUE INDEX attempts_final ON attempts (job_id, task) WHERE is_final;

-- Tasks that ended while they waited.
CREATE TABLE ended_ranges (
    job_id BIGINT NOT NULL REFERENCES jobs (id),
    first_task BIGINT NOT NULL,
    last_task BIGINT NOT NULL,
    outcome TEXT NOT NULL,
    ended_at BIGINT NOT NULL,
    PRIMARY KEY (job_id, first_task),
    CHECK (first_task <= last_task)
);

-- Reports that came too late to count: the first one of each worker about each attempt.
CREATE TABLE superseded (
    job_id BIGINT NOT NULL REFERENCES jobs (id),
    task BIGINT NOT NULL,
    attempt INTEGER NOT NULL,
    worker_id BIGINT NOT NULL REFERENCES workers (id),
    outcome TEXT NOT NULL,
    reported_at BIGINT NOT NULL,
    PRIMARY KEY (job_id, task, attempt, worker_id)
);

CREATE TABLE schedules (
    id BIGINT PRIMARY KEY,
    owner_id BIGINT NOT NULL REFERENCES users (id),
    group_id BIGINT NOT NULL REFERENCES owner_groups (id),
    name TEXT NOT NULL,
    cron TEXT NOT NULL,
    zone TEXT NOT NULL,
    spec TEXT NOT NULL,
    image TEXT NOT NULL,
    input_bytes TEXT NOT NULL,
    paused BOOLEAN NOT NULL,
    considered_until BIGINT NOT NULL,
    missed BIGINT NOT NULL,
    last_nominal_at BIGINT,
    last_job_id BIGINT,
    UNIQUE (group_id, name)
);

-- One job for each schedule and instant; kept when the schedule goes.
CREATE TABLE launches (
    schedule_id BIGINT NOT NULL,
    nominal_at BIGINT NOT NULL,
    job_id BIGINT NOT NULL REFERENCES jobs (id),
    PRIMARY KEY (schedule_id, nominal_at)
);

-- Which group may read which blob.
CREATE TABLE blob_links (
    group_id BIGINT NOT NULL REFERENCES owner_groups (id),
    digest BYTEA NOT NULL,
    size_bytes BIGINT NOT NULL,
    linked_at BIGINT NOT NULL,
    PRIMARY KEY (group_id, digest)
);

CREATE TABLE images (
    group_id BIGINT NOT NULL REFERENCES owner_groups (id),
    name TEXT NOT NULL,
    config BYTEA NOT NULL,
    image TEXT NOT NULL,
    platform TEXT NOT NULL,
    pushed_at BIGINT NOT NULL,
    PRIMARY KEY (group_id, name)
);
CREATE INDEX images_config ON images (group_id, config);
