//! Runs the stages.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::leftovers::{self, Before, MARK};
use crate::only::{self, Only};
use crate::report::{self, Outcome, say};
use crate::run::{self, Ending, Stop};
use crate::services::{Places, Services};
use crate::stage::{Profile, Stage, Tier};
use crate::supply::Rules;
use crate::tally::Tally;
use crate::temp::TempDir;

/// Whole-swarm scenarios that run at a time, at least.
const SCENARIOS_MIN: usize = 5;
/// The test that tells the fault matrix.
const MATRIX_TEST: &str = "matrix::every_cell_names_a_place_and_tests_that_exist";

/// One run of the tests. Fields are dropped in this order: services first, then the directory they lie in.
#[derive(Debug)]
pub(crate) struct Runner {
    services: Option<Services>,
    temp: TempDir,
    tier: Tier,
    own_engine: bool,
    /// What is asked for; everything when it is empty.
    only: Vec<Only>,
    /// The mark of this run's processes.
    run: String,
    root: PathBuf,
    target: PathBuf,
    stop: Stop,
    /// Time that earlier stages left unused.
    spare: Duration,
}

/// What a stage found out.
#[derive(Debug, Default)]
struct Findings {
    tally: Tally,
    problems: Vec<String>,
    /// Whether the stage runs tests, so that none at all is a fault.
    is_counted: bool,
}

impl Findings {
    fn of(problems: Vec<String>) -> Self {
        Self { problems, ..Self::default() }
    }

    fn and(mut self, other: Self) -> Self {
        self.tally.add(other.tally);
        self.problems.extend(other.problems);
        self.is_counted |= other.is_counted;
        self
    }

    fn settle(mut self) -> (Tally, Vec<String>) {
        self.problems.extend(self.tally.matrix.missing());
        if self.is_counted && self.problems.is_empty() && self.tally.passed + self.tally.failed == 0 {
            self.problems.push("ran no test".to_owned());
        }
        // A failure that no test stands for counts as one; so does a stage without tests that went well.
        if self.tally.failed == 0 {
            self.tally.failed = u64::from(!self.problems.is_empty());
        }
        if !self.is_counted && self.problems.is_empty() {
            self.tally.passed = 1;
        }
        (self.tally, self.problems)
    }
}

impl Runner {
    /// Makes ready; nothing runs yet.
    pub(crate) fn new(tier: Tier, own_engine: bool, only: Vec<Only>) -> Result<Self> {
        let stop = Stop::listen()?;
        let metadata = run::output(cargo(Path::new(".")).args(["metadata", "--no-deps", "--format-version=1"]))?;
        let metadata: serde_json::Value = serde_json::from_str(&metadata)?;
        let path = |key: &str| metadata[key].as_str().map(PathBuf::from).with_context(|| format!("no {key}"));
        let (root, target) = (path("workspace_root")?, path("target_directory")?);
        let run = format!("swarm-test-{}-{}", std::process::id(), millis());
        let temp = TempDir::make(&run)?;
        let spare = Duration::ZERO;
        Ok(Self { services: None, temp, tier, own_engine, only, run, root, target, stop, spare })
    }

    /// Runs `stages`, prints the table and gives whether all passed.
    pub(crate) fn run(mut self, stages: &[Stage]) -> Result<bool> {
        say(report::plan(stages, self.tier));
        let mut outcomes: Vec<Outcome> = Vec::new();
        for &stage in stages {
            let outcome = self.stage(stage, &outcomes);
            outcomes.push(outcome);
        }
        let (tier, target, is_whole) = (self.tier, self.target.clone(), self.only.is_empty());
        // Everything is stopped and removed before the last line is printed.
        drop(self);
        if tier == Tier::Full {
            // A part must not take the place of the whole.
            let path = target.join(if is_whole { "full-report.md" } else { "part-report.md" });
            report::write_full(&path, &outcomes)?;
            say(format_args!("written: {}", path.display()));
        }
        say(format_args!("\n{}", report::summary(&outcomes).trim_end()));
        Ok(report::totals(&outcomes).1 == 0)
    }

    fn stage(&mut self, stage: Stage, before: &[Outcome]) -> Outcome {
        let (budget, begin) = (stage.budget(self.tier), Instant::now());
        let lacking = before.iter().find(|outcome| stage.needs().contains(&outcome.stage) && !outcome.passed());
        let findings = if self.stop.asked() {
            Findings::of(vec!["not run: interrupted".to_owned()])
        } else if let Some(lacking) = lacking {
            Findings::of(vec![format!("not run: it needs `{}`, which failed", lacking.stage.as_str())])
        } else {
            let limit = budget + self.spare;
            say(format_args!("\n== {} (budget {} min)", stage.as_str(), budget.as_secs() / 60));
            self.act(stage, begin + limit).unwrap_or_else(|error| Findings::of(vec![format!("{error:#}")]))
        };
        let took = begin.elapsed();
        self.spare = (self.spare + budget).saturating_sub(took);
        let (tally, problems) = findings.settle();
        Outcome { stage, budget, took, tally, problems }
    }

    fn act(&mut self, stage: Stage, deadline: Instant) -> Result<Findings> {
        match stage {
            Stage::Services => {
                let places = Places { temp: self.temp.path(), root: &self.root, target: &self.target };
                self.services = Some(Services::start(places, self.own_engine, deadline, &self.stop)?);
                Ok(Findings::default())
            }
            Stage::Fmt => self.cargo_stage(&["fmt", "--all", "--check"], &[], deadline),
            Stage::Deny => self.deny(deadline),
            Stage::Clippy => {
                let words = ["clippy", "--locked", "--workspace", "--all-targets", "--", "--deny", "warnings"];
                self.cargo_stage(&words, &[], deadline)
            }
            Stage::Doc => {
                let words = ["doc", "--locked", "--workspace", "--no-deps", "--document-private-items"];
                self.cargo_stage(&words, &[("RUSTDOCFLAGS", "--deny warnings")], deadline)
            }
            Stage::Build => self.build(deadline),
            // Examples in the documentation cannot be named in one call with the others.
            Stage::Unit => {
                let findings = self.tests(&["--lib", "--bins"], deadline)?.and(self.tests(&["--doc"], deadline)?);
                let is_whole = only::filters(&self.only, Stage::Unit).is_empty();
                if self.tier == Tier::Full && is_whole { Ok(findings.and(self.tls(deadline)?)) } else { Ok(findings) }
            }
            Stage::Simulation => self.simulation(deadline),
            Stage::Swarm => self.swarm(deadline),
            Stage::Demo => self.demo(deadline),
        }
    }

    /// A stage that is one call of cargo and counts as one.
    fn cargo_stage(&self, words: &[&str], environment: &[(&str, &str)], deadline: Instant) -> Result<Findings> {
        let mut command = cargo(&self.root);
        command.args(words).envs(environment.iter().copied());
        let ending = run::stream(&mut command, deadline, &self.stop, &mut |_| {})?;
        Ok(Findings::of(ending.problem().into_iter().collect()))
    }

    fn deny(&self, deadline: Instant) -> Result<Findings> {
        let rules = Rules::read(&self.root.join("deny.toml"))?;
        let host = run::output(Command::new("rustc").arg("-vV"))?;
        let host = host.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc names no host")?;
        let words = ["metadata", "--locked", "--format-version=1", "--filter-platform", host];
        let mut problems = rules.judge(&run::output_until(cargo(&self.root).args(words), deadline)?)?;
        let is_there = || run::output(cargo(&self.root).args(["deny", "--version"])).is_ok();
        if self.tier == Tier::Full && !is_there() {
            problems.extend(self.cargo_stage(&["install", "--locked", "cargo-deny"], &[], deadline)?.problems);
        }
        if is_there() {
            // It looks at all platforms, and a build has fetched the crates of one.
            run::output_until(cargo(&self.root).args(["fetch", "--locked"]), deadline)?;
            let words = ["deny", "--offline", "check", "bans", "licenses", "sources"];
            problems.extend(self.cargo_stage(&words, &[], deadline)?.problems);
        } else {
            say("cargo-deny is not installed: licences, sources and bans were checked from cargo metadata alone");
        }
        Ok(Findings::of(problems))
    }

    /// What the stages of this run need. In one go with the tests, since other targets would resolve to other features and
    /// build twice.
    fn build(&self, deadline: Instant) -> Result<Findings> {
        let words = ["build", "--locked", "--workspace", "--bins"];
        let needs = |profile| {
            let runs = [Stage::Unit, Stage::Simulation, Stage::Swarm, Stage::Demo];
            let mut runs = runs.into_iter().filter(|stage| stage.profile(self.tier) == profile);
            runs.any(|stage| self.only.is_empty() || self.only.iter().any(|only| only.stage == stage))
        };
        let mut findings = Findings::default();
        // Named alone it builds all.
        let names_build = self.only.iter().any(|only| only.stage == Stage::Build);
        for (profile, tests) in [(Profile::Debug, &["--tests"][..]), (Profile::Checked, &["--test", "swarm"])] {
            if needs(profile) || (names_build && (profile == Profile::Debug || self.tier == Tier::Full)) {
                let words = [&words[..], tests, profile.flags()].concat();
                findings = findings.and(self.cargo_stage(&words, &[], deadline)?);
            }
        }
        Ok(findings)
    }

    /// `cargo test` for the whole workspace: naming single packages would resolve to other features.
    fn tests(&self, targets: &[&str], deadline: Instant) -> Result<Findings> {
        self.marked_stage(&mut self.test_command(Stage::Unit, targets, &[]), true, deadline)
    }

    /// `further` are names of tests to run beside those that are asked for.
    fn test_command(&self, stage: Stage, targets: &[&str], further: &[&str]) -> Command {
        let mut command = cargo(&self.root);
        command.args(["test", "--locked", "--workspace", "--no-fail-fast"]).args(targets);
        command.args(stage.profile(self.tier).flags()).arg("--");
        if self.tier == Tier::Full {
            // Passing tests' own lines are part of the report.
            command.arg("--show-output");
        }
        let filters = only::filters(&self.only, stage);
        if !filters.is_empty() {
            command.args(filters).args(further);
        }
        command
    }

    /// Whole swarms, and the fault matrix that they print.
    fn swarm(&self, deadline: Instant) -> Result<Findings> {
        let mut command = self.test_command(Stage::Swarm, &["--test", "swarm"], &[MATRIX_TEST]);
        // Scenarios wait most of the time: for leases, for containers, for what was killed.
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if std::env::var_os("RUST_TEST_THREADS").is_none() {
            command.env("RUST_TEST_THREADS", (2 * cores).max(SCENARIOS_MIN).to_string());
        }
        let mut findings = self.marked_stage(&mut command, true, deadline)?;
        let filters = only::filters(&self.only, Stage::Swarm);
        if filters.is_empty() && findings.tally.matrix.table().is_none() {
            findings.problems.push("no test printed the fault matrix".to_owned());
        }
        if !filters.is_empty() {
            findings.tally.matrix.keep(&filters);
            let asks_for_matrix = filters.iter().any(|filter| MATRIX_TEST.contains(filter));
            if !asks_for_matrix && findings.tally.passed + findings.tally.failed <= 1 {
                findings.problems.push(format!("no test has {} in its name", filters.join(" or ")));
            }
        }
        Ok(findings)
    }

    /// What only a core with TLS to Postgres can show. It has OpenSSL compiled, which takes minutes.
    fn tls(&self, deadline: Instant) -> Result<Findings> {
        let mut command = cargo(&self.root);
        command.args(["test", "--locked", "--package=swarm-core", "--features=postgres-tls", "--lib"]);
        command.args(["--", "--show-output", "over_tls"]);
        self.marked_stage(&mut command, true, deadline)
    }

    /// So many seeds, judged by the checker. A seed that fails is printed with the words that repeat it.
    fn simulation(&self, deadline: Instant) -> Result<Findings> {
        let all = match self.tier {
            Tier::Quick => "0..200",
            Tier::Full => "0..10000",
        };
        let asked = only::filters(&self.only, Stage::Simulation);
        let program = self.target.join(Stage::Simulation.profile(self.tier).dir()).join("swarm-simulation");
        let mut findings = Findings::default();
        for seeds in if asked.is_empty() { vec![all] } else { asked } {
            let mut command = Command::new(&program);
            command.args(["--seeds", seeds]).current_dir(&self.root);
            findings = findings.and(self.marked_stage(&mut command, false, deadline)?);
        }
        Ok(findings)
    }

    /// The demo as a new user runs it, in an empty directory.
    fn demo(&self, deadline: Instant) -> Result<Findings> {
        let dir = self.temp.path().join("demo");
        std::fs::create_dir(&dir).context("making a directory for the demo")?;
        let mut command = Command::new(self.target.join("debug/swarm"));
        command.arg("demo").current_dir(&dir);
        self.marked_stage(&mut command, false, deadline)
    }

    /// Runs something that makes containers and processes, and names what of them is left afterwards.
    fn marked_stage(&self, command: &mut Command, is_counted: bool, deadline: Instant) -> Result<Findings> {
        let environment = self.services.as_ref().map(Services::environment).unwrap_or_default();
        let before = Before::look(&environment)?;
        let scratch = self.temp.path().join("tmp");
        std::fs::create_dir_all(&scratch).context("making a directory for temporary files")?;
        command.envs(environment).env(MARK, &self.run).env("SWARM_TEST_TIER", self.tier.as_str());
        command.env("TMPDIR", &scratch);
        let mut tally = Tally::default();
        let ending = run::stream(command, deadline, &self.stop, &mut |line| tally.read(line));
        let patient = !matches!(ending, Ok(Ending::Stopped | Ending::TimedOut) | Err(_));
        let mut problems = leftovers::sweep_processes(&self.run, patient);
        problems.extend(before.sweep()?);
        problems.extend(ending?.problem());
        Ok(Findings { tally, problems, is_counted })
    }
}

/// The cargo that runs us, with the colour that the terminal would have got without us in between.
fn cargo(dir: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(dir);
    if std::env::var_os("CARGO_TERM_COLOR").is_none() && std::io::IsTerminal::is_terminal(&std::io::stdout()) {
        command.env("CARGO_TERM_COLOR", "always");
    }
    command
}

/// Milliseconds since 1970; only makes names differ.
fn millis() -> u128 {
    std::time::UNIX_EPOCH.elapsed().map(|time| time.as_millis()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(passed: u64, failed: u64, is_counted: bool, problem: &[&str]) -> (u64, u64, Vec<String>) {
        let tally = Tally { passed, failed, ..Tally::default() };
        let problems = problem.iter().map(|text| (*text).to_owned()).collect();
        let (tally, problems) = Findings { tally, problems, is_counted }.settle();
        (tally.passed, tally.failed, problems)
    }

    #[test]
    fn what_counts_as_passed_and_as_failed() {
        assert_eq!(settle(0, 0, false, &[]), (1, 0, vec![]));
        assert_eq!(settle(0, 0, false, &["x"]), (0, 1, vec!["x".to_owned()]));
        assert_eq!(settle(7, 0, true, &[]), (7, 0, vec![]));
        assert_eq!(settle(7, 2, true, &["exit status: 101"]), (7, 2, vec!["exit status: 101".to_owned()]));
        assert_eq!(settle(7, 0, true, &["left behind: x"]), (7, 1, vec!["left behind: x".to_owned()]));
        assert_eq!(settle(0, 0, true, &[]), (0, 1, vec!["ran no test".to_owned()]));
    }
}
