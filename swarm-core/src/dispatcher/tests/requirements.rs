//! Labels of workers, and tasks that require them.

use swarm_protocol::Digest;
use swarm_protocol::link::DIRECTORIES_SINCE;
use swarm_protocol::spec::Input;

use super::*;
use crate::testing::labels;

impl Swarm {
    /// A job of one task that may run now, on a worker in this zone.
    async fn enqueue_for_zone(&self, id: u64, zone: &str) {
        let mut record = job_record(id);
        record.spec.require = (*labels(&[("zone", zone)])).clone();
        let (shape, work) = (Shape::of(&record.spec), Work::Fresh(TaskRange::one(0)));
        self.memory.change(|jobs| jobs.entry(JobId(id)).or_insert(record).id);
        let runnable = Runnable { job: JobId(id), group: GroupId(1), priority: 0, runnable_since: at(0), shape, work };
        self.scheduler.send(SchedulerMsg::Enqueue(runnable)).await.unwrap();
    }

    async fn label(&self, worker: &FakeWorker, pairs: &[(&str, &str)]) {
        let (worker, session, labels) = (worker.id, worker.session, (*labels(pairs)).clone());
        self.tell(DispatcherMsg::Labels { worker, session, labels }).await;
    }
}

#[tokio::test]
async fn a_task_goes_to_a_worker_with_its_labels_and_waits_for_one() {
    let swarm = Swarm::start().await;
    let (mut plain, mut other) = (swarm.worker(1, 64, 8).await, swarm.worker(2, 4, 1).await);
    swarm.label(&other, &[("zone", "b")]).await;
    for job in 1..=2 {
        swarm.enqueue_for_zone(job, "b").await;
    }
    let order = other.order().await;
    assert_eq!(order.attempt.job, JobId(1));
    swarm.enqueue_for_zone(3, "a").await;
    swarm.settle().await;
    assert!(plain.has_nothing() && other.has_nothing(), "one is full, the other has no label");
    let shape = Shape { require: labels(&[("zone", "a")]), ..Shape::default() };
    let (reply, reasons) = oneshot::channel();
    swarm.tell(DispatcherMsg::Why { shape, reply }).await;
    let texts: Vec<_> = reasons.await.unwrap().into_iter().map(|reason| (reason.code, reason.text)).collect();
    let lacking = ["it has not said yet which labels it has", "its label `zone` is `b`, not `a`"];
    assert_eq!(texts, lacking.map(|text| ("label".to_owned(), text.to_owned())));
    swarm.label(&plain, &[("zone", "a"), ("evil", "\u{1b}[31m"), ("No name", "x")]).await;
    assert_eq!(plain.order().await.attempt.job, JobId(3), "a change of labels wakes what waits");
    swarm.freed(&other, &order).await;
    assert_eq!(other.order().await.attempt.job, JobId(2));
    let views = swarm.views().await;
    assert_eq!(views[1].labels, *labels(&[("zone", "b")]));
    assert_eq!(views[0].labels.keys().collect::<Vec<_>>(), ["evil", "zone"]);
    assert!(!views[0].labels["evil"].contains('\u{1b}'), "hostile labels are made harmless");
}

#[tokio::test]
async fn directories_go_to_workers_whose_link_knows_them() {
    let swarm = Swarm::start().await;
    let hello = Hello { version_max: DIRECTORIES_SINCE - 1, ..hello(64, 64) };
    let (welcome, mut old) = swarm.try_connect(1, hello).await;
    let Welcome::Accepted { session, .. } = welcome else { panic!("{welcome:?}") };
    swarm.tell(DispatcherMsg::Ready { worker: WorkerId(1), session, held: Vec::new() }).await;
    let mut record = job_record(1);
    let input = Input { digest: Digest::of(b"x"), path: "/data".into(), mode: 0o644, unpack: true };
    (record.spec.inputs, record.input_bytes) = (vec![input], vec![1]);
    let shape = Shape::of(&record.spec);
    swarm.memory.change(|jobs| jobs.entry(JobId(1)).or_insert(record).id);
    let (work, shape_of) = (Work::Fresh(TaskRange::one(0)), shape.clone());
    let runnable =
        Runnable { job: JobId(1), group: GroupId(1), priority: 0, runnable_since: at(0), shape: shape_of, work };
    swarm.scheduler.send(SchedulerMsg::Enqueue(runnable)).await.unwrap();
    swarm.settle().await;
    assert!(old.try_recv().is_err(), "it would take the archive for a file");
    let (reply, reasons) = oneshot::channel();
    swarm.tell(DispatcherMsg::Why { shape, reply }).await;
    let codes: Vec<_> = reasons.await.unwrap().into_iter().map(|reason| reason.code).collect();
    assert_eq!(codes, ["version", "version"]);
    let mut new = swarm.worker(2, 1, 1).await;
    assert_eq!(new.order().await.inputs[0].directory(), Some("/data"));
}

#[tokio::test]
async fn labels_are_kept_in_the_store_and_a_worker_of_an_older_version_has_none() {
    let swarm = Swarm::start().await;
    let worker = swarm.worker(1, 4, 1).await;
    swarm.label(&worker, &[("zone", "a")]).await;
    let written = async |wanted: &[(&str, &str)]| {
        let wanted = labels(wanted);
        let is_it = |one: &Transition| matches!(one, Transition::NoteLabels { labels, .. } if *labels == *wanted);
        swarm.memory.until(|memory| memory.log().iter().any(is_it)).await;
    };
    written(&[("zone", "a")]).await;
    let late = swarm.connect(1, 4, 1).await;
    assert_eq!(swarm.views().await[0].labels, *labels(&[("zone", "a")]), "remembered over a new link");
    swarm.label(&worker, &[("zone", "b")]).await;
    assert_eq!(swarm.views().await[0].labels, *labels(&[("zone", "a")]), "not by a link that is over");
    drop(late);
    let hello = Hello { version_max: 2, ..hello(4, 1) };
    let (welcome, _orders) = swarm.try_connect(1, hello).await;
    assert!(matches!(welcome, Welcome::Accepted { version: 2, .. }), "{welcome:?}");
    assert!(swarm.views().await[0].labels.is_empty(), "it cannot say");
    written(&[]).await;
}
