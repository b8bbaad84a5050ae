//! The one place where the model changes.

use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use swarm_protocol::api::{JobView, ModuleView, WorkerView};
use swarm_protocol::state::JobState;
use swarm_protocol::{JobId, Timestamp};

use crate::model::{Model, Tab};

/// What can happen.
#[derive(Debug)]
pub(crate) enum Msg {
    /// A key was pressed.
    Key(KeyEvent),
    /// Time went by.
    Tick(Timestamp),
    /// The core answered, or did not.
    Jobs(Result<Vec<JobView>, String>),
    /// As `Jobs`.
    Workers(Result<Vec<WorkerView>, String>),
    /// As `Jobs`.
    Modules(Result<Vec<ModuleView>, String>),
    /// The answer to a cancel: the job's state after it.
    Cancelled(JobId, Result<JobState, String>),
}

/// What is to be done about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Ask the core for what a screen shows.
    Fetch(Tab),
    /// Ask for the end of a job.
    Cancel(JobId),
    /// Leave.
    Quit,
}

/// Takes one event in and says what is to be done.
pub(crate) fn update(model: &mut Model, msg: Msg) -> Vec<Effect> {
    let now = model.now;
    match msg {
        Msg::Key(key) => return on_key(model, key),
        Msg::Tick(at) => {
            model.now = at;
            return fetch_if_due(model);
        }
        Msg::Jobs(answer) => model.jobs.take(answer, now, |job| job.id),
        Msg::Workers(answer) => model.workers.take(answer, now, |worker| worker.id),
        Msg::Modules(answer) => model.modules.take(answer, now, |module| module.name.clone()),
        Msg::Cancelled(job, answer) => {
            model.note = Some(match answer {
                Ok(JobState::Cancelled) => format!("job {job} is cancelled"),
                Ok(state) if state.is_final() => format!("job {job} had ended already: {state}"),
                Ok(_) => format!("job {job} is being cancelled"),
                Err(error) => format!("job {job} was not cancelled: {error}"),
            });
            // The next look shows the change.
            model.jobs.asked_at = None;
            return fetch_if_due(model);
        }
    }
    Vec::new()
}

/// Only the screen that is seen is kept fresh.
fn fetch_if_due(model: &mut Model) -> Vec<Effect> {
    let (tab, now) = (model.tab, model.now);
    let due = match tab {
        Tab::Jobs => model.jobs.ask(now),
        Tab::Workers => model.workers.ask(now),
        Tab::Modules => model.modules.ask(now),
    };
    if due { vec![Effect::Fetch(tab)] } else { Vec::new() }
}

fn on_key(model: &mut Model, key: KeyEvent) -> Vec<Effect> {
    if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) {
        return vec![Effect::Quit];
    }
    if let Some(job) = model.confirm.take() {
        // Anything but a plain yes is a no.
        return if key.code == KeyCode::Char('y') { vec![Effect::Cancel(job)] } else { Vec::new() };
    }
    if std::mem::take(&mut model.help) {
        return if key.code == KeyCode::Char('q') { vec![Effect::Quit] } else { Vec::new() };
    }
    model.note = None;
    match key.code {
        KeyCode::Char('q') => return vec![Effect::Quit],
        KeyCode::Char('?') => model.help = true,
        KeyCode::Char(digit @ '1'..='3') => return show(model, Tab::ALL[digit as usize - '1' as usize]),
        KeyCode::Tab => return show(model, Tab::ALL[(model.tab as usize + 1) % 3]),
        KeyCode::BackTab => return show(model, Tab::ALL[(model.tab as usize + 2) % 3]),
        KeyCode::Down | KeyCode::Char('j') => step(model, 1),
        KeyCode::Up | KeyCode::Char('k') => step(model, -1),
        KeyCode::PageDown => step(model, 10),
        KeyCode::PageUp => step(model, -10),
        KeyCode::Home | KeyCode::Char('g') => step(model, isize::MIN),
        KeyCode::End | KeyCode::Char('G') => step(model, isize::MAX),
        KeyCode::Char('x') if model.tab == Tab::Jobs => ask_to_cancel(model),
        _ => {}
    }
    Vec::new()
}

fn show(model: &mut Model, tab: Tab) -> Vec<Effect> {
    model.tab = tab;
    fetch_if_due(model)
}

fn step(model: &mut Model, by: isize) {
    match model.tab {
        Tab::Jobs => model.jobs.step(by),
        Tab::Workers => model.workers.step(by),
        Tab::Modules => model.modules.step(by),
    }
}

fn ask_to_cancel(model: &mut Model) {
    match model.jobs.current() {
        Some(job) if job.state.is_final() => model.note = Some(format!("job {} has ended: {}", job.id, job.state)),
        Some(job) => model.confirm = Some(job.id),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::samples;

    fn press(model: &mut Model, keys: &str) -> Vec<Effect> {
        keys.chars().flat_map(|key| update(model, Msg::Key(KeyEvent::from(KeyCode::Char(key))))).collect()
    }

    #[test]
    fn a_cancel_needs_a_plain_yes() {
        let mut model = samples::model();
        assert_eq!(press(&mut model, "x"), []);
        assert_eq!(model.confirm, Some(JobId(43)));
        assert_eq!(press(&mut model, "n"), []);
        assert_eq!(press(&mut model, "xx"), []);
        assert_eq!(press(&mut model, "xY"), []);
        assert_eq!(press(&mut model, "xq"), [], "a no by q does not quit");
        assert_eq!(press(&mut model, "xy"), [Effect::Cancel(JobId(43))]);
        assert_eq!(model.confirm, None);
    }

    #[test]
    fn an_ended_job_is_not_cancelled() {
        let mut model = samples::model();
        assert_eq!(press(&mut model, "jxy"), []);
        assert!(model.note.is_none() && model.confirm.is_none());
        press(&mut model, "x");
        assert_eq!(model.note.as_deref(), Some("job 42 has ended: failed"));
    }

    #[test]
    fn one_question_at_a_time_and_only_for_what_is_seen() {
        let mut model = samples::model();
        let start = model.now;
        let tick = |model: &mut Model, s| update(model, Msg::Tick(start + chrono::Duration::seconds(s)));
        assert_eq!(tick(&mut model, 10), [Effect::Fetch(Tab::Jobs)]);
        assert_eq!(tick(&mut model, 20), [], "the first is still on its way");
        update(&mut model, Msg::Jobs(Err("no answer".into())));
        assert_eq!(tick(&mut model, 21), [Effect::Fetch(Tab::Jobs)]);
        assert_eq!(press(&mut model, "2"), [Effect::Fetch(Tab::Workers)]);
        assert_eq!(model.jobs.stale_s(model.now), Some(21));
    }

    #[test]
    fn the_selection_stays_on_its_job() {
        let mut model = samples::model();
        press(&mut model, "j");
        let mut jobs = samples::jobs();
        let mut newest = jobs[0].clone();
        newest.id = JobId(44);
        jobs.insert(0, newest);
        update(&mut model, Msg::Jobs(Ok(jobs)));
        assert_eq!(model.jobs.current().unwrap().id, JobId(42));
        update(&mut model, Msg::Jobs(Ok(Vec::new())));
        assert!(model.jobs.current().is_none());
        assert_eq!(press(&mut model, "jGkgx"), []);
    }
}
