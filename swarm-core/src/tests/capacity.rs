//! What workers offer is remembered.

use swarm_protocol::spec::Resources;

use super::*;
use crate::messages::Shape;

impl Core<'_> {
    /// Why no worker could ever run a task of these needs.
    async fn misfit(&self, gib: u64) -> Option<String> {
        let shape = Shape(Resources { cpu_millis: 1000, memory_bytes: gib << 30 });
        let (reply, misfit) = oneshot::channel();
        self.handles.dispatcher.send(DispatcherMsg::Misfit { shape, reply }).await.unwrap();
        misfit.await.unwrap().map(|warning| warning.problem)
    }
}

#[tokio::test]
async fn a_core_that_starts_anew_knows_what_workers_offered() {
    let disk = Disk::new();
    let [_, absent] = disk.bench.worker_ids();
    {
        let core = Core::start(&disk).await;
        core.worker().await;
        assert_eq!(core.misfit(9).await, None, "one worker never said what it offers");
        core.handles.ledger.commit(Transition::RevokeWorker { worker: absent }).await.unwrap().unwrap();
    }
    let core = Core::start(&disk).await;
    assert_eq!(core.misfit(8).await, None);
    let problem = "a task needs 9 GiB of memory; the largest worker, w1, has 8 GiB";
    assert_eq!(core.misfit(9).await.as_deref(), Some(problem));
}
