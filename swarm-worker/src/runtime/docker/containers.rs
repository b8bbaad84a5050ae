//! Containers: their files, their start, their end.

use std::time::Duration;

use bollard::errors::Error;
use bollard::models::{
    ContainerInspectResponse, ContainerStateStatusEnum, ContainerSummary, ContainerSummaryStateEnum,
};
use bollard::query_parameters::{
    DownloadFromContainerOptions, EventsOptions, KillContainerOptions, ListContainersOptions, RemoveContainerOptions,
    UploadToContainerOptions, WaitContainerOptions,
};
use chrono::{DateTime, Utc};
use futures_util::TryFutureExt;
use futures_util::stream::{self, StreamExt};

use super::errors::{map, map_start, timed_out};
use super::moving::Pulse;
use super::points::around;
use super::{DockerRuntime, label_filter};
use crate::runtime::spec::invalid;
use crate::runtime::{
    ByteStream, ContainerId, ContainerPhase, ContainerState, ExitInfo, Labels, OurContainer, RuntimeError,
};

/// Within which time an engine notes as an event, too, that a container has ended.
const END_NOTED: Duration = Duration::from_secs(5);

impl DockerRuntime {
    pub(super) async fn upload(&self, id: &str, path: &str, tar: ByteStream) -> Result<(), RuntimeError> {
        let options = UploadToContainerOptions { path: path.to_owned(), ..Default::default() };
        let (pulse, stall) = (Pulse::new(), self.deadlines.stall);
        let body = bollard::body_try_stream(pulse.of(tar));
        let work = self.patient.upload_to_container(id, Some(options), body);
        let work = work.map_err(|error| map("put archive", stall, error));
        pulse.watch("put archive", (stall, stall), work).await
    }

    pub(super) async fn download(&self, id: &str, path: &str) -> Result<ByteStream, RuntimeError> {
        let options = DownloadFromContainerOptions { path: path.to_owned() };
        let mut body = self.docker.download_from_container(id, Some(options)).boxed();
        // The first bytes tell whether the path exists; only then is there a stream to hand out.
        let first = self.call("get archive", async { body.next().await.transpose() }).await?;
        let idle_max = self.deadlines.call;
        let rest = stream::try_unfold(body, move |mut body| async move {
            let next = tokio::time::timeout(idle_max, body.next()).await;
            match next.map_err(|_| std::io::Error::other(timed_out("get archive", idle_max)))? {
                None => Ok(None),
                Some(Ok(bytes)) => Ok(Some((bytes, body))),
                Some(Err(error)) => Err(std::io::Error::other(map("get archive", idle_max, error))),
            }
        });
        Ok(stream::iter(first.map(Ok)).chain(rest).boxed())
    }

    pub(super) async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        let deadline = self.deadlines.call;
        match tokio::time::timeout(deadline, around("start", self.docker.start_container(id, None))).await {
            Ok(answer) => answer.map_err(|error| map_start(deadline, id, error)),
            Err(_) => Err(timed_out("start", deadline)),
        }
    }

    pub(super) async fn wait_container(&self, id: &str) -> Result<ExitInfo, RuntimeError> {
        let said = loop {
            // An engine that vanished behind a proxy or a network never answers: it is asked again now and then.
            match tokio::time::timeout(self.deadlines.call, around("wait", self.wait_once(id))).await {
                Ok(said) => break said?,
                Err(_) if self.inspect_container(id).await?.0.phase == ContainerPhase::Running => {}
                Err(_) => break None,
            }
        };
        let (container, engine_error) = self.inspect_container(id).await?;
        match container.phase {
            ContainerPhase::Exited => Ok(ExitInfo {
                interrupted: match container.finished_at_us {
                    Some(at_us) => self.was_signalled(id, at_us).await?,
                    None => false,
                },
                exit_code: container.exit_code.unwrap_or(-1),
                oom_killed: container.oom_killed,
                started_at_us: container.started_at_us,
                finished_at_us: container.finished_at_us,
                error: said.or(engine_error),
            }),
            ContainerPhase::Created => {
                Err(RuntimeError::Conflict { call: "wait", message: "the container was never started".to_owned() })
            }
            ContainerPhase::Running => {
                let message = "the engine says that the container ended, and shows it running".to_owned();
                Err(RuntimeError::Conflict { call: "wait", message })
            }
        }
    }

    /// Returns when the engine says that the container has ended, with its words if it has any.
    async fn wait_once(&self, id: &str) -> Result<Option<String>, RuntimeError> {
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        match self.docker.wait_container(id, Some(options)).boxed().next().await {
            Some(Ok(_)) => Ok(None),
            // How bollard reports every exit status but 0.
            Some(Err(Error::DockerContainerWaitError { error, .. })) => Ok((!error.is_empty()).then_some(error)),
            Some(Err(error)) => Err(map("wait", self.deadlines.call, error)),
            None => Err(engine_gone()),
        }
    }

    /// Whether the engine remembers a signal that it sent to the container before it noted the end. It keeps the last 256
    /// events, of its own life alone; a stop of the engine itself is among them while it still answers. Where it has
    /// forgotten the end too, it is listened to until [`END_NOTED`] after it. All instants are the engine's, whose clock
    /// may differ from this machine's.
    async fn was_signalled(&self, id: &str, finished_at_us: u64) -> Result<bool, RuntimeError> {
        let terms = [("type", vec!["container"]), ("container", vec![id]), ("event", vec!["kill", "die"])];
        let owned = |values: Vec<&str>| values.into_iter().map(str::to_owned).collect();
        let until_us = finished_at_us.saturating_add(END_NOTED.as_micros() as u64);
        let options = EventsOptions {
            since: Some("0".to_owned()),
            until: Some(format!("{}.{:06}", until_us / 1_000_000, until_us % 1_000_000)),
            filters: Some(terms.map(|(key, values)| (key.to_owned(), owned(values))).into()),
        };
        let mut events = self.docker.events(Some(options)).boxed();
        let first = self.call("events", async { events.next().await.transpose() }).await?;
        Ok(first.is_some_and(|event| event.action.as_deref() == Some("kill")))
    }

    pub(super) async fn kill_container(&self, id: &str, signal: &str) -> Result<(), RuntimeError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-');
        if signal.is_empty() || !signal.bytes().all(plain) {
            return invalid("signal", format!("`{}` is not a signal such as SIGTERM", signal.escape_debug()));
        }
        let options = KillContainerOptions { signal: signal.to_owned() };
        self.call("kill", self.docker.kill_container(id, Some(options))).await
    }

    pub(super) async fn remove_container(&self, id: &str, force: bool) -> Result<(), RuntimeError> {
        // `v`: volumes the image declares are anonymous, and nobody else would remove them.
        let options = RemoveContainerOptions { v: true, force, link: false };
        self.call("remove", self.docker.remove_container(id, Some(options))).await
    }

    /// The container, and what the engine noted as its error.
    pub(super) async fn inspect_container(&self, id: &str) -> Result<(ContainerState, Option<String>), RuntimeError> {
        let answer = self.call("inspect", self.docker.inspect_container(id, None)).await?;
        Ok(from_engine(answer))
    }

    /// By the list alone: to inspect a container the engine needs its lock, which it holds while it copies files.
    pub(super) async fn list_containers(&self, labels: &Labels) -> Result<Vec<OurContainer>, RuntimeError> {
        let filters = Some(label_filter(labels)?);
        let options = ListContainersOptions { all: true, filters, ..Default::default() };
        let listed = self.call("list containers", self.docker.list_containers(Some(options))).await?;
        Ok(listed.into_iter().map(from_list).collect())
    }
}

fn engine_gone() -> RuntimeError {
    RuntimeError::Engine { call: "wait", message: "the connection ended before the container did".to_owned() }
}

fn from_list(summary: ContainerSummary) -> OurContainer {
    let phase = match summary.state {
        Some(ContainerSummaryStateEnum::CREATED) => ContainerPhase::Created,
        Some(
            ContainerSummaryStateEnum::RUNNING
            | ContainerSummaryStateEnum::PAUSED
            | ContainerSummaryStateEnum::RESTARTING
            | ContainerSummaryStateEnum::STOPPING,
        ) => ContainerPhase::Running,
        _ => ContainerPhase::Exited,
    };
    let name = summary.names.unwrap_or_default().into_iter().next().unwrap_or_default();
    OurContainer {
        id: ContainerId(summary.id.unwrap_or_default()),
        name: name.trim_start_matches('/').to_owned(),
        labels: summary.labels.unwrap_or_default().into_iter().collect(),
        phase,
    }
}

fn from_engine(answer: ContainerInspectResponse) -> (ContainerState, Option<String>) {
    let state = answer.state.unwrap_or_default();
    let phase = match state.status {
        Some(ContainerStateStatusEnum::CREATED) => ContainerPhase::Created,
        Some(
            ContainerStateStatusEnum::RUNNING
            | ContainerStateStatusEnum::PAUSED
            | ContainerStateStatusEnum::RESTARTING
            | ContainerStateStatusEnum::STOPPING,
        ) => ContainerPhase::Running,
        _ => ContainerPhase::Exited,
    };
    let exited = phase == ContainerPhase::Exited;
    let finished_at_us = state.finished_at.as_deref().filter(|_| exited).and_then(micros);
    // The engine notes the start later than the process begins: a very short one may seem to end before it.
    let started_at_us =
        state.started_at.as_deref().and_then(micros).map(|at| finished_at_us.map_or(at, |end| at.min(end)));
    let container = ContainerState {
        phase,
        started_at_us,
        finished_at_us,
        exit_code: state.exit_code.filter(|_| exited),
        oom_killed: state.oom_killed.unwrap_or(false),
        // The engine takes it over from the image.
        stop_signal: answer.config.and_then(|config| config.stop_signal).filter(|signal| !signal.is_empty()),
    };
    (container, state.error.filter(|error| !error.is_empty()))
}

/// Unix time in microseconds; the engine writes year 1 for "not yet".
fn micros(stamp: &str) -> Option<u64> {
    let at: DateTime<Utc> = stamp.parse().ok()?;
    u64::try_from(at.timestamp_micros()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn year_one_means_not_yet() {
        assert_eq!(micros("0001-01-01T00:00:00Z"), None);
        assert_eq!(micros("1970-01-01T00:00:01.000002999Z"), Some(1_000_002));
        assert_eq!(micros(""), None);
    }
}
