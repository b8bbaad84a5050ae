//! Which outputs a report may name. Pure, but slow: a job may have 256 globs, and a report 1000 paths.

use std::collections::BTreeSet;

use swarm_protocol::Outcome;
use swarm_protocol::globs::OutputGlob;
use swarm_protocol::link::FinalReport;
use swarm_protocol::spec::Output;
use swarm_protocol::validate::{bounds::COLLECTED_MAX, is_output_path};

/// What is wrong with the paths of a report's outputs: they are those of the job, or none when it did not succeed.
pub(super) fn misnamed(wanted: &[Output], report: &FinalReport) -> Option<String> {
    let globs = wanted.iter().filter_map(|output| OutputGlob::parse(&output.path).ok()?.map(|glob| (output, glob)));
    let globs: Vec<_> = globs.collect();
    let matching = |path: &str| globs.iter().find(|(_, glob)| glob.is_match(path.as_bytes()));
    let named: BTreeSet<_> = report.outputs.iter().map(|output| output.path.as_str()).collect();
    let is_wanted = |path: &&str| {
        wanted.iter().any(|output| output.path == **path) || (is_output_path(path) && matching(path).is_some())
    };
    if named.len() != report.outputs.len() || named.len() > COLLECTED_MAX || !named.iter().all(is_wanted) {
        return Some("it reports outputs that the job does not have".to_owned());
    }
    let is_there = |output: &&Output| match globs.iter().find(|(of, _)| of == output) {
        Some((_, glob)) => named.iter().any(|path| glob.is_match(path.as_bytes())),
        None => named.contains(output.path.as_str()),
    };
    let missing = wanted.iter().find(|output| !is_there(output)).filter(|_| report.outcome == Outcome::Succeeded);
    missing.map(|output| format!("its output {} is missing from the report", output.path))
}

#[cfg(test)]
mod tests {
    use swarm_protocol::link::OutputReport;
    use swarm_protocol::{AttemptId, Digest, JobId};

    use super::*;
    use crate::testing::report;

    #[test]
    fn a_report_hands_out_what_the_job_asked_for_and_nothing_else() {
        let outputs = |paths: &[&str]| {
            let output = |path: &&str| OutputReport {
                path: (*path).to_owned(),
                digest: Digest::of(b"x"),
                size_bytes: 1,
                is_dir: false,
                mode: 0o644,
            };
            paths.iter().map(output).collect::<Vec<_>>()
        };
        let wanted = ["/out/a", "/out/b*"].map(|path| Output { path: path.into() });
        let id = AttemptId { job: JobId(1), task: 0, attempt: 1 };
        let failed = Outcome::Failed { exit_code: 1 };
        for (paths, outcome, holds) in [
            (&["/out/a", "/out/b"][..], Outcome::Succeeded, true),
            (&["/out/a", "/out/by"][..], Outcome::Succeeded, true),
            (&["/out/a", "/out/bx", "/out/by"][..], Outcome::Succeeded, true),
            (&["/out/a", "/out/b", "/out/bad\u{1b}[31m"][..], Outcome::Succeeded, false),
            (&["/out/a", "/out/b", "/out/b/x"][..], Outcome::Succeeded, false),
            (&["/out/a"][..], Outcome::Succeeded, false),
            (&["/out/a", "/out/b", "/etc/shadow"][..], Outcome::Succeeded, false),
            (&["/out/a", "/out/a", "/out/b"][..], Outcome::Succeeded, false),
            (&[][..], failed.clone(), true),
            (&["/etc/shadow"][..], failed, false),
        ] {
            let reported = FinalReport { outputs: outputs(paths), ..report(id, outcome) };
            assert_eq!(misnamed(&wanted, &reported).is_none(), holds, "{paths:?}");
        }
    }
}
