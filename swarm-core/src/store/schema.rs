//! The tables as both backends have them; `migrations/` makes them.

diesel::table! {
    swarm (id) {
        id -> BigInt,
        swarm_id -> Binary,
        created_at -> BigInt,
    }
}

diesel::table! {
    epoch (id) {
        id -> BigInt,
        current -> BigInt,
    }
}

diesel::table! {
    last_batch (id) {
        id -> BigInt,
        epoch -> BigInt,
        number -> BigInt,
    }
}

diesel::table! {
    counters (name) {
        name -> Text,
        value -> BigInt,
    }
}

diesel::table! {
    owner_groups (id) {
        id -> BigInt,
        name -> Text,
        allow_root -> Bool,
    }
}

diesel::table! {
    users (id) {
        id -> BigInt,
        name -> Text,
        password_hash -> Text,
        role -> Text,
        group_id -> BigInt,
        token_version -> BigInt,
        failed_logins -> BigInt,
        last_failed_at -> Nullable<BigInt>,
        created_at -> BigInt,
    }
}

diesel::table! {
    refresh_tokens (hash) {
        hash -> Binary,
        family -> Binary,
        user_id -> BigInt,
        expires_at -> BigInt,
        used -> Bool,
        revoked -> Bool,
    }
}

diesel::table! {
    revoked_jwts (jti) {
        jti -> Binary,
        expires_at -> BigInt,
    }
}

diesel::table! {
    join_tokens (hash) {
        hash -> Binary,
        worker -> Text,
        expires_at -> BigInt,
        used_at -> Nullable<BigInt>,
    }
}

diesel::table! {
    workers (id) {
        id -> BigInt,
        name -> Text,
        key_hash -> Binary,
        revoked -> Bool,
        draining -> Bool,
        created_at -> BigInt,
        facts -> Nullable<Text>,
        labels -> Nullable<Text>,
    }
}

diesel::table! {
    jobs (id) {
        id -> BigInt,
        owner_id -> BigInt,
        group_id -> BigInt,
        name -> Nullable<Text>,
        spec -> Text,
        image -> Text,
        input_bytes -> Text,
        first_task -> BigInt,
        last_task -> BigInt,
        next_fresh -> BigInt,
        live -> BigInt,
        succeeded -> BigInt,
        failed -> BigInt,
        cancelled -> BigInt,
        submitted_at -> BigInt,
        start_at -> Nullable<BigInt>,
        ended_at -> Nullable<BigInt>,
        cancel_requested -> Bool,
        schedule_id -> Nullable<BigInt>,
        nominal_at -> Nullable<BigInt>,
        idempotency_key -> Nullable<Text>,
        idempotency_digest -> Nullable<Binary>,
    }
}

diesel::table! {
    live_tasks (job_id, task) {
        job_id -> BigInt,
        task -> BigInt,
        attempt -> Integer,
        phase -> Integer,
        not_before -> Nullable<BigInt>,
        worker_id -> Nullable<BigInt>,
        assigned_at -> Nullable<BigInt>,
        started_at -> Nullable<BigInt>,
        losses -> Integer,
        failures -> Integer,
    }
}

diesel::table! {
    attempts (job_id, task, attempt) {
        job_id -> BigInt,
        task -> BigInt,
        attempt -> Integer,
        worker_id -> BigInt,
        assigned_at -> BigInt,
        started_at -> Nullable<BigInt>,
        ended_at -> BigInt,
        ran_ms -> Nullable<BigInt>,
        outcome -> Text,
        is_final -> Bool,
        may_have_run -> Bool,
        log_bytes -> BigInt,
        log_cut_bytes -> BigInt,
        outputs -> Text,
        usage -> Nullable<Text>,
    }
}

diesel::table! {
    ended_ranges (job_id, first_task) {
        job_id -> BigInt,
        first_task -> BigInt,
        last_task -> BigInt,
        outcome -> Text,
        ended_at -> BigInt,
    }
}

diesel::table! {
    sent_outputs (job_id, task, attempt, digest) {
        job_id -> BigInt,
        task -> BigInt,
        attempt -> Integer,
        digest -> Binary,
        size_bytes -> BigInt,
    }
}

diesel::table! {
    superseded (job_id, task, attempt, worker_id) {
        job_id -> BigInt,
        task -> BigInt,
        attempt -> Integer,
        worker_id -> BigInt,
        outcome -> Text,
        reported_at -> BigInt,
    }
}

diesel::table! {
    schedules (id) {
        id -> BigInt,
        owner_id -> BigInt,
        group_id -> BigInt,
        name -> Text,
        cron -> Text,
        zone -> Text,
        spec -> Text,
        image -> Text,
        input_bytes -> Text,
        paused -> Bool,
        considered_until -> BigInt,
        missed -> BigInt,
        last_nominal_at -> Nullable<BigInt>,
        last_job_id -> Nullable<BigInt>,
    }
}

diesel::table! {
    launches (schedule_id, nominal_at) {
        schedule_id -> BigInt,
        nominal_at -> BigInt,
        job_id -> BigInt,
    }
}

diesel::table! {
    blob_links (group_id, digest) {
        group_id -> BigInt,
        digest -> Binary,
        size_bytes -> BigInt,
        linked_at -> BigInt,
    }
}

diesel::table! {
    images (group_id, name) {
        group_id -> BigInt,
        name -> Text,
        config -> Binary,
        image -> Text,
        platform -> Text,
        pushed_at -> BigInt,
    }
}

diesel::joinable!(users -> owner_groups (group_id));
diesel::joinable!(refresh_tokens -> users (user_id));
diesel::joinable!(jobs -> users (owner_id));
diesel::joinable!(jobs -> owner_groups (group_id));
diesel::joinable!(schedules -> users (owner_id));
diesel::joinable!(attempts -> workers (worker_id));
diesel::joinable!(superseded -> workers (worker_id));
diesel::joinable!(live_tasks -> jobs (job_id));

diesel::allow_tables_to_appear_in_same_query!(
    users,
    owner_groups,
    refresh_tokens,
    jobs,
    schedules,
    attempts,
    superseded,
    workers,
    live_tasks,
);
