//! `worker doctor` on the machine's own engine, and where there is none.

use serde_json::Value;

use crate::harness::{PATIENCE, command, docker, run, shared};

#[test]
fn the_doctor_names_what_there_is_and_what_to_do_where_nothing_is() {
    let swarm = shared();
    let data = swarm.home().join("worker");
    let words = ["worker", "doctor", "--core", &swarm.url, "--data", data.to_str().expect("a plain path")];
    let examine = |more: &[&str], host: Option<&str>| {
        let mut command = command(swarm.home(), &[&words, more].concat());
        command.envs(host.map(|host| ("DOCKER_HOST", host)));
        run(command, swarm.home(), PATIENCE)
    };
    let engine = |format: &str| docker(&["info", "--format", format]).expect("the engine answers").trim().to_owned();

    let found = examine(&["--output", "json"], None);
    assert_eq!(found.code, Some(0), "{found:?}");
    let findings: Vec<Value> = serde_json::from_slice(&found.stdout).expect("a list");
    let text = |check: &str| {
        let finding = findings.iter().find(|finding| finding["check"] == check).expect(check);
        finding["text"].as_str().expect("text").to_owned()
    };
    assert!(text("engine").contains(&format!("docker {}", engine("{{.ServerVersion}}"))), "{}", text("engine"));
    assert!(text("engine").contains(&engine("{{.Driver}}")), "{}", text("engine"));
    assert!(text("offer").contains(&format!("the engine's {} cores", engine("{{.NCPU}}"))), "{}", text("offer"));
    assert!(text("limits").contains("memory"), "{}", text("limits"));
    assert!(text("labels").contains(&format!("kernel={}", engine("{{.KernelVersion}}"))), "{}", text("labels"));
    assert!(text("identity").contains("joined") && text("core").contains(&swarm.url), "{findings:?}");

    // For people, and with an engine that is not there: what is wrong, and what to do.
    let absent = format!("unix://{}", swarm.home().join("nobody.sock").display());
    let found = examine(&[], Some(&absent));
    let shown = String::from_utf8_lossy(&found.stdout);
    assert_eq!(found.code, Some(1), "{shown}");
    assert!(shown.contains("BAD") && shown.contains("start Docker, or name its socket with --docker-host"), "{shown}");
}
