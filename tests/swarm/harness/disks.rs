//! Disks of a core and a worker whose power can be cut.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use swarm_powerfs::{Disk, Remains};

use super::process::strays;
use super::swarm::Swarm;
use super::{eventually, signal};

/// Whose disk.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Owner {
    Core,
    Worker,
}

/// Where they are mounted, in the swarm's directory.
const PLACES: [&str; 2] = ["core", "worker"];
/// How long killed programs may take to go.
const BUSY: Duration = Duration::from_secs(10);

/// None where a swarm has ordinary directories.
#[derive(Default)]
pub(crate) struct Disks(Mutex<Vec<Disk>>);

impl Disks {
    pub(super) fn mount(home: &Path) -> Self {
        let disks = PLACES.map(|name| {
            let place = home.join(name);
            std::fs::create_dir(&place).expect("a directory can be made");
            Disk::mount(&place).expect("a disk can be mounted (as root, with /dev/fuse)")
        });
        Self(Mutex::new(disks.into()))
    }

    pub(super) fn unmount(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Swarm {
    /// Lets the power of one of the disks go right before its `steps`th change or sync from now on.
    pub(crate) fn cut_before(&self, disk: Owner, steps: u64, seed: u64) {
        self.disks.0.lock().expect("no holder panics")[disk as usize].cut_before(steps, seed);
    }

    /// From now on everything that is written to one of the disks fails, or does no more.
    pub(crate) fn fail_disk(&self, disk: Owner, is_failing: bool) {
        self.disks.0.lock().expect("no holder panics")[disk as usize].fail(is_failing);
    }

    /// Waits until it went, but not for ever: who uses a disk may not get that far.
    pub(crate) fn await_cut(&self, patience: Duration) {
        let began = Instant::now();
        let is_cut = || self.disks.0.lock().expect("no holder panics").iter().any(Disk::is_cut);
        while !is_cut() && began.elapsed() < patience {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The machine loses its power: disks, programs and containers, all at once. It has the disks' remains afterwards, and
    /// nothing runs. These are answered, the core's first.
    pub(crate) fn lose_power(&self, seed: u64) -> Vec<Remains> {
        let mut disks = self.disks.0.lock().expect("no holder panics");
        let remains: Vec<Remains> = disks.iter().map(|disk| disk.cut(seed)).collect();
        drop((self.core().take(), self.worker().take()));
        for pid in strays(self.home()) {
            signal(pid, Signal::KILL);
        }
        eventually("the killed programs are gone", BUSY, || strays(self.home()).is_empty().then_some(()));
        disks.clear();
        *disks = PLACES
            .iter()
            .zip(&remains)
            .map(|(name, left)| {
                let place = self.home().join(name);
                Disk::remount(&place, left.clone()).expect("the disk can be mounted again")
            })
            .collect();
        drop(disks);
        // Containers end with their machine; the engine knows them as ended when it is back.
        if let Some(id) = self.id() {
            for stamp in self.docker().listing(&id) {
                self.docker().run(&["kill", &stamp.container]);
            }
        }
        remains
    }
}
