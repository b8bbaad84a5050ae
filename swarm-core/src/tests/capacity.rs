//! What workers offer, and what they are known by, is remembered.

use swarm_protocol::labels::Labels;
use swarm_protocol::spec::Resources;

use super::*;
use crate::messages::Shape;

impl Core<'_> {
    /// Why no worker could ever run a task of these needs.
    async fn misfit(&self, gib: u64) -> Option<String> {
        let needs = Resources { cpu_millis: 1000, memory_bytes: gib << 30 };
        let shape = Shape { needs, ..Shape::default() };
        let (reply, misfit) = oneshot::channel();
        self.handles.dispatcher.send(DispatcherMsg::Misfit { shape, reply }).await.unwrap();
        misfit.await.unwrap().map(|warning| warning.problem)
    }
}

#[tokio::test]
async fn a_core_that_starts_anew_knows_what_labels_workers_had() {
    let disk = Disk::new();
    let labels = |value: &str| Labels::from([("zone".to_owned(), value.to_owned())]);
    {
        let core = Core::start(&disk).await;
        let worker = core.worker().await;
        let (id, session) = (worker.id, worker.session);
        let message = DispatcherMsg::Labels { worker: id, session, labels: labels("a") };
        core.handles.dispatcher.send(message).await.unwrap();
        core.until(|| core.store.workers().unwrap().iter().any(|one| one.labels == Some(labels("a")))).await;
        let [_, absent] = disk.bench.worker_ids();
        core.handles.ledger.commit(Transition::RevokeWorker { worker: absent }).await.unwrap().unwrap();
    }
    let core = Core::start(&disk).await;
    let misfit = async |value: &str| {
        let shape = Shape { require: Arc::new(labels(value)), ..Shape::default() };
        let (reply, misfit) = oneshot::channel();
        core.handles.dispatcher.send(DispatcherMsg::Misfit { shape, reply }).await.unwrap();
        misfit.await.unwrap().map(|warning| warning.field)
    };
    assert_eq!((misfit("a").await, misfit("b").await), (None, Some("require.zone".to_owned())));
}

#[tokio::test]
async fn a_core_that_starts_anew_knows_what_workers_offered() {
    let disk = Disk::new();
    let [_, absent] = disk.bench.worker_ids();
    {
        let core = Core::start(&disk).await;
        core.worker().await;
        assert_eq!(core.misfit(9).await, None, "one worker never said what it offers");
        core.until(|| core.store.workers().unwrap().iter().any(|one| one.facts.is_some())).await;
        core.handles.ledger.commit(Transition::RevokeWorker { worker: absent }).await.unwrap().unwrap();
    }
    let core = Core::start(&disk).await;
    assert_eq!(core.misfit(8).await, None);
    let problem = "a task needs 9 GiB of memory; the largest worker, w1, has 8 GiB";
    assert_eq!(core.misfit(9).await.as_deref(), Some(problem));
}

#[tokio::test]
async fn what_workers_say_of_themselves_is_kept_though_the_database_refused_it() {
    let disk = Disk::new();
    let core = Core::start(&disk).await;
    core.troubled.refuse(|transition| matches!(transition, Transition::NoteFacts { .. }));
    core.troubled.refuse(|transition| matches!(transition, Transition::NoteLabels { .. }));
    let worker = core.worker().await;
    let labels = Labels::from([("zone".to_owned(), "a".to_owned())]);
    let (id, session) = (worker.id, worker.session);
    let message = DispatcherMsg::Labels { worker: id, session, labels: labels.clone() };
    core.handles.dispatcher.send(message).await.unwrap();
    core.troubled.refused_all().await;
    core.until(|| {
        disk.clock.advance_ms(1_000);
        core.store.workers().unwrap().iter().any(|one| one.facts.is_some() && one.labels.as_ref() == Some(&labels))
    })
    .await;
}
