//! What the README tells a user to type, typed; and what it promises of exit codes and Ctrl-C.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use swarm_protocol::JobId;
use swarm_protocol::state::JobState;

use crate::harness::{Ended, PATIENCE, Proc, Setup, Swarm, command, docker, eventually, now_us, run, shared};

/// The README's image, and where a user keeps it.
const IMAGE: &str = "alpine:3.20";

/// An image in the local Docker under a name of its own that the core has not seen; gone when dropped.
struct Tagged {
    name: String,
    id: String,
}

impl Tagged {
    fn load(swarm: &Swarm) -> Self {
        let archive = swarm.home().join("image.tar");
        let loaded = docker(&["load", "--quiet", "--input", archive.to_str().expect("a plain path")]);
        let loaded = loaded.expect("docker loads the image");
        let image = loaded.trim().rsplit(": ").next().expect("it names what it loaded").to_owned();
        let name = format!("swarm-test-{}:1", uuid::Uuid::new_v4().simple());
        // The swarm's own image with another config.
        let container = docker(&["create", &image, "sh"]).expect("docker makes a container");
        let made = docker(&["commit", "--change", &format!("ENV NAME={name}"), container.trim(), &name]);
        docker(&["rm", container.trim()]);
        let id = made.expect("docker makes an image").trim().to_owned();
        Self { name, id }
    }
}

impl Drop for Tagged {
    fn drop(&mut self) {
        // By its id, for the worker has named it too.
        docker(&["rmi", "--force", &self.id]);
    }
}

/// What the README has in the block that begins so.
fn block(begin: &str) -> &'static str {
    let block = include_str!("../../README.md").split_once(begin).expect("the README has the block").1;
    block.split("```").next().expect("the block ends")
}

/// The commands of such a block: a line each, without comments.
fn commands(begin: &str) -> Vec<String> {
    let block = block(begin).replace("\\\n", " ");
    let lines = block.lines().map(|line| line.split(" # ").next().unwrap_or_default().trim().to_owned());
    lines.filter(|line| !line.is_empty()).collect()
}

/// Types a line into a shell that finds `swarm`.
fn type_in(swarm: &Swarm, line: &str) -> Ended {
    let mut shell = Command::new("sh");
    let program = Path::new(env!("CARGO_BIN_EXE_swarm")).parent().expect("it lies in a directory");
    let path = std::env::var("PATH").unwrap_or_default();
    shell.args(["-c", line]).current_dir(swarm.home()).stdin(Stdio::null());
    shell.env("SWARM_URL", &swarm.url).env("SWARM_CONFIG_DIR", swarm.home().join("config"));
    shell.env("PATH", format!("{}:{path}", program.display()));
    run(shell, swarm.home(), PATIENCE)
}

#[test]
fn the_readme_can_be_typed_as_it_stands() {
    let swarm = Swarm::start(Setup { up: true, ..Setup::default() });
    let tagged = Tagged::load(&swarm);
    std::os::unix::fs::symlink(swarm.home().join("core"), swarm.home().join("swarm-data")).expect("a link can be made");
    std::fs::write(swarm.home().join("data.csv"), "a\nb\n").expect("a file can be written");
    let mut typed = 0;
    // The image is in the local Docker already, and the deck needs a terminal.
    let lines = commands("In another terminal:\n\n```sh\n");
    for line in lines.iter().filter(|line| !line.starts_with("docker pull") && *line != "swarm deck") {
        let line = line.replace(IMAGE, &tagged.name);
        let ended = type_in(&swarm, &line);
        assert_eq!(ended.code, Some(0), "{line}\n{}\n{}", String::from_utf8_lossy(&ended.stdout), ended.stderr);
        let shown = String::from_utf8_lossy(&ended.stdout).into_owned();
        let expected = match line.split_whitespace().nth(2).unwrap_or_default() {
            "image" => "pushed: ",
            "run" if line.contains("hello") => "hello\n",
            "show" | "ls" => "succeeded",
            "logs" => "task 7\n",
            "wait" => "job 3 succeeded",
            "fetch" => "again/sum.txt",
            "cancel" => "had ended already",
            _ => "",
        };
        // The array may still run when it is listed.
        assert!(shown.contains(expected) || (line.contains("show 3") && shown.contains("ended")), "{line}\n{shown}");
        typed += 1;
    }
    assert!(typed >= 14, "the README's block was not found whole: {typed} lines");
    for results in ["results", "again"] {
        let sum = std::fs::read_to_string(swarm.home().join(results).join("sum.txt")).expect("the result is there");
        assert!(sum.trim_start().starts_with('2'), "{sum}");
    }
    let again = swarm.consumer(&["image", "push", &tagged.name]);
    assert!(String::from_utf8_lossy(&again.stdout).contains("already there"), "{again:?}");
    every_answer_is_json_if_asked_for(&swarm);
    a_second_worker_joins(&swarm);
    a_job_is_kept_in_a_file(&swarm, &tagged.name);
}

fn a_job_is_kept_in_a_file(swarm: &Swarm, image: &str) {
    let file = |name: &str| swarm.home().join(name);
    let job = block("```toml\n# report.toml\n").replace(IMAGE, image);
    std::fs::write(file("report.toml"), job).expect("a file can be written");
    let lines = commands("timeout = \"10m\"\n```\n\n```sh\n");
    for line in &lines {
        let ended = type_in(swarm, &line.replace(IMAGE, image));
        let shown = String::from_utf8_lossy(&ended.stdout).into_owned();
        assert_eq!(ended.code, Some(0), "{line}\n{shown}\n{}", ended.stderr);
        let expected = match line {
            line if line.contains("validate") => "report.toml is a job of 1 task",
            line if line.contains("--dry-run") => "a job of 1 task, image sha256:",
            line if line.contains("schedule create") => "tick",
            _ => "",
        };
        assert!(shown.contains(expected), "{line}\n{shown}");
    }
    assert_eq!(lines.len(), 6);
    let sum = std::fs::read_to_string(file("report/sum.txt")).expect("the result is there");
    assert!(sum.trim_start().starts_with('2'), "{sum}");
    let date = std::fs::read_to_string(file("date.toml")).expect("it was converted");
    assert!(date.contains("memory = \"64MiB\"") && date.contains("command = [\"date\"]"), "{date}");
    std::fs::write(file("bad.yaml"), "image: x\nmemory: 1KiB\ntimeout: 0s\n").expect("a file can be written");
    let ended = type_in(swarm, "swarm consumer job validate bad.yaml");
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("--memory") && ended.stderr.contains("--timeout"), "{}", ended.stderr);
}

fn every_answer_is_json_if_asked_for(swarm: &Swarm) {
    let lines = [
        "whoami",
        "image ls",
        "ls",
        "show 3",
        "logs 3.7",
        "wait 3",
        "why 3",
        "cancel 3",
        "exit-codes",
        "schedule ls",
        "schedule show nightly",
        "schedule pause nightly",
        "schedule resume nightly",
        "schedule trigger nightly",
        "schedule delete nightly",
        "worker-token third",
        "fetch 2 --into third",
    ];
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().chain(["-o", "json"]).collect();
        let ended = swarm.consumer(&words);
        assert_eq!(ended.code, Some(0), "{line}: {}", ended.stderr);
        let text = String::from_utf8(ended.stdout).expect("JSON is text");
        assert_eq!(text.lines().count(), 1, "{line}: {text}");
        serde_json::from_str::<Value>(&text).unwrap_or_else(|error| panic!("{line}: {error}: {text}"));
    }
}

fn a_second_worker_joins(swarm: &Swarm) {
    let token = swarm.consumer(&["worker-token", "second"]).stdout;
    assert_eq!(token.iter().filter(|byte| **byte == b'\n').count(), 1, "the token alone");
    let file = swarm.home().join("second-token");
    std::fs::write(&file, token).expect("a file can be written");
    let worker = |data: &str, stdin: Stdio| {
        let data = swarm.home().join(data);
        let words =
            ["worker", "--core", &swarm.url, "--name", "second", "--data", data.to_str().expect("a plain path")];
        let mut command = command(swarm.home(), &[&words[..], &["--join-token-file", "-"]].concat());
        command.stdin(stdin);
        (data.join("lock"), Proc::start("second", swarm.home(), command))
    };
    // Before a token comes, Ctrl-C must end it.
    let (silent, open) = std::io::pipe().expect("a pipe can be made");
    let (lock, mut waiting) = worker("waiting-data", silent.into());
    eventually("it waits for its token", PATIENCE, || lock.exists().then_some(()));
    waiting.signal(Signal::INT);
    eventually("it ends after Ctrl-C", Duration::from_secs(20), || waiting.ended());
    drop(open);

    let (_, second) = worker("second-data", std::fs::File::open(&file).expect("it was written").into());
    eventually("the second worker is ready", PATIENCE, || {
        let workers = swarm.block(swarm.client.workers()).ok()?.items;
        workers.iter().any(|worker| worker.name == "second" && worker.state == "ready").then_some(())
    });
    assert_eq!(second.terminate(Duration::from_secs(30)).code(), Some(0));
}

#[test]
fn exit_codes_are_those_of_the_readme() {
    let swarm = shared();
    let code = |words: &[&str]| swarm.consumer(words).code;
    assert_eq!(code(&["run", "--bogus"]), Some(125));
    assert_eq!(code(&["run", "never/pushed:1"]), Some(125));
    assert_eq!(code(&["wait", "999999"]), Some(125));
    assert_eq!(code(&["show", "999999"]), Some(3));
    assert_eq!(code(&["show", "nonsense"]), Some(2));
    assert_eq!(code(&["--url", "http://127.0.0.1:1", "ls"]), Some(4), "no session there");
    let (failed, job) = swarm.run(&[], &["sh", "-c", "exit 3"]);
    assert_eq!(failed.code, Some(3), "{}", failed.stderr);
    let id = job.to_string();

    // Whoever would have read the answer has gone; the code still tells.
    for format in ["human", "json", "quiet"] {
        let mut command = swarm.consumer_command(&["--output", format, "wait", &id]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("it can be started");
        drop(child.stdout.take());
        let status = eventually("wait ends", PATIENCE, || child.try_wait().expect("a child can be asked"));
        assert_eq!(status.code(), Some(3), "{format}");
    }
    let told: Value = serde_json::from_slice(&swarm.consumer(&["wait", &id, "-o", "json"]).stdout).expect("JSON");
    assert_eq!((&told["exit"], told["reason"].as_str()), (&3.into(), Some("container")));

    let job = swarm.submit(&swarm.shell("sleep 300"));
    let id = job.to_string();
    swarm.wait_started(job, 1);
    assert_eq!(code(&["wait", &id, "--timeout", "1s"]), Some(124));
    assert_eq!(code(&["cancel", &id]), Some(0));
    assert_eq!(code(&["wait", &id, "--timeout", "300000years"]), Some(8));
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Cancelled);
    swarm.judge("exit codes", false);
}

#[test]
fn ctrl_c_detaches_and_a_second_one_cancels() {
    let swarm = shared();
    let start = |name: &str| {
        let began = now_us();
        let words = ["run", "--name", name, &swarm.image, "sh", "-c", "sleep 300"];
        let proc = Proc::start(name, swarm.home(), swarm.consumer_command(&words));
        let job = eventually("it says which job", PATIENCE, || {
            let printed = proc.printed();
            printed.lines().find_map(|line| line.strip_prefix("job ")?.parse::<u64>().ok()).map(JobId)
        });
        swarm.note_submitted(job, began);
        swarm.wait_started(job, 1);
        (proc, job)
    };
    let code = |mut proc: Proc| eventually("it ends", PATIENCE, || proc.ended()).code();
    let (proc, job) = start("detached");
    proc.signal(Signal::INT);
    assert_eq!(code(proc), Some(130));
    assert!(!swarm.detail(job).job.state.is_final(), "the job goes on");
    assert_eq!(swarm.consumer(&["cancel", &job.to_string()]).code, Some(0));
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Cancelled);

    let (proc, job) = start("cancelled");
    proc.signal(Signal::INT);
    eventually("it offers to cancel", PATIENCE, || proc.printed().contains("again within").then_some(()));
    proc.signal(Signal::INT);
    assert_eq!(code(proc), Some(8));
    assert_eq!(swarm.wait_ended(job, PATIENCE).job.state, JobState::Cancelled);
    swarm.judge("Ctrl-C", false);
}
