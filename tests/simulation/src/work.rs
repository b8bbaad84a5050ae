//! What containers do in the simulated world: as a variable of their job says, so that users know what must come of it.

use std::time::Duration;

use swarm_worker::runtime::fake::{Script, StartView};

/// The variable.
const VARIABLE: &str = "WORK";
/// Where an output is left.
pub(crate) const OUTPUT: &str = "/out/result";

/// What a task leaves as its output.
pub(crate) fn result(task: u32) -> String {
    format!("result of {task}")
}

/// The work of each task of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) run_ms: u64,
    pub(crate) exit: i64,
    pub(crate) lines: u32,
    pub(crate) has_output: bool,
}

impl Work {
    pub(crate) fn variable(&self) -> (String, String) {
        let Self { run_ms, exit, lines, has_output } = self;
        (VARIABLE.to_owned(), format!("{run_ms} {exit} {lines} {}", u8::from(*has_output)))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(' ').map(str::parse::<u32>);
        let mut next = || words.next()?.ok();
        let (run_ms, exit, lines, output) = (next()?, next()?, next()?, next()?);
        Some(Self { run_ms: run_ms.into(), exit: exit.into(), lines, has_output: output == 1 })
    }

    /// What a task writes to standard output, in any attempt.
    pub(crate) fn written(&self, task: u32) -> String {
        (0..self.lines).map(|line| format!("line {line} of task {task}\n")).collect()
    }

    /// What a container does; one without the variable is the worker's own and runs until it is killed.
    pub(crate) fn script(view: &StartView<'_>) -> Script {
        let variable = |name| view.spec.env.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_str());
        let Some(work) = variable(VARIABLE).and_then(Self::parse) else { return Script::new().forever() };
        let task: u32 = variable("SWARM_TASK_INDEX").and_then(|index| index.parse().ok()).unwrap_or_default();
        let text = work.written(task);
        // In two halves, so that the log grows while the container runs.
        let (first, second) = text.split_at(text.len() / 2);
        let half = Duration::from_millis(work.run_ms / 2);
        let script = Script::new().out(first.to_owned()).sleep(half).out(second.to_owned()).sleep(half);
        let script = if work.has_output { script.write(OUTPUT, result(task)) } else { script };
        script.exit(work.exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_read_back_from_its_variable() {
        let work = Work { run_ms: 1500, exit: 3, lines: 4, has_output: true };
        assert_eq!(Work::parse(&work.variable().1), Some(work));
        assert_eq!(work.written(2).lines().count(), 4);
    }
}
