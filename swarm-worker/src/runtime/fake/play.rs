//! How a call comes to its answer, and a container to its end.

use swarm_protocol::logs::LogStream;

use super::events::Action;
use super::faults::{Call, CallRecord, Effect};
use super::script::{End, Script, Step};
use super::state::{FakeFile, State, conflict};
use super::{FakeRuntime, StartView};
use crate::runtime::{ContainerId, ContainerPhase, Network, RuntimeError};

impl FakeRuntime {
    /// Records the call and lets the planned fault happen. `Some` is the error to answer although the work is done.
    pub(super) async fn enter(&self, call: Call, subject: &str) -> Result<Option<RuntimeError>, RuntimeError> {
        let at_us = self.now_us();
        let effect = {
            let mut state = self.lock();
            let name = state.containers.get(&ContainerId(subject.to_owned())).map(|container| &container.spec.name);
            let subject = name.cloned().unwrap_or_else(|| subject.to_owned());
            state.history.push(CallRecord { call, subject, at_us });
            if state.down {
                return Err(engine_gone());
            }
            state.faults.next(call)
        };
        match effect {
            None => Ok(None),
            Some(Effect::Fail(error)) => Err(error),
            Some(Effect::DoneButFail(error)) => Ok(Some(error)),
            Some(Effect::Hang) => std::future::pending().await,
            Some(Effect::Delay(delay)) => {
                tokio::time::sleep(delay).await;
                Ok(None)
            }
            Some(Effect::FailLate(delay, error)) => {
                tokio::time::sleep(delay).await;
                Err(error)
            }
        }
    }

    pub(super) async fn perform<T>(
        &self,
        call: Call,
        subject: &str,
        work: impl FnOnce(&mut State) -> Result<T, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        let lost = self.enter(call, subject).await?;
        answer(lost, self.change(work))
    }

    /// Carries a script out.
    async fn play(self, id: ContainerId, script: Script) {
        for step in script.steps {
            let now_us = self.now_us();
            match step {
                Step::Sleep(duration) => tokio::time::sleep(duration).await,
                Step::Hold(gate) => gate.cancelled().await,
                Step::Out(bytes) => self.change(|state| state.write_log(&id, LogStream::Stdout, bytes, now_us)),
                Step::Err(bytes) => self.change(|state| state.write_log(&id, LogStream::Stderr, bytes, now_us)),
                Step::Use(reading) => self.change(|state| state.use_up(&id, reading)),
                Step::Write { path, bytes } => {
                    let file = FakeFile { bytes, mode: 0o644, uid: 0, gid: 0 };
                    self.change(|state| state.write_file(&id, &path, file));
                }
            }
        }
        let now_us = self.now_us();
        match script.end {
            End::Exit(code) => self.change(|state| state.end(&id, code, false, now_us)),
            End::OutOfMemory => self.change(|state| state.end(&id, 137, true, now_us)),
            End::Never => {}
        }
    }

    pub(super) fn begin(&self, state: &mut State, id: &ContainerId) -> Result<(), RuntimeError> {
        let files = state.all_files(id).into_iter().map(|(path, file)| (path, file.bytes)).collect();
        let spec = state.container("start", id)?.spec.clone();
        if let Network::Of(other) = &spec.network
            && !state.container("start", other).is_ok_and(|other| other.phase == ContainerPhase::Running)
        {
            return Err(RuntimeError::JoinRefused { message: format!("{other} does not run") });
        }
        let script = (state.program)(&StartView { spec: &spec, files });
        let now_us = self.now_us();
        let container = state.container("start", id)?;
        match container.phase {
            ContainerPhase::Running => return Ok(()),
            // The real engine would run it again; the worker never asks for that.
            ContainerPhase::Exited => return Err(conflict("start", "it has run already")),
            ContainerPhase::Created => {}
        }
        if let Some(message) = script.refusal {
            return Err(RuntimeError::StartRefused { message });
        }
        container.phase = ContainerPhase::Running;
        container.started_at_us = Some(now_us);
        container.heeds = script.heeds.clone();
        let play = self.clone().play(id.clone(), script);
        let player = match &state.home {
            Some(home) => home.spawn(play),
            None => tokio::spawn(play),
        };
        state.container("start", id)?.player = Some(player.abort_handle());
        state.note(id, Action::Start, now_us);
        Ok(())
    }

    /// Waits until `look` finds something; fails when the engine goes down.
    pub(super) async fn until<T>(
        &self,
        mut look: impl FnMut(&mut State) -> Result<Option<T>, RuntimeError>,
    ) -> Result<T, RuntimeError> {
        loop {
            let changed = self.0.changes.notified();
            {
                let mut state = self.lock();
                if state.down {
                    return Err(engine_gone());
                }
                if let Some(found) = look(&mut state)? {
                    return Ok(found);
                }
            }
            changed.await;
        }
    }
}

pub(super) fn answer<T>(lost: Option<RuntimeError>, done: Result<T, RuntimeError>) -> Result<T, RuntimeError> {
    match (lost, done) {
        (Some(error), Ok(_)) => Err(error),
        (_, done) => done,
    }
}

fn engine_gone() -> RuntimeError {
    RuntimeError::Engine { call: "any", message: "connection refused".to_owned() }
}
