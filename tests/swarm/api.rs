//! The API under thousands of requests that Schemathesis makes out of its description: valid ones, and ones that are wrong
//! in each way it can think of. None may be answered by an error of the core, by a status or a body that the description
//! does not have, by success although it was wrong, or without a token where one is needed.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;
use swarm_protocol::spec::{JobSpec, Output};
use swarm_protocol::state::JobState;

use crate::harness::{PATIENCE, Setup, Swarm, either, report};

const DESCRIPTION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance,\
                      negative_data_rejection,missing_required_header,ignored_auth";
/// Workers' own routes take no account's token.
const PARTS: [&[&str]; 5] = [
    &["--include-tag=jobs"],
    &["--include-tag=schedules", "--include-tag=images"],
    &["--include-tag=files", "--include-tag=core"],
    &["--include-tag=users", "--include-tag=sessions", "--include-tag=workers", ENDS_SESSIONS],
    // At last, for these two end the session.
    &["--include-operation-id=sessions.logout", "--include-operation-id=users.reset"],
];
const ENDS_SESSIONS: &str = "--exclude-operation-id-regex=^(sessions.logout|users.reset)$";

/// What a part came to.
struct Requests {
    made: u64,
    told: String,
    is_good: bool,
}

/// Has as many requests made as `examples` for each operation, and those that look at bounds of what it takes.
fn requests(swarm: &Swarm, token: &str, part: &[&str], seed: u32, examples: u32) -> Requests {
    let program = std::env::var_os("SWARM_TEST_SCHEMATHESIS").expect("`cargo xtask test` installs Schemathesis");
    let found: PathBuf = swarm.home().join("requests.json");
    let mut command = Command::new(program);
    command.args(["run", DESCRIPTION, "--url", &swarm.url, "--header"]).arg(format!("Authorization: Bearer {token}"));
    command.args(["--phases=examples,coverage,fuzzing", "--warnings=off", "--continue-on-failure", "--checks", CHECKS]);
    command.args(["--seed", &seed.to_string(), "--max-examples", &examples.to_string(), "--no-color"]);
    command.args(["--report=json", "--report-json-path"]).arg(&found).args(part).current_dir(swarm.home());
    let ended = command.output().expect("Schemathesis can be started");
    let told = String::from_utf8_lossy(&ended.stdout).into_owned() + &String::from_utf8_lossy(&ended.stderr);
    let found: Value = serde_json::from_slice(&std::fs::read(&found).unwrap_or_default()).unwrap_or_default();
    let made = found["test_cases"]["generated"].as_u64().unwrap_or_default();
    Requests { made, told, is_good: ended.status.success() && found["operations"]["errored"] == 0 }
}

#[test]
fn thousands_of_requests_made_from_its_description_find_no_fault_in_the_api() {
    let swarm = Swarm::start(Setup::default());
    // So that there is something behind the numbers that are tried first.
    let mut spec: JobSpec = swarm.shell("echo said; echo kept > /out/file");
    spec.outputs.push(Output { path: "/out/file".to_owned() });
    let job = swarm.submit(&spec);
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Succeeded);
    let (seeds, examples) = (either(1, 3), either(100, 900));
    let mut made = 0;
    for seed in 1..=seeds {
        let token = swarm.access_token();
        for part in PARTS {
            let requests = requests(&swarm, &token, part, seed, examples);
            assert!(requests.is_good, "seed {seed} {part:?}:\n{}", requests.told);
            made += requests.made;
        }
    }
    assert!(made >= either(5_000, 100_000), "only {made} requests were made");
    // It went on without a restart, and still answers; image and worker may be gone, as was asked for.
    let modules = swarm.block(swarm.client.modules()).expect("modules can be listed").items;
    assert!(modules.iter().all(|module| module.restarts == 0), "{modules:?}");
    assert_eq!(swarm.detail(job).job.state, JobState::Succeeded);
    report(&format!("{made} requests over {seeds} seeds: 0 errors of the core, 0 undocumented answers"));
}
