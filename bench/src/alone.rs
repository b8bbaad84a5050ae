//! The baseline: the same hardened containers, made, started, awaited, read and removed by the worker's own calls to the
//! engine, with nothing around them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use swarm_protocol::Digest;
use swarm_worker::runtime::testimage::{HostImage, TestEngine};
use swarm_worker::runtime::{ContainerId, ContainerRuntime as _, ContainerSpec, Network};

use crate::table::median;

/// Whose network namespace a container gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Namespace {
    Own,
    /// That of a container that waits, as the worker's sandboxes are.
    Joined,
}

pub(crate) struct Alone<'a> {
    engine: &'a TestEngine,
    image: Digest,
    /// One for each place.
    pauses: Vec<ContainerId>,
    made: AtomicU64,
}

impl<'a> Alone<'a> {
    pub(crate) async fn new(engine: &'a TestEngine, image: &HostImage, slots: u32) -> anyhow::Result<Self> {
        let mut alone = Self { engine, image: image.config_digest, pauses: Vec::new(), made: AtomicU64::new(0) };
        for _ in 0..slots {
            let spec = alone.spec(&["sleep", "1d"], Network::None);
            let id = engine.runtime.create(&spec).await?;
            engine.runtime.start(&id).await?;
            alone.pauses.push(id);
        }
        Ok(alone)
    }

    fn spec(&self, words: &[&str], network: Network) -> ContainerSpec {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}-{number}", self.engine.prefix);
        let mut spec = ContainerSpec::new(name, self.image, self.engine.labels.clone());
        spec.cmd = Some(words.iter().map(ToString::to_string).collect());
        spec.user = Some("65534:65534".to_owned());
        (spec.cpu_millis, spec.memory_bytes) = (crate::CPU_MILLIS.into(), crate::MEMORY_BYTES);
        spec.network = network;
        spec
    }

    /// `count` containers, as many at a time as there are places: how long they took together.
    pub(crate) async fn many(&self, count: u32, namespace: Namespace) -> anyhow::Result<Duration> {
        let (began, next) = (Instant::now(), AtomicU64::new(0));
        stream::iter(0..self.pauses.len())
            .map(Ok)
            .try_for_each_concurrent(None, async |place| {
                while next.fetch_add(1, Ordering::Relaxed) < u64::from(count) {
                    self.one(place, namespace).await?;
                }
                anyhow::Ok(())
            })
            .await?;
        Ok(began.elapsed())
    }

    /// `count` containers one after another: the median of what one took.
    pub(crate) async fn one_by_one(&self, count: u32, namespace: Namespace) -> anyhow::Result<Duration> {
        let mut took = Vec::new();
        for _ in 0..count {
            let began = Instant::now();
            self.one(0, namespace).await?;
            took.push(began.elapsed().as_secs_f64());
        }
        Ok(Duration::from_secs_f64(median(&took)))
    }

    async fn one(&self, place: usize, namespace: Namespace) -> anyhow::Result<()> {
        let network = match namespace {
            Namespace::Own => Network::None,
            Namespace::Joined => Network::Of(self.pauses[place].clone()),
        };
        let engine = &self.engine.runtime;
        let id = engine.create(&self.spec(&["true"], network)).await?;
        engine.start(&id).await?;
        let exit = engine.wait(&id).await?;
        anyhow::ensure!(exit.exit_code == 0, "a container ended with {}", exit.exit_code);
        engine.logs(&id).await?.try_collect::<Vec<_>>().await?;
        engine.remove(&id, false).await.context("a container that has ended")
    }

    pub(crate) async fn end(&self) -> anyhow::Result<()> {
        for pause in &self.pauses {
            self.engine.runtime.remove(pause, true).await?;
        }
        Ok(())
    }
}
