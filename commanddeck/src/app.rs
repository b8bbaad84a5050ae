//! The loop around the fold: keyboard, clock and core in, effects out, the terminal always given back.

use std::io;
use std::time::Duration;

use crossterm::event::{Event, EventStream, KeyEventKind};
use futures_util::StreamExt as _;
use swarm_client::{Client, ClientError, JobFilter};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::model::{Model, Tab};
use crate::update::{Effect, Msg, update};
use crate::view::{Theme, view};

/// Answers that may wait to be taken in; there is one question per screen and one per cancel.
const ANSWERS_MAX: usize = 32;
/// Jobs shown.
const JOBS: u32 = 200;
const TICK: Duration = Duration::from_millis(500);

/// Gives the terminal back on every way out; a panic's way is taken by the hook that `try_init` sets.
struct Restore;

impl Drop for Restore {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// Shows the screen until the user or a signal ends it.
pub(crate) async fn run(client: Client, mono: bool) -> io::Result<()> {
    // Before the terminal is touched, so that no signal finds it changed and unguarded.
    let mut signals = Signals::new()?;
    let _restore = Restore;
    let mut terminal = ratatui::try_init()?;
    let mut keys = EventStream::new();
    let (send, mut answers) = mpsc::channel(ANSWERS_MAX);
    let mut clock = tokio::time::interval(TICK);
    let mut model = Model::new(client.url(), chrono::Utc::now());
    loop {
        terminal.draw(|frame| view(&model, Theme { mono }, frame))?;
        let msg = tokio::select! {
            key = keys.next() => match key {
                Some(Ok(Event::Key(key))) if key.kind == KeyEventKind::Press => Msg::Key(key),
                // A new size only needs the drawing that follows.
                Some(Ok(_)) => continue,
                Some(Err(error)) => return Err(error),
                None => break,
            },
            answer = answers.recv() => match answer {
                Some(answer) => answer,
                None => break,
            },
            _ = clock.tick() => Msg::Tick(chrono::Utc::now()),
            () = signals.any() => break,
        };
        for effect in update(&mut model, msg) {
            if effect == Effect::Quit {
                return Ok(());
            }
            let (client, send) = (client.clone(), send.clone());
            tokio::spawn(async move {
                if let Some(answer) = perform(&client, effect).await {
                    // Nobody listens any more once the screen is left.
                    let _ = send.send(answer).await;
                }
            });
        }
    }
    Ok(())
}

/// Asks the core; the answer is the next event.
async fn perform(client: &Client, effect: Effect) -> Option<Msg> {
    Some(match effect {
        Effect::Fetch(Tab::Jobs) => {
            let filter = JobFilter { limit: Some(JOBS), ..JobFilter::default() };
            Msg::Jobs(client.jobs(&filter).await.map(|page| page.items).map_err(words))
        }
        Effect::Fetch(Tab::Workers) => Msg::Workers(client.workers().await.map(|page| page.items).map_err(words)),
        Effect::Fetch(Tab::Modules) => Msg::Modules(client.modules().await.map(|page| page.items).map_err(words)),
        Effect::Cancel(job) => {
            Msg::Cancelled(job, client.cancel(job).await.map(|detail| detail.job.state).map_err(words))
        }
        Effect::Quit => return None,
    })
}

/// The error and the way out in one line.
#[expect(clippy::needless_pass_by_value, reason = "it is mapped over errors")]
fn words(error: ClientError) -> String {
    error.hint().map_or_else(|| error.to_string(), |hint| format!("{error}; {hint}"))
}

/// The signals that end a program.
struct Signals {
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn any(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
