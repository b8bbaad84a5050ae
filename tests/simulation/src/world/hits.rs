//! What hits the world at moments that its plan does not know, and the core that is deposed.

use super::World;
use crate::net::CORE;
use crate::plan::{Act, Hit, Target};
use crate::time::{now_us, trace};

impl World {
    /// The moment of some aims has come, on this worker.
    pub(super) fn strike(&mut self, target: Target, worker: usize) {
        for aim in self.aims.extract_if(.., |aim| aim.at == target).collect::<Vec<_>>() {
            trace(format_args!("aim: {:?} at {target:?} of {}", aim.hit, self.workers[worker].name()));
            self.count("aimed");
            let site = self.workers[worker].site();
            let (begin, end) = match aim.hit {
                Hit::Cut => (
                    vec![Act::Cut(site, CORE), Act::Cut(CORE, site)],
                    vec![Act::Mend(site, CORE), Act::Mend(CORE, site)],
                ),
                Hit::WorkerCrash => (vec![Act::WorkerCrash(worker)], vec![Act::WorkerStart(worker)]),
                Hit::WorkerFreeze => (vec![Act::WorkerFreeze(worker)], vec![Act::WorkerThaw(worker)]),
                Hit::PowerLoss => (vec![Act::PowerLoss(worker)], vec![Act::WorkerStart(worker)]),
                Hit::CoreCrash => (vec![Act::CoreCrash], vec![Act::CoreStart]),
                Hit::CorePowerLoss => (vec![Act::CorePowerLoss], vec![Act::CoreStart]),
            };
            let begins_us = now_us() + aim.after_ms * 1000;
            begin.into_iter().for_each(|act| self.plan.put(begins_us, act));
            end.into_iter().for_each(|act| self.plan.put(begins_us + aim.for_ms * 1000, act));
        }
    }

    /// The core freezes, and another one takes over. What reaches the machine is for the new one from now on.
    pub(super) fn depose_core(&mut self) -> bool {
        if self.core.is_none() || self.core_is_frozen || self.core_stop.is_cancelled() || self.deposed.is_some() {
            return false;
        }
        self.net.crash(CORE, || ());
        (self.deposed, self.deposed_is_frozen) = (self.core.take(), true);
        self.start_core();
        true
    }

    /// It finds out by itself that it was deposed.
    pub(super) fn thaw_deposed(&mut self) {
        if let Some(deposed) = self.deposed.as_ref().filter(|_| self.deposed_is_frozen) {
            deposed.thaw(now_us());
        }
        self.deposed_is_frozen = false;
    }
}
