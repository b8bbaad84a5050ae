//! The fault matrix: what can go wrong (rows) and where (columns), and the tests that show each cell. A test reports what
//! it did by being judged; the test program prints the table and fails for a cell that nobody reported on. A cell without
//! a test makes no sense: nothing there can fail in this way, or it is another cell's fault.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::Command;

use swarm_checker::{Entry, Op, Verdict};

/// The columns. `links` are those between core and worker; `disk` holds what is not a database.
const PLACES: [&str; 9] = ["core", "worker", "watchdog", "Postgres", "SQLite", "Redis", "Docker", "links", "disk"];

/// The kill cycles.
const EVERYTHING: &str = "faults::cycles::kills_of_everything_in_turn_under_load_lose_double_and_strand_nothing";
const TEN_TIMES: &str =
    "faults::cycles::kills_of_core_and_machine_under_ten_times_the_load_lose_double_and_strand_nothing";
const LEANED_ON: &str =
    "faults::cycles::kills_and_pauses_of_all_that_a_swarm_leans_on_under_load_lose_double_and_strand_nothing";

/// Two cores at once.
const ON_EMPTY_POSTGRES: &str =
    "faults::together::two_cores_that_start_at_once_on_an_empty_postgres_have_one_leader_and_one_admin";
const ON_EMPTY_SQLITE: &str =
    "faults::together::two_cores_that_start_at_once_on_an_empty_sqlite_file_have_one_leader_and_one_admin";

/// A Redis that cannot be heard, or is of no use.
const REDIS_CUT: &str = "faults::cuts::a_core_cut_off_from_its_redis_goes_on_without_it_and_takes_it_again";
const REDIS_BAD: &str = "faults::redis::a_redis_that_is_slow_read_only_or_full_is_done_without";

/// A place and the tests that show what the row's fault does there.
type Cell = (&'static str, &'static [&'static str]);

const MATRIX: &[(&str, &[Cell])] = &[
    (
        "kill -9",
        &[
            (
                "core",
                &[
                    "faults::a_core_killed_mid_run_loses_and_doubles_nothing",
                    "faults::a_core_killed_mid_run_loses_and_doubles_nothing_on_postgres",
                    "faults::a_job_ended_while_the_core_was_away_is_reported_later",
                    "faults::a_job_is_followed_to_its_end_over_a_kill_of_the_core",
                    "faults::a_killed_core_still_knows_what_waits_sleeps_and_is_scheduled",
                ],
            ),
            (
                "worker",
                &[
                    "faults::a_worker_killed_mid_run_adopts_its_container_at_its_next_start",
                    "faults::a_container_that_died_with_its_worker_is_run_again",
                    "faults::a_killed_workers_container_is_killed_before_the_lease_ends_and_run_again_after",
                    "faults::contained::a_worker_killed_with_its_container_leaves_a_watchdog_beside_it",
                    "faults::engine::a_worker_killed_again_and_again_under_load_leaves_no_container_behind",
                    "faults::files::a_worker_killed_while_files_go_in_and_out_brings_them_whole",
                ],
            ),
            ("watchdog", &["faults::frozen::a_killed_watchdog_is_replaced_and_the_next_one_keeps_the_lease"]),
            ("Postgres", &["faults::database::a_postgres_that_crashes_loses_nothing_acknowledged"]),
            ("SQLite", &["faults::submits_during_kills_of_the_core_are_kept_or_refused_but_never_lost"]),
            ("Redis", &["faults::redis::a_job_is_followed_while_redis_is_killed_flushed_stopped_and_started_anew"]),
            ("Docker", &["faults::engine::an_engine_that_crashes_or_stops_under_load_costs_attempts_and_never_a_job"]),
        ],
    ),
    (
        "killed together",
        &[
            ("core", &["faults::core_and_worker_killed_together_lose_and_double_nothing"]),
            (
                "worker",
                &[
                    "faults::core_and_worker_killed_together_lose_and_double_nothing",
                    "faults::frozen::a_container_that_nobody_watches_any_more_is_given_up_and_ended_at_the_next_start",
                ],
            ),
            (
                "watchdog",
                &["faults::frozen::a_container_that_nobody_watches_any_more_is_given_up_and_ended_at_the_next_start"],
            ),
        ],
    ),
    (
        "kill cycles under load",
        &[
            ("core", &[EVERYTHING, TEN_TIMES, LEANED_ON]),
            ("worker", &[EVERYTHING, TEN_TIMES, LEANED_ON]),
            ("watchdog", &[EVERYTHING, LEANED_ON]),
            ("Postgres", &[LEANED_ON]),
            ("SQLite", &[EVERYTHING, TEN_TIMES]),
            ("Redis", &[LEANED_ON]),
            ("Docker", &[LEANED_ON]),
        ],
    ),
    (
        "pauses under load",
        &[
            ("core", &[LEANED_ON]),
            ("worker", &[LEANED_ON]),
            ("watchdog", &[LEANED_ON]),
            ("Postgres", &[LEANED_ON]),
            ("Redis", &[LEANED_ON]),
            ("Docker", &[LEANED_ON]),
        ],
    ),
    (
        "SIGSTOP, SIGCONT",
        &[
            (
                "core",
                &[
                    "faults::frozen::a_core_frozen_for_moments_delays_and_loses_nothing",
                    "faults::frozen::a_core_frozen_past_a_lease_finds_the_attempt_ended_and_runs_it_again",
                ],
            ),
            (
                "worker",
                &[
                    "faults::a_frozen_workers_container_is_killed_before_the_lease_ends_and_run_again_after",
                    "faults::a_silent_workers_attempts_are_given_up_early_when_that_is_asked_for",
                    "faults::contained::a_worker_frozen_in_its_container_does_not_freeze_the_watchdog_beside_it",
                    "faults::contained::a_worker_whose_container_is_paused_leaves_the_watchdog_beside_it_awake_and_goes_on_by_itself",
                ],
            ),
            ("watchdog", &["faults::frozen::a_core_frozen_past_a_lease_finds_the_attempt_ended_and_runs_it_again"]),
            ("Postgres", &["faults::database::a_postgres_that_hangs_is_waited_for"]),
            ("Redis", &["faults::redis::a_job_is_followed_while_redis_is_killed_flushed_stopped_and_started_anew"]),
            ("Docker", &["faults::engine::an_engine_that_hangs_is_waited_for_and_takes_no_work_meanwhile"]),
        ],
    ),
    (
        "stop, start",
        &[
            ("core", &["faults::an_asked_for_stop_is_orderly_and_leaves_containers_to_the_next_start"]),
            ("worker", &["faults::an_asked_for_stop_is_orderly_and_leaves_containers_to_the_next_start"]),
            ("Postgres", &["faults::database::a_postgres_that_is_stopped_and_started_loses_nothing_acknowledged"]),
            ("Redis", &["faults::redis::a_swarm_starts_without_its_redis_and_takes_it_when_it_comes"]),
            ("Docker", &["faults::engine::an_engine_that_starts_again_and_leaves_its_containers_alone_costs_nothing"]),
        ],
    ),
    (
        "socket gone",
        &[(
            "Docker",
            &["faults::engine::an_engine_whose_socket_vanishes_and_comes_back_costs_attempts_and_never_a_job"],
        )],
    ),
    (
        "upgrade",
        &[
            ("worker", &["faults::upgrade::a_worker_is_upgraded_under_its_job_and_its_watchdog_with_it"]),
            ("watchdog", &["faults::upgrade::a_worker_is_upgraded_under_its_job_and_its_watchdog_with_it"]),
        ],
    ),
    (
        "wiped",
        &[("Redis", &["faults::redis::a_job_is_followed_while_redis_is_killed_flushed_stopped_and_started_anew"])],
    ),
    ("sessions ended", &[("Postgres", &["faults::database::sessions_that_are_ended_are_opened_again"])]),
    ("panic of a module", &[("core", &["modules::a_core_whose_modules_fail_starts_anew_by_itself_and_loses_nothing"])]),
    (
        "abort at named points",
        &[
            (
                "core",
                &[
                    "faults::points::a_core_that_aborts_before_a_commit_loses_nothing_acknowledged",
                    "faults::points::a_core_that_aborts_after_a_commit_loses_nothing_and_doubles_nothing",
                ],
            ),
            (
                "worker",
                &[
                    "faults::points::a_worker_that_aborts_before_any_call_of_its_engine_loses_no_job",
                    "faults::points::a_worker_that_aborts_after_any_call_of_its_engine_loses_no_job",
                ],
            ),
        ],
    ),
    (
        "two on one database",
        &[
            (
                "core",
                &[
                    "faults::takeover::a_second_core_on_the_same_database_takes_over_and_the_first_one_stops",
                    ON_EMPTY_POSTGRES,
                    ON_EMPTY_SQLITE,
                ],
            ),
            ("Postgres", &[ON_EMPTY_POSTGRES]),
            ("SQLite", &[ON_EMPTY_SQLITE]),
        ],
    ),
    (
        "locked by another",
        &[
            (
                "Postgres",
                &[
                    "faults::locks::a_postgres_whose_rows_or_tables_another_session_locks_promises_nothing_meanwhile",
                    "faults::locks::a_core_starts_once_nobody_else_holds_the_lock_of_the_migrations",
                ],
            ),
            ("SQLite", &["faults::locks::a_sqlite_that_another_process_writes_to_promises_nothing_meanwhile"]),
        ],
    ),
    (
        "cut both ways",
        &[
            ("Postgres", &["faults::cuts::a_core_cut_off_from_its_postgres_promises_nothing_and_goes_on_by_itself"]),
            ("Redis", &[REDIS_CUT]),
            (
                "links",
                &[
                    "faults::links::a_link_cut_both_ways_and_mended_costs_nothing",
                    "faults::links::a_worker_cut_off_past_its_lease_ends_its_container_before_it_is_run_again",
                ],
            ),
        ],
    ),
    (
        "cut one way",
        &[
            (
                "Postgres",
                &[
                    "faults::cuts::a_postgres_that_does_not_hear_its_core_is_reached_again",
                    "faults::cuts::a_core_that_does_not_hear_its_postgres_does_nothing_twice",
                ],
            ),
            ("Redis", &[REDIS_CUT]),
            (
                "links",
                &[
                    "faults::links::a_core_that_does_not_hear_its_worker_for_a_while_loses_nothing",
                    "faults::links::a_worker_that_does_not_hear_its_core_for_a_while_loses_nothing",
                ],
            ),
        ],
    ),
    ("slow", &[("Redis", &[REDIS_BAD])]),
    ("read-only", &[("Redis", &[REDIS_BAD])]),
    ("UDP or TCP alone", &[("links", &["faults::links::a_lease_lives_on_by_heartbeats_or_by_the_stream_alone"])]),
    ("flapping", &[("links", &["faults::links::a_link_that_flaps_costs_nothing"])]),
    ("resets", &[("links", &["faults::links::resets_in_the_middle_of_results_and_uploads_are_got_over"])]),
    (
        "delay, loss, order",
        &[(
            "links",
            &[
                "faults::weather::a_slow_link_that_loses_doubles_and_reorders_datagrams_costs_no_task",
                "faults::weather::a_lease_outlives_a_link_that_is_slower_than_a_heartbeat",
            ],
        )],
    ),
    (
        "flipped bits",
        &[("links", &["faults::weather::bytes_of_files_that_are_changed_on_the_way_are_never_taken_for_true"])],
    ),
    (
        "full disk",
        &[
            ("worker", &["faults::disks::a_worker_whose_spool_is_full_takes_no_work_and_loses_none"]),
            ("Postgres", &["faults::database::a_postgres_on_a_full_disk_loses_nothing_acknowledged"]),
            ("SQLite", &["faults::disks::a_database_on_a_full_disk_acknowledges_nothing_that_it_loses_and_goes_on"]),
            ("Redis", &[REDIS_BAD]),
            ("Docker", &["faults::disks::an_engine_whose_disk_is_full_costs_attempts_and_never_a_job"]),
            ("disk", &["faults::disks::blobs_on_a_full_disk_refuse_uploads_and_keep_what_they_have"]),
        ],
    ),
    (
        "no inodes",
        &[
            ("worker", &["faults::disks::a_worker_whose_spool_has_no_inodes_takes_no_work_and_loses_none"]),
            ("SQLite", &["faults::disks::a_database_without_inodes_goes_on_and_its_core_starts_when_there_are_some"]),
            ("Docker", &["faults::disks::an_engine_without_inodes_costs_attempts_and_never_a_job"]),
            ("disk", &["faults::disks::blobs_without_inodes_refuse_uploads_and_keep_what_they_have"]),
        ],
    ),
    (
        "no descriptors",
        &[
            ("core", &["faults::descriptors::a_core_without_descriptors_keeps_its_links_and_answers_again"]),
            ("worker", &["faults::descriptors::a_worker_without_descriptors_keeps_what_it_runs_and_loses_no_job"]),
        ],
    ),
    (
        "clock jumps",
        &[
            (
                "core",
                &[
                    "faults::clock::a_core_whose_clock_jumps_ten_minutes_launches_each_instant_once_and_keeps_leases_and_sessions",
                    "faults::clock::a_core_whose_clock_jumps_a_day_launches_each_instant_once_and_keeps_leases_and_sessions",
                    "faults::clock::a_core_whose_clock_jumps_an_hour_launches_each_instant_once_and_keeps_its_leases",
                    "faults::clock::a_core_whose_clock_passes_changes_of_the_hour_a_leap_day_and_2038_launches_each_instant_once",
                ],
            ),
            ("worker", &["faults::clock::a_worker_whose_clock_jumps_keeps_its_leases_and_measures_what_ran"]),
        ],
    ),
    (
        "herd",
        &[
            ("core", &["faults::herd::many_workers_that_come_back_at_once_lose_no_lease_and_do_not_drown_the_core"]),
            ("links", &["faults::herd::many_workers_that_come_back_at_once_lose_no_lease_and_do_not_drown_the_core"]),
        ],
    ),
    (
        "I/O errors",
        &[
            ("core", &["power::a_core_whose_disk_fails_for_moments_keeps_every_promise_and_goes_on"]),
            ("worker", &["power::a_worker_whose_disk_fails_for_moments_loses_attempts_and_never_a_job"]),
            ("SQLite", &["power::a_core_whose_disk_fails_for_moments_keeps_every_promise_and_goes_on"]),
            (
                "disk",
                &[
                    "power::a_core_whose_disk_fails_for_moments_keeps_every_promise_and_goes_on",
                    "power::a_worker_whose_disk_fails_for_moments_loses_attempts_and_never_a_job",
                ],
            ),
        ],
    ),
    (
        "power cut",
        &[
            ("core", &["power::a_core_whose_disk_forgets_what_was_not_synced_keeps_every_promise"]),
            (
                "worker",
                &["power::a_machine_that_loses_its_power_again_and_again_ends_every_job_with_its_log_and_its_outputs"],
            ),
            (
                "disk",
                &[
                    "power::a_core_whose_disk_forgets_what_was_not_synced_keeps_every_promise",
                    "power::a_machine_that_loses_its_power_again_and_again_ends_every_job_with_its_log_and_its_outputs",
                ],
            ),
        ],
    ),
];

/// Every test the matrix names.
fn tests() -> impl Iterator<Item = &'static str> {
    MATRIX.iter().flat_map(|(_, cells)| cells.iter()).flat_map(|(_, tests)| tests.iter().copied())
}

/// Reports what the running test did, if it is in the matrix: faults injected, and how operations ended as their callers
/// saw it. An operation without an answer is neither.
pub(crate) fn shown(history: &[Entry]) {
    let thread = std::thread::current();
    let Some(test) = thread.name().filter(|name| tests().any(|test| test == *name)) else { return };
    let (faults, operations): (Vec<&Entry>, Vec<&Entry>) =
        history.iter().partition(|entry| matches!(entry.op, Op::Fault { .. }));
    let count = |verdict| operations.iter().filter(|entry| entry.result == verdict).count();
    let (ok, failed, unknown) = (count(Verdict::Ok), count(Verdict::Fail), count(Verdict::Unknown));
    say(&format!("SHOWN {test}|{}|{ok}|{failed}|{unknown}", faults.len()));
}

fn say(line: &str) {
    // Not `println!`, which the test runner would swallow for a test that passes.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// And tells the test program what to expect.
#[test]
fn every_cell_names_a_place_and_tests_that_exist() {
    let list = Command::new(std::env::current_exe().expect("this program has a path")).arg("--list").output();
    let list = String::from_utf8(list.expect("tests can be listed").stdout).expect("names are text");
    let known: BTreeSet<&str> = list.lines().filter_map(|line| line.strip_suffix(": test")).collect();
    say(&format!("MATRIX columns|{}", PLACES.join("|")));
    for (fault, cells) in MATRIX {
        for (place, tests) in *cells {
            assert!(PLACES.contains(place), "{fault}: {place} is no column");
            for test in *tests {
                assert!(known.contains(test), "{fault} / {place}: there is no test {test}");
                say(&format!("MATRIX {fault}|{place}|{test}"));
            }
        }
    }
}
