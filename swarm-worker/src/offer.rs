//! What this worker offers to the core, by its settings and what the engine says of its machine. Both change while it
//! runs: machines are resized, engines updated. It is looked at anew every minute, and when an engine comes back.

use std::sync::Arc;
use std::time::Duration;

use swarm_protocol::link::WorkerFacts;

use crate::config::WorkerConfig;
use crate::context::Ctx;
use crate::runtime::EngineFacts;

/// How often the engine is asked anew.
const REFRESH: Duration = Duration::from_secs(60);
/// A change of the memory by less than this part of it is none: that of virtual machines moves all the time.
const MEMORY_SLACK: u64 = 64;

/// What is offered: as configured, else all cores and 80 % of the memory.
pub(crate) fn facts(config: &WorkerConfig, engine: &EngineFacts) -> WorkerFacts {
    WorkerFacts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cpu_millis: config.cpu_millis.unwrap_or(engine.cpus.saturating_mul(1000)),
        memory_bytes: config.memory_bytes.unwrap_or(engine.memory_bytes / 10 * 8),
        slots: slots(config, engine),
        os: engine.os.clone(),
        arch: arch(engine).to_owned(),
        engine: format!("docker {}", engine.engine_version),
    }
}

/// Containers that may run at once: as configured, else one for each core.
pub(crate) fn slots(config: &WorkerConfig, engine: &EngineFacts) -> u32 {
    config.slots.unwrap_or(engine.cpus).max(1)
}

/// The engine's architecture as images name it.
pub(crate) fn arch(engine: &EngineFacts) -> &str {
    match engine.arch.as_str() {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Whether the core has to hear that `told` is not true any more.
pub(crate) fn is_news(told: &WorkerFacts, now: &WorkerFacts) -> bool {
    let rest = |facts: &WorkerFacts| WorkerFacts { memory_bytes: 0, ..facts.clone() };
    told.memory_bytes.abs_diff(now.memory_bytes) > told.memory_bytes / MEMORY_SLACK || rest(told) != rest(now)
}

/// Keeps it up to date until the worker stops.
pub(crate) async fn keep(ctx: Arc<Ctx>) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            biased;
            () = ctx.stop.cancelled() => return Ok(()),
            () = tokio::time::sleep(REFRESH) => {}
        }
        look(&ctx).await;
    }
}

/// Asks the engine, and tells whoever waits for it when something is different.
pub(crate) async fn look(ctx: &Ctx) {
    let found = match ctx.runtime.facts().await {
        Ok(found) => found,
        Err(error) => {
            tracing::debug!(%error, "the engine does not say what it has; what was known stays");
            return;
        }
    };
    ctx.engine.send_if_modified(|known| {
        let (before, now) = (slots(&ctx.config, known), slots(&ctx.config, &found));
        resize(ctx, before, now);
        let is_new = *known != found;
        *known = found;
        is_new
    });
}

/// Fewer slots than containers that run: the next ones to end are not followed by others.
fn resize(ctx: &Ctx, before: u32, now: u32) {
    ctx.slots.add_permits(now.saturating_sub(before) as usize);
    let surplus = before.saturating_sub(now);
    if surplus > 0 {
        let (slots, stop) = (ctx.slots.clone(), ctx.stop.clone());
        ctx.tasks.spawn(async move {
            if let Some(Ok(permits)) = stop.run_until_cancelled(slots.acquire_many_owned(surplus)).await {
                permits.forget();
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::ContainerRuntime as _;
    use crate::runtime::fake::FakeRuntime;

    #[tokio::test]
    async fn what_is_not_configured_comes_from_the_engine() {
        let engine = EngineFacts { cpus: 4, memory_bytes: 1000, ..FakeRuntime::new().facts().await.unwrap() };
        let plain = facts(&WorkerConfig::default(), &engine);
        assert_eq!((plain.cpu_millis, plain.memory_bytes, plain.slots, plain.arch.as_str()), (4000, 800, 4, "amd64"));
        let config = WorkerConfig { slots: Some(9), cpu_millis: Some(500), ..WorkerConfig::default() };
        let given = facts(&config, &engine);
        assert_eq!((given.cpu_millis, given.slots), (500, 9));
    }

    #[test]
    fn a_little_memory_more_or_less_is_no_news() {
        let told = WorkerFacts { memory_bytes: 64 << 20, slots: 2, ..WorkerFacts::default() };
        let memory = |memory_bytes| WorkerFacts { memory_bytes, ..told.clone() };
        assert!(!is_news(&told, &told));
        assert!(!is_news(&told, &memory(65 << 20)) && !is_news(&told, &memory(63 << 20)));
        assert!(is_news(&told, &memory(66 << 20)) && is_news(&told, &memory(62 << 20)));
        assert!(is_news(&told, &WorkerFacts { slots: 3, ..told.clone() }));
        assert!(is_news(&told, &WorkerFacts { engine: "docker 29".into(), ..told.clone() }));
    }
}
