//! What is seen. It only reads the model, and everything from the core goes through the sanitiser.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table, TableState};
use swarm_protocol::Timestamp;
use swarm_protocol::api::{JobView, ModuleView, WorkerView};
use swarm_protocol::state::JobState;
use swarm_protocol::text::{age, sanitise};

use crate::model::{List, Model, Tab};

const HELP: &str = " 1 2 3     Jobs, Workers, Modules
 Tab       the next screen
 j k ↓ ↑   move; g G to the ends
 x         cancel the job (asks first)
 ?         this help
 q         quit

 Everything else is read-only here; see
 `swarm consumer --help` for more.

 any key goes back";

/// Colours, or none.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Theme {
    pub(crate) mono: bool,
}

impl Theme {
    fn color(self, color: Color) -> Style {
        if self.mono { Style::new() } else { Style::new().fg(color) }
    }

    /// The state is always written as a word too.
    fn state(self, state: &str) -> Style {
        match state {
            "running" | "ready" => self.color(Color::Green),
            "failed" | "revoked" => self.color(Color::Red).add_modifier(Modifier::BOLD),
            "suspect" | "draining" | "starting" | "stopping" | "delayed" => self.color(Color::Yellow),
            "offline" | "stopped" | "cancelled" => self.color(Color::DarkGray),
            _ => Style::new(),
        }
    }
}

/// Draws the whole screen.
pub(crate) fn view(model: &Model, theme: Theme, frame: &mut Frame<'_>) {
    let [head, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Min(3), Constraint::Length(1)]).areas(frame.area());
    header(model, theme, frame, head);
    match model.tab {
        Tab::Jobs => jobs(model, theme, frame, body),
        Tab::Workers => workers(model, theme, frame, body),
        Tab::Modules => modules(model, theme, frame, body),
    }
    footer(model, theme, frame, foot);
    if model.help {
        help(frame);
    }
}

fn header(model: &Model, theme: Theme, frame: &mut Frame<'_>, area: Rect) {
    let mut left = vec![Span::styled(" swarm ", Style::new().add_modifier(Modifier::BOLD))];
    for (at, tab) in Tab::ALL.into_iter().enumerate() {
        let style = if tab == model.tab { Style::new().add_modifier(Modifier::REVERSED) } else { Style::new() };
        left.push(Span::styled(format!(" {} {} ", at + 1, tab.title()), style));
    }
    let width_left = left.iter().map(Span::width).sum::<usize>();
    frame.render_widget(Line::from(left), area);
    let (badge, style) = badge(model, theme);
    let clock = format!("  {} ", model.now.format("%H:%M:%SZ"));
    let mut right = vec![Span::styled(badge, style), Span::raw(clock)];
    let free = usize::from(area.width).saturating_sub(width_left + right.iter().map(Span::width).sum::<usize>());
    let url = Span::raw(format!("  {}  ", sanitise(model.url.trim_end_matches('/'), false)));
    // How fresh the news is matters more than where it comes from.
    if url.width() <= free {
        right.insert(0, url);
    }
    let right = Line::from(right);
    let width = u16::try_from(right.width()).unwrap_or(u16::MAX).min(area.width);
    let right_area = Rect { x: area.right().saturating_sub(width), width, ..area };
    frame.render_widget(right.alignment(Alignment::Right), right_area);
}

/// How far what is shown can be trusted.
fn badge(model: &Model, theme: Theme) -> (String, Style) {
    fn of<T>(list: &List<T>, now: Timestamp) -> (bool, Option<i64>, bool) {
        (list.fresh_at.is_some(), list.stale_s(now), list.error.is_some())
    }
    let (known, stale, failing) = match model.tab {
        Tab::Jobs => of(&model.jobs, model.now),
        Tab::Workers => of(&model.workers, model.now),
        Tab::Modules => of(&model.modules, model.now),
    };
    let alarm = theme.color(Color::Yellow).add_modifier(Modifier::REVERSED);
    match (known, stale, failing) {
        (_, Some(s), _) => (format!("! stale {s}s"), alarm),
        (false, None, true) => ("! no data".to_owned(), alarm),
        (false, None, false) => ("loading".to_owned(), Style::new()),
        (true, None, _) => ("live".to_owned(), theme.color(Color::Green)),
    }
}

fn footer(model: &Model, theme: Theme, frame: &mut Frame<'_>, area: Rect) {
    let error = match model.tab {
        Tab::Jobs => &model.jobs.error,
        Tab::Workers => &model.workers.error,
        Tab::Modules => &model.modules.error,
    };
    let (text, style) = if let Some(job) = model.confirm {
        (format!(" cancel job {job}? y/N"), theme.color(Color::Yellow).add_modifier(Modifier::BOLD))
    } else if let Some(note) = &model.note {
        (format!(" {}", sanitise(note, false)), Style::new().add_modifier(Modifier::BOLD))
    } else if let Some(error) = error {
        (format!(" ! {}", sanitise(error, false)), theme.color(Color::Red))
    } else {
        let cancel = if model.tab == Tab::Jobs { "x cancel  " } else { "" };
        (format!(" j/k move  {cancel}Tab next  ? help  q quit"), theme.color(Color::DarkGray))
    };
    frame.render_widget(Paragraph::new(text).style(style), area);
}

fn help(frame: &mut Frame<'_>) {
    let area = frame.area().centered(Constraint::Length(44), Constraint::Length(13));
    frame.render_widget(Clear, area);
    frame.render_widget(Paragraph::new(HELP).block(Block::bordered().title(" Keys ")), area);
}

/// A column: its head and how wide it is.
type Columns<'a> = &'a [(&'a str, Constraint)];

fn list<T>(
    frame: &mut Frame<'_>,
    area: Rect,
    list: &List<T>,
    title: &str,
    columns: Columns<'_>,
    row: impl Fn(&T) -> (Vec<String>, Style),
) {
    let head = Row::new(columns.iter().map(|(name, _)| *name)).style(Style::new().add_modifier(Modifier::BOLD));
    let rows = list.items.iter().map(|item| {
        let (cells, style) = row(item);
        Row::new(cells.into_iter().enumerate().map(|(at, cell)| {
            // The second column is the state everywhere.
            let style = if at == 1 { style } else { Style::new() };
            Cell::new(sanitise(&cell, false)).style(style)
        }))
    });
    let block = Block::bordered().title(format!(" {title} {} ", list.items.len()));
    if list.items.is_empty() {
        let text = if list.fresh_at.is_some() { "none yet" } else { "waiting for the core" };
        frame.render_widget(Paragraph::new(text).block(block), area);
        return;
    }
    let table = Table::new(rows, columns.iter().map(|(_, width)| *width))
        .header(head)
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .highlight_symbol(">")
        .block(block);
    let mut state = TableState::new().with_selected(Some(list.selected));
    frame.render_stateful_widget(table, area, &mut state);
}

fn jobs(model: &Model, theme: Theme, frame: &mut Frame<'_>, area: Rect) {
    use Constraint::{Fill, Length};
    let columns = [
        ("JOB", Length(8)),
        ("STATE", Length(11)),
        ("NAME", Fill(2)),
        ("ENDED", Length(11)),
        ("RUN", Length(5)),
        ("FAIL", Length(5)),
        ("IMAGE", Fill(2)),
        ("OWNER", Fill(1)),
        ("AGE", Length(4)),
    ];
    list(frame, area, &model.jobs, "Jobs", &columns, |job: &JobView| {
        let tasks = job.tasks;
        let ended = tasks.succeeded + tasks.failed + tasks.cancelled;
        let cancelling = job.cancel_requested && !job.state.is_final();
        let state = if cancelling { "cancelling".to_owned() } else { job.state.to_string() };
        let style = theme.state(if cancelling { JobState::Cancelled.as_str() } else { job.state.as_str() });
        let cells = vec![
            job.id.to_string(),
            state,
            job.name.clone().unwrap_or_else(|| "-".to_owned()),
            format!("{ended}/{}", tasks.total),
            tasks.live.to_string(),
            tasks.failed.to_string(),
            job.image.clone(),
            job.owner.clone(),
            age(job.submitted_at, model.now),
        ];
        (cells, style)
    });
}

fn workers(model: &Model, theme: Theme, frame: &mut Frame<'_>, area: Rect) {
    use Constraint::{Fill, Length};
    let columns = [
        ("WORKER", Fill(2)),
        ("STATE", Length(9)),
        ("TASKS", Length(7)),
        ("CORES", Length(9)),
        ("MEMORY", Length(11)),
        ("PLATFORM", Length(12)),
        ("HEARD", Length(6)),
    ];
    list(frame, area, &model.workers, "Workers", &columns, |worker: &WorkerView| {
        let facts = &worker.facts;
        let cells = vec![
            worker.name.clone(),
            worker.state.clone(),
            format!("{}/{}", worker.live, facts.slots),
            format!("{}/{}", cores(worker.used_cpu_millis), cores(facts.cpu_millis)),
            format!("{}/{}", gib(worker.used_memory_bytes), gib(facts.memory_bytes)),
            format!("{}/{}", facts.os, facts.arch),
            worker.heard_at.map_or_else(|| "never".to_owned(), |at| age(at, model.now)),
        ];
        (cells, theme.state(&worker.state))
    });
}

fn modules(model: &Model, theme: Theme, frame: &mut Frame<'_>, area: Rect) {
    use Constraint::{Fill, Length};
    let columns = [
        ("MODULE", Length(12)),
        ("STATE", Length(9)),
        ("QUEUE", Length(11)),
        ("HANDLED", Length(10)),
        ("RATE/S", Length(8)),
        ("ERRORS", Length(7)),
        ("DETAIL", Fill(1)),
    ];
    list(frame, area, &model.modules, "Modules", &columns, |module: &ModuleView| {
        let cells = vec![
            module.name.clone(),
            module.state.clone(),
            format!("{}/{}", module.queue_depth, module.queue_capacity),
            module.handled.to_string(),
            format!("{:.1}", module.rate_per_s),
            module.errors.to_string(),
            module.detail.as_ref().or(module.last_error.as_ref()).map_or_else(|| "-".to_owned(), Clone::clone),
        ];
        (cells, theme.state(&module.state))
    });
}

fn cores(millis: u32) -> String {
    format!("{:.1}", f64::from(millis) / 1000.0)
}

fn gib(bytes: u64) -> String {
    format!("{:.1}G", bytes as f64 / f64::from(1 << 30))
}

#[cfg(test)]
pub(crate) mod samples {
    //! A small swarm for tests.

    use swarm_protocol::link::WorkerFacts;
    use swarm_protocol::state::TaskCounts;
    use swarm_protocol::{Digest, JobId, WorkerId};

    use super::*;

    pub(crate) fn now() -> Timestamp {
        "2030-01-31T14:02:11Z".parse().unwrap()
    }

    pub(crate) fn jobs() -> Vec<JobView> {
        let job = |id, state, name: Option<&str>, tasks, minutes| JobView {
            id: JobId(id),
            name: name.map(str::to_owned),
            state,
            tasks,
            owner: "ana".into(),
            group: "lab".into(),
            image: "tool:1".into(),
            image_digest: Digest::of(b""),
            priority: 0,
            submitted_at: now() - chrono::Duration::minutes(minutes),
            start_at: None,
            ended_at: None,
            cancel_requested: false,
            launched_by: None,
        };
        let running = TaskCounts { total: 100, waiting: 60, live: 8, succeeded: 31, failed: 1, cancelled: 0 };
        let failed = TaskCounts { total: 1, failed: 1, ..TaskCounts::default() };
        let waiting = TaskCounts { total: 1, waiting: 1, ..TaskCounts::default() };
        vec![
            job(43, JobState::Running, Some("sweep"), running, 3),
            job(42, JobState::Failed, Some("a\x1b]0;evil\x07"), failed, 200),
            job(41, JobState::Delayed, None, waiting, 9000),
        ]
    }

    pub(crate) fn model() -> Model {
        let mut model = Model::new("http://127.0.0.1:7077/", now());
        model.jobs.take(Ok(jobs()), now(), |job| job.id);
        let facts = WorkerFacts {
            version: "0.1.0".into(),
            cpu_millis: 8000,
            memory_bytes: 16 << 30,
            slots: 8,
            os: "linux".into(),
            arch: "amd64".into(),
            engine: "docker 27".into(),
        };
        let worker = |id, name: &str, state: &str, live| WorkerView {
            id: WorkerId(id),
            name: name.into(),
            state: state.into(),
            facts: facts.clone(),
            labels: std::collections::BTreeMap::new(),
            live,
            used_cpu_millis: live * 500,
            used_memory_bytes: u64::from(live) << 30,
            free_slots: Some(8 - live),
            load_millis: Some(1250),
            heard_at: Some(now() - chrono::Duration::seconds(i64::from(live))),
        };
        let workers = vec![worker(1, "w-01", "ready", 6), worker(2, "w-02", "draining", 1)];
        model.workers.take(Ok(workers), now(), |worker| worker.id);
        let module = |name: &str, depth, error: Option<&str>| ModuleView {
            name: name.into(),
            state: if error.is_some() { "failed".into() } else { "running".into() },
            detail: None,
            queue_depth: depth,
            queue_capacity: 1024,
            handled: 123_456,
            rate_per_s: 3.25,
            errors: u64::from(error.is_some()),
            last_error: error.map(str::to_owned),
            restarts: 0,
        };
        let modules = vec![module("receiver", 0, None), module("dispatcher", 128, Some("link of w-03 broke"))];
        model.modules.take(Ok(modules), now(), |module| module.name.clone());
        model
    }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn draw(model: &Model, mono: bool, (width, height): (u16, u16)) -> Terminal<TestBackend> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| view(model, Theme { mono }, frame)).unwrap();
        terminal
    }

    fn snapshot(name: &str, model: &Model) {
        for size in [(80, 24), (120, 40)] {
            let terminal = draw(model, false, size);
            insta::assert_snapshot!(format!("{name}-{}x{}", size.0, size.1), terminal.backend());
        }
    }

    #[test]
    fn every_screen_at_two_sizes() {
        let mut model = samples::model();
        for tab in Tab::ALL {
            model.tab = tab;
            snapshot(tab.title(), &model);
        }
    }

    #[test]
    fn help_question_trouble_and_emptiness() {
        let mut model = samples::model();
        model.help = true;
        snapshot("help", &model);
        model.help = false;
        model.confirm = Some(swarm_protocol::JobId(43));
        snapshot("confirm", &model);
        model.confirm = None;
        model.now = samples::now() + chrono::Duration::seconds(41);
        model.jobs.error = Some("no answer from http://127.0.0.1:7077/".into());
        snapshot("stale", &model);
        snapshot("empty", &Model::new("http://127.0.0.1:7077/", samples::now()));
    }

    #[test]
    fn without_colours_the_same_is_said_and_none_is_used() {
        let model = samples::model();
        let (mono, colour) = (draw(&model, true, (80, 24)), draw(&model, false, (80, 24)));
        assert_eq!(mono.backend().to_string(), colour.backend().to_string());
        let plain = |cell: &ratatui::buffer::Cell| cell.fg == Color::Reset && cell.bg == Color::Reset;
        assert!(mono.backend().buffer().content().iter().all(plain));
        assert!(!colour.backend().buffer().content().iter().all(plain));
    }

    #[test]
    fn the_smallest_terminal_is_no_panic() {
        for size in [(1, 1), (10, 3), (36, 5)] {
            let mut model = samples::model();
            model.help = true;
            draw(&model, false, size);
        }
    }
}
