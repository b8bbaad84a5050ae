//! Spool, engine and hub brought into agreement: at the start, when what an earlier start left is taken up again, and
//! by a sweep ever after. Only what carries this swarm's and this worker's labels is ever touched.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use futures_util::stream::{self, StreamExt as _};
use swarm_host::blocking;
use swarm_protocol::link::HeldPhase;
use swarm_protocol::{AttemptId, SwarmId, WorkerId};

use crate::attempt::{self, Stage};
use crate::chance::Backoff;
use crate::context::{Ctx, attempt_of, ours, sandbox_of};
use crate::images;
use crate::runtime::{
    ContainerId, ContainerPhase, ContainerRuntime, ContainerState, Labels, OurContainer, RuntimeError,
};
use crate::spool::{Found, StartMark};

/// Between two sweeps; a leftover lives twice as long at most.
const SWEEP: Duration = Duration::from_secs(25);

/// How long the engine may take to describe a container that is taken up. Leases run on meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// A container of an attempt.
type Held = (ContainerId, ContainerState);

/// Leftovers removed at a time: an engine takes its time over each.
const REMOVALS: usize = 8;

/// Takes up every spooled attempt. Waits for an engine that does not answer yet.
///
/// A spooled order without a start mark was never started: it waits for the core's confirmation and then runs. One with
/// a mark but without a started container may have run, so it is reported as lost and never started again here.
pub(crate) async fn take_up(ctx: &Arc<Ctx>) -> anyhow::Result<()> {
    let spool = ctx.spool.clone();
    let found = blocking::run(move || spool.scan()).await?;
    // Without a welcome there was never an order.
    if ctx.swarm.get().is_none() {
        return Ok(());
    }
    let mut backoff = Backoff::new(&ctx.chance);
    let containers = loop {
        match containers(ctx).await {
            Ok(containers) => break containers,
            Err(error) => {
                tracing::error!(%error, "the engine cannot be asked what an earlier start left, trying again");
            }
        }
        tokio::select! {
            biased;
            () = ctx.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(backoff.next_pause()) => {}
        }
    };
    for found in found {
        let container = containers.get(&found.order.attempt);
        resume(ctx, found, container);
    }
    images::take_up(ctx).await;
    Ok(())
}

/// Removes what an earlier start left and nobody takes up. The link does not wait for it.
pub(crate) async fn clear(ctx: &Ctx) {
    // Without a welcome there was never an order.
    if ctx.swarm.get().is_some()
        && let Some(Err(error)) = ctx.stop.run_until_cancelled(sweep_once(ctx)).await
    {
        tracing::warn!(%error, "leftovers cannot be removed yet");
    }
}

async fn containers(ctx: &Ctx) -> Result<BTreeMap<AttemptId, Held>, RuntimeError> {
    let all = ctx.runtime.list_ours(&ours(ctx.swarm(), ctx.identity.worker)).await?;
    let of_attempts = all.into_iter().filter_map(|container| Some((attempt_of(&container.labels)?, container)));
    // A replayed name would be someone imitating our labels; ours are named after their attempt.
    let named = of_attempts.filter(|(attempt, container)| container.name == ctx.container_name(*attempt));
    let described = join_all(named.map(async |(attempt, container)| (attempt, describe(ctx, container).await))).await;
    Ok(described.into_iter().filter_map(|(attempt, held)| Some((attempt, held?))).collect())
}

/// A listed container, unless it is gone. One that the engine says no more about is there all the same.
async fn describe(ctx: &Ctx, listed: OurContainer) -> Option<Held> {
    let described = tokio::time::timeout(PATIENCE, ctx.runtime.inspect(&listed.id)).await;
    let state = match described {
        Ok(Ok(state)) => state,
        Ok(Err(error)) if error.is_not_found() => return None,
        _ => {
            tracing::warn!(name = listed.name, "the engine does not describe a container that it lists");
            ContainerState::of(listed.phase)
        }
    };
    Some((listed.id, state))
}

fn resume(ctx: &Arc<Ctx>, found: Found, container: Option<&Held>) {
    let attempt = found.order.attempt;
    let (stage, phase) = stage_of(&found, container, || ctx.machine.wall_us());
    let runs = container.is_some_and(|(_, state)| state.phase == ContainerPhase::Running);
    let name = ctx.container_name(attempt);
    // A running container keeps the lease it had: the watchdog counts the same.
    let granted_ns = runs.then(|| {
        let watched = ctx.watch.watched(&name).filter(|watched| watched.machine_boot == ctx.machine_boot);
        ctx.watch.renewed_ns(&ctx.machine_boot).max(watched.map_or(0, |watched| watched.granted_ns))
    });
    if let Some(control) = ctx.hub.hold(attempt, phase, found.order.lease_ms, granted_ns) {
        tracing::info!(%attempt, ?phase, "taking up an attempt of an earlier start");
        attempt::spawn(ctx, found.order, control, stage);
    }
}

/// How a spooled attempt goes on. `now_us` is asked for Unix time in microseconds where the engine does not tell it.
fn stage_of(found: &Found, container: Option<&Held>, now_us: impl FnOnce() -> u64) -> (Stage, HeldPhase) {
    if let Some(report) = &found.report {
        return (Stage::Reported(Box::new(report.clone())), HeldPhase::Ended);
    }
    let started = container.filter(|(_, state)| state.phase != ContainerPhase::Created);
    match (started, &found.start) {
        (Some((id, state)), mark) => {
            // The mark is written before the start; if the disk lost it, only the clock of this boot is unknown.
            let mark = mark.clone().unwrap_or(StartMark { machine_boot: String::new(), boot_ns: 0 });
            // An engine that did not describe it keeps the true one to itself.
            let started_at_us = state.started_at_us.unwrap_or_else(now_us);
            (Stage::Adopted(id.clone(), state.clone(), mark), HeldPhase::Running { started_at_us })
        }
        (None, Some(_)) => (Stage::Vanished, HeldPhase::Pending),
        (None, None) => (Stage::Found, HeldPhase::Pending),
    }
}

/// Sweeps for ever.
pub(crate) async fn sweep(ctx: Arc<Ctx>) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            biased;
            () = ctx.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(SWEEP) => {}
        }
        images::tidy(&ctx).await;
        clear(&ctx).await;
    }
}

/// Removes containers, volumes and watchdog notes of attempts that are not held, and sandboxes of earlier starts. What is
/// listed first and asked about afterwards cannot be of an attempt that was just taken in: nothing is made before the hub
/// holds it, nor any sandbox before the pool knows it.
async fn sweep_once(ctx: &Ctx) -> anyhow::Result<()> {
    let filter = ours(ctx.swarm(), ctx.identity.worker);
    let notes = ctx.watch.all()?;
    let is_leftover = |labels: &Labels| attempt_of(labels).is_none_or(|attempt| !ctx.hub.is_held(attempt));
    let is_sandbox = |container: &OurContainer| {
        let number = sandbox_of(&container.labels).filter(|number| ctx.sandboxes.knows(*number));
        number.is_some_and(|number| container.name == ctx.sandbox_name(number))
    };
    let containers = ctx.runtime.list_ours(&filter).await?.into_iter();
    let containers = containers.filter(|container| is_leftover(&container.labels) && !is_sandbox(container));
    let removals = stream::iter(containers).map(async |container| {
        tracing::warn!(
            name = container.name,
            "removing a container that belongs to no attempt and no sandbox of this worker"
        );
        let is_gone = removed(&container.name, ctx.runtime.remove(&container.id, true).await);
        (!is_gone).then_some(container.name)
    });
    let stuck: HashSet<String> = removals.buffer_unordered(REMOVALS).filter_map(std::future::ready).collect().await;
    let volumes = ctx.runtime.list_our_volumes(&filter).await?.into_iter().filter(|one| is_leftover(&one.labels));
    stream::iter(volumes)
        .for_each_concurrent(REMOVALS, async |volume| {
            removed(&volume.name, ctx.runtime.remove_volume(&volume.name).await);
        })
        .await;
    let held: HashSet<String> = ctx.hub.report().into_iter().map(|held| ctx.container_name(held.attempt)).collect();
    // Of all other notes the containers, if there were any, are gone.
    for note in notes.into_iter().filter(|note| !held.contains(&note.name) && !stuck.contains(&note.name)) {
        ctx.watch.remove(&note.name);
    }
    Ok(())
}

/// Removes every container and volume of a worker.
pub(crate) async fn remove_all(runtime: &dyn ContainerRuntime, swarm: SwarmId, worker: WorkerId) -> anyhow::Result<()> {
    let filter = ours(swarm, worker);
    for container in runtime.list_ours(&filter).await? {
        forgive_absence(runtime.remove(&container.id, true).await)?;
    }
    for volume in runtime.list_our_volumes(&filter).await? {
        forgive_absence(runtime.remove_volume(&volume.name).await)?;
    }
    Ok(())
}

fn forgive_absence(removed: Result<(), RuntimeError>) -> Result<(), RuntimeError> {
    removed.or_else(|error| if error.is_not_found() { Ok(()) } else { Err(error) })
}

/// Whether it is gone. What is stuck must not keep the rest from being swept; it has its next turn with the next sweep.
fn removed(name: &str, removed: Result<(), RuntimeError>) -> bool {
    match removed {
        Err(error) if !error.is_not_found() => {
            tracing::warn!(name, %error, "a leftover cannot be removed yet");
            false
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::Outcome;

    use super::*;
    use crate::testing;

    fn container(phase: ContainerPhase) -> Held {
        (ContainerId("c".into()), ContainerState { started_at_us: Some(7), ..ContainerState::of(phase) })
    }

    #[test]
    fn what_may_have_run_is_never_run_again() {
        let order = testing::order(1, b"image");
        let mark = StartMark { machine_boot: "b".into(), boot_ns: 1 };
        let found = |start: Option<StartMark>, ended: bool| Found {
            report: ended.then(|| testing::report(order.attempt, Outcome::Succeeded, 0)),
            order: order.clone(),
            start,
        };
        let running = container(ContainerPhase::Running);
        let exited = container(ContainerPhase::Exited);
        let created = container(ContainerPhase::Created);
        let now_us = || 1_700_000_000_000_001;
        let stage = |found: &Found, container| stage_of(found, container, now_us).0;
        let marked = found(Some(mark.clone()), false);
        assert!(matches!(stage(&found(None, false), None), Stage::Found));
        assert!(matches!(stage(&found(None, false), Some(&created)), Stage::Found));
        assert!(matches!(stage(&marked, None), Stage::Vanished));
        assert!(matches!(stage(&marked, Some(&created)), Stage::Vanished), "a start may be on its way still");
        assert!(matches!(stage(&marked, Some(&running)), Stage::Adopted(_, _, kept) if kept == mark));
        assert!(matches!(stage(&marked, Some(&exited)), Stage::Adopted(..)));
        assert!(matches!(stage(&found(None, false), Some(&running)), Stage::Adopted(..)));
        assert!(matches!(stage(&found(Some(mark), true), Some(&running)), Stage::Reported(_)));
        assert_eq!(stage_of(&marked, Some(&running), now_us).1, HeldPhase::Running { started_at_us: 7 });
        let undescribed = (running.0.clone(), ContainerState::of(ContainerPhase::Running));
        let HeldPhase::Running { started_at_us } = stage_of(&marked, Some(&undescribed), now_us).1 else {
            panic!("it runs")
        };
        assert_eq!(started_at_us, now_us(), "nothing started in 1970");
    }
}
