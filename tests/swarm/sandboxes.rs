//! Sandboxes with a real engine. A job in one sees the sandbox's host name, which is the beginning of its container's id.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use swarm_client::{Client, LogOptions, MemoryTokens};
use swarm_protocol::api::{LoginRequest, Role, Tokens, UserRequest};
use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, TaskId};

use crate::harness::{PATIENCE, Setup, Swarm, docker, eventually, report};

const SLOTS: u32 = 2;
const PASSWORD: &str = "a-password-of-twelve";

/// Host names of the sandboxes that are there, running or not.
fn sandboxes(swarm: &Swarm, status: &[&str]) -> BTreeSet<String> {
    let of = format!("label=io.swarm-sync.swarm={}", swarm.id().expect("the store holds the swarm's id"));
    let words = ["ps", "--all", "--quiet", "--filter", &of, "--filter", "label=io.swarm-sync.sandbox"];
    let ids = docker(&[&words, status].concat()).expect("docker lists containers");
    ids.split_whitespace().map(str::to_owned).collect()
}

/// Waits until there is one for each slot, none of them among `old`.
fn until_ready(swarm: &Swarm, old: &BTreeSet<String>) -> BTreeSet<String> {
    eventually("a sandbox for each slot runs", PATIENCE, || {
        let now = sandboxes(swarm, &["--filter", "status=running"]);
        (now.len() == SLOTS as usize && now.is_disjoint(old)).then_some(now)
    })
}

/// Runs a job and gives the host name it saw.
fn host_name(swarm: &Swarm, client: &Client) -> String {
    let job = swarm.block(client.submit(&swarm.shell("cat /etc/hostname"), None)).expect("it is accepted").job;
    let detail = swarm.block(async {
        loop {
            let detail = client.wait_job(job, Duration::from_secs(10)).await.expect("it can be waited for");
            if detail.job.state.is_final() {
                return detail;
            }
        }
    });
    assert_eq!(detail.job.state, JobState::Succeeded);
    let task = TaskId { job, task: 0 };
    assert_eq!(swarm.block(client.task(task)).expect("it can be read").attempts.len(), 1, "no attempt is lost");
    swarm.block(async {
        let (mut log, mut text) = (client.log(task, LogOptions::default()), String::new());
        while let Some(record) = log.next().await.expect("the log can be read") {
            text.push_str(&String::from_utf8_lossy(&record.bytes));
        }
        text.trim().to_owned()
    })
}

/// Runs jobs until one was in a sandbox: a fresh one may be a moment away.
fn until_in_one(swarm: &Swarm, client: &Client) -> String {
    eventually("a job in a sandbox", PATIENCE, || {
        let name = host_name(swarm, client);
        sandboxes(swarm, &[]).contains(&name).then_some(name)
    })
}

/// A user of another group, with the image.
fn another_group(swarm: &Swarm) -> Client {
    let client = Client::new(&swarm.url, Arc::new(MemoryTokens::default())).expect("loopback is an address");
    swarm.block(async {
        let http = reqwest::Client::new();
        let route = |route: &str| format!("{}/api/v1/{route}", swarm.url);
        let password = std::fs::read_to_string(swarm.password_file()).expect("the first start leaves it");
        let login = LoginRequest { user: "admin".into(), password: password.trim_end().into() };
        let answer = http.post(route("login")).json(&login).send().await.expect("the core answers");
        let tokens: Tokens = answer.json().await.expect("tokens");
        let new = UserRequest {
            user: "other".into(),
            password: PASSWORD.into(),
            role: Role::Consumer,
            group: Some("others".into()),
        };
        let call = http.post(route("users")).bearer_auth(tokens.access_token).json(&new);
        let answer = call.send().await.expect("the core answers");
        assert!(answer.status().is_success(), "{:?}", answer.text().await);
        client.login("other", PASSWORD).await.expect("the new user can log in");
        let archive = tokio::fs::File::open(swarm.home().join("image.tar")).await.expect("the archive is there");
        let bytes = tokio_util::io::ReaderStream::new(archive);
        client.upload_image(Some(&swarm.image), bytes, Arc::new(|_| ())).await.expect("the image is taken");
    });
    client
}

#[test]
fn jobs_join_sandboxes_of_their_group_and_lose_nothing_with_them() {
    let swarm = Swarm::start(Setup { slots: Some(SLOTS), ..Setup::default() });
    let other = another_group(&swarm);
    let first = until_ready(&swarm, &BTreeSet::new());
    let one = until_in_one(&swarm, &swarm.client);
    assert_eq!(host_name(&swarm, &swarm.client), one, "a group's own is used again");

    // Idle ones die: the next jobs cost no attempt, and there are others afterwards.
    for name in &first {
        docker(&["kill", name]).expect("it runs");
    }
    assert!(!first.contains(&host_name(&swarm, &swarm.client)));
    let second = until_ready(&swarm, &first);
    let (mine, theirs) = (until_in_one(&swarm, &swarm.client), until_in_one(&swarm, &other));
    for _ in 0..3 {
        let (again, others) = (host_name(&swarm, &swarm.client), host_name(&swarm, &other));
        assert_eq!((again, others), (mine.clone(), theirs.clone()));
    }
    assert_ne!(mine, theirs);

    // One dies under a job, which goes on.
    let job = swarm.submit(&swarm.shell("echo begun; sleep 3; echo done"));
    swarm.wait_started(job, 1);
    docker(&["rm", "--force", &mine]).expect("it is there");
    until_ended(&swarm, job);
    swarm.check_log(TaskId { job, task: 0 }, b"begun\ndone\n", b"");

    // A killed worker's are swept by its next start, and a stopped one leaves none.
    swarm.worker().take().expect("it runs").kill();
    swarm.start_worker();
    until_ready(&swarm, &second);
    swarm.wait_ready();
    until_in_one(&swarm, &swarm.client);
    let id = swarm.id().expect("the store holds the swarm's id");
    swarm.judge("sandboxes", true);
    let began = std::time::Instant::now();
    let status = swarm.worker().take().expect("it runs").terminate(PATIENCE);
    assert_eq!(status.code(), Some(0));
    assert!(sandboxes(&swarm, &[]).is_empty() && swarm.docker().listing(&id).is_empty());
    report(&format!("a worker with {SLOTS} sandboxes stopped within {} ms", began.elapsed().as_millis()));
}

#[track_caller]
fn until_ended(swarm: &Swarm, job: JobId) {
    let detail = swarm.wait_ended(job, PATIENCE);
    assert_eq!((detail.job.state, swarm.task(job).attempts.len()), (JobState::Succeeded, 1));
}
