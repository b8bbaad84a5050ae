//! The picture of the workers: who is linked, what each offers, what it has promised. No I/O; time comes as an argument.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;

use swarm_protocol::api::WorkerView;
use swarm_protocol::labels::{Labels, has_all};
use swarm_protocol::link::WorkerFacts;
use swarm_protocol::spec::Resources;
use swarm_protocol::{AttemptId, SessionId, Timestamp, WorkerId};

use super::sessions::Sessions;
use crate::cache::{WorkerRow, WorkerState};
use crate::messages::{LinkTx, Shape};
use crate::plan::place::{Amount, Candidate, PREFETCH};
use crate::plan::why::{Standing, Subject};
use crate::store::{Transition, WorkerRecord};

/// No worker gets more tasks at a time, whatever it offers.
pub const SLOTS_MAX: u32 = 1024;
/// Places in a link's queue that orders leave to other frames.
const LINK_RESERVE: usize = 16;
/// How long a worker that refused an order is given nothing. An idle worker is the first choice for every task, so without
/// a pause one with a full disk would be offered, and refuse, all there is.
const DECLINE_PAUSE_MS: u64 = 10_000;
/// Freed attempts remembered per session.
const FREED_MAX: usize = 4096;

/// All workers ever heard of, by number.
#[derive(Default)]
pub(super) struct Picture {
    workers: BTreeMap<WorkerId, Worker>,
    /// Workers that may have more room, or other labels, than when parked shapes were last looked at.
    roomier: HashSet<WorkerId>,
    /// What workers said of themselves that the store does not have, with when it is to have it: boot clock.
    notes: BTreeMap<(WorkerId, Said), u64>,
}

/// What a worker says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Said {
    Facts,
    Labels,
}

#[derive(Default)]
struct Worker {
    name: String,
    facts: WorkerFacts,
    /// None while it has never said.
    labels: Option<Arc<Labels>>,
    draining: bool,
    revoked: bool,
    /// Until then it is given nothing, for it refused an order: boot clock.
    declining_until_ms: u64,
    link: Option<Link>,
    heard_at: Option<Timestamp>,
    live: HashMap<AttemptId, Resources>,
    /// Those of them whose assignment is not committed yet, so that no report of the worker knows them.
    promised: HashMap<AttemptId, Resources>,
    used: Amount,
    /// A notice that an attempt left may overtake the report that it is there: then the report is out of date.
    freed: VecDeque<AttemptId>,
}

struct Link {
    session: SessionId,
    tx: LinkTx,
    version: u8,
    ready: bool,
}

impl Worker {
    fn capacity(&self) -> Amount {
        Amount {
            cpu_millis: u64::from(self.facts.cpu_millis),
            memory_bytes: self.facts.memory_bytes,
            slots: match self.facts.slots.min(SLOTS_MAX) {
                0 => 0,
                slots => slots + PREFETCH,
            },
        }
    }

    fn hold(&mut self, attempt: AttemptId, needs: Resources) {
        if self.live.insert(attempt, needs).is_none() {
            self.used.add(needs);
        }
    }

    fn free(&mut self, attempt: AttemptId) {
        if let Some(needs) = self.live.remove(&attempt) {
            self.used = self.used.minus(Amount {
                cpu_millis: u64::from(needs.cpu_millis),
                memory_bytes: needs.memory_bytes,
                slots: 1,
            });
        }
    }

    fn standing(&self, sessions: &Sessions, now_ms: u64, silence_ms_max: u64) -> Standing {
        let Some(link) = self.link.as_ref().filter(|_| !self.revoked) else {
            return if self.revoked { Standing::Revoked } else { Standing::Offline };
        };
        let Some(heard) = sessions.heard(link.session) else { return Standing::Offline };
        let silence_ms = now_ms.saturating_sub(heard.boot_ms);
        match () {
            () if silence_ms > silence_ms_max => Standing::Suspect { silence_ms },
            () if self.draining => Standing::Draining,
            () if !link.ready => Standing::Joining,
            () if !heard.accepting || now_ms < self.declining_until_ms => Standing::Declining,
            () => Standing::Ready,
        }
    }
}

impl Worker {
    fn row(&self, id: WorkerId, sessions: &Sessions, silence: Silence) -> WorkerRow {
        let state = match self.standing(sessions, silence.now_ms, silence.ms_max) {
            Standing::Ready | Standing::Joining => WorkerState::Ready,
            Standing::Declining | Standing::Draining => WorkerState::Draining,
            Standing::Suspect { .. } => WorkerState::Suspect,
            Standing::Offline => WorkerState::Offline,
            Standing::Revoked => WorkerState::Revoked,
        };
        let heard = self.link.as_ref().and_then(|link| sessions.heard(link.session));
        let heard_at = heard.map(|heard| heard.at).or(self.heard_at);
        let said = heard.and_then(|heard| heard.said);
        WorkerRow {
            id,
            state,
            live: self.used.slots,
            used_cpu_millis: u32::try_from(self.used.cpu_millis).unwrap_or(u32::MAX),
            used_memory_bytes: self.used.memory_bytes,
            free_slots: said.map(|said| said.free_slots),
            load_millis: said.map(|said| said.load_millis),
            heard_at_us: heard_at.map(|at| at.timestamp_micros()),
        }
    }
}

/// When a worker counts as silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Silence {
    pub(super) now_ms: u64,
    pub(super) ms_max: u64,
}

impl Picture {
    pub(super) fn restore(&mut self, records: Vec<WorkerRecord>) {
        for record in records {
            let worker = self.workers.entry(record.id).or_default();
            worker.name = record.name;
            worker.draining = record.draining;
            worker.revoked = record.revoked;
            worker.facts = record.facts.unwrap_or_default();
            worker.labels = record.labels.map(Arc::new);
        }
    }

    /// Links a worker; its former session, if any, is returned and is over.
    pub(super) fn connect(
        &mut self,
        id: WorkerId,
        name: String,
        facts: WorkerFacts,
        session: SessionId,
        tx: LinkTx,
        version: u8,
    ) -> Option<SessionId> {
        if self.workers.get(&id).is_none_or(|worker| worker.facts != facts) {
            self.notes.insert((id, Said::Facts), 0);
        }
        let worker = self.workers.entry(id).or_default();
        (worker.name, worker.facts) = (name, facts);
        worker.freed.clear();
        worker.declining_until_ms = 0;
        worker.link.replace(Link { session, tx, version, ready: false }).map(|former| former.session)
    }

    /// A worker said over the link of this session which labels it has.
    pub(super) fn relabel(&mut self, id: WorkerId, session: SessionId, labels: Labels) {
        let Some(worker) = self.workers.get_mut(&id) else { return };
        let is_current = worker.link.as_ref().is_some_and(|link| link.session == session);
        if is_current && worker.labels.as_deref() != Some(&labels) {
            worker.labels = Some(Arc::new(labels));
            self.roomier.insert(id);
            self.notes.insert((id, Said::Labels), 0);
        }
    }

    /// What the store is to have by now.
    pub(super) fn take_notes(&mut self, now_ms: u64) -> Vec<(WorkerId, Said, Transition)> {
        let due = self.notes.extract_if(.., |_, due_ms| *due_ms <= now_ms);
        let note = |((worker, said), _)| {
            let record = self.workers.get(&worker)?;
            let transition = match said {
                Said::Facts => Transition::NoteFacts { worker, facts: record.facts.clone() },
                Said::Labels => Transition::NoteLabels { worker, labels: (**record.labels.as_ref()?).clone() },
            };
            Some((worker, said, transition))
        };
        due.filter_map(note).collect()
    }

    /// The store refused this: it is to have it then, or before if it changes.
    pub(super) fn note_again(&mut self, worker: WorkerId, said: Said, due_ms: u64) {
        self.notes.entry((worker, said)).or_insert(due_ms);
    }

    pub(super) fn is_revoked(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_some_and(|worker| worker.revoked)
    }

    /// Cuts a worker's link, if it is of this session; `None` means whichever. True when it was linked so.
    pub(super) fn disconnect(
        &mut self,
        id: WorkerId,
        session: Option<SessionId>,
        sessions: &Sessions,
    ) -> Option<SessionId> {
        let worker = self.workers.get_mut(&id)?;
        let link = worker.link.take_if(|link| session.is_none_or(|session| session == link.session))?;
        worker.heard_at = sessions.heard(link.session).map(|heard| heard.at).or(worker.heard_at);
        Some(link.session)
    }

    /// The worker's state report was judged; true when that makes it ready. Later judgements of the same session only
    /// add: what left in the meantime is told by `freed`, and orders may have been sent since.
    pub(super) fn ready(&mut self, id: WorkerId, session: SessionId, held: Vec<(AttemptId, Resources)>) -> bool {
        let Some(worker) = self.workers.get_mut(&id) else { return false };
        let Some(link) = worker.link.as_mut().filter(|link| link.session == session) else { return false };
        let first = !std::mem::replace(&mut link.ready, true);
        if first {
            (worker.live, worker.used) = Default::default();
            worker.promised.clone().into_iter().for_each(|(attempt, needs)| worker.hold(attempt, needs));
        }
        for (attempt, needs) in held {
            if !worker.freed.contains(&attempt) {
                worker.hold(attempt, needs);
            }
        }
        self.roomier.insert(id);
        first
    }

    pub(super) fn freed(&mut self, id: WorkerId, attempt: AttemptId) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.free(attempt);
            if worker.freed.len() == FREED_MAX {
                worker.freed.pop_front();
            }
            worker.freed.push_back(attempt);
            self.roomier.insert(id);
        }
    }

    /// It refused an order.
    pub(super) fn declined(&mut self, id: WorkerId, now_ms: u64) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.declining_until_ms = now_ms + DECLINE_PAUSE_MS;
        }
    }

    /// Takes back a promise that was not kept.
    pub(super) fn release(&mut self, id: WorkerId, attempts: &[AttemptId]) {
        if let Some(worker) = self.workers.get_mut(&id) {
            for attempt in attempts {
                worker.promised.remove(attempt);
                worker.free(*attempt);
            }
            self.roomier.insert(id);
        }
    }

    pub(super) fn promise(&mut self, id: WorkerId, attempts: &[AttemptId], needs: Resources) {
        if let Some(worker) = self.workers.get_mut(&id) {
            for attempt in attempts {
                worker.promised.insert(*attempt, needs);
                worker.hold(*attempt, needs);
            }
        }
    }

    /// The promise is committed.
    pub(super) fn granted(&mut self, id: WorkerId, attempts: &[AttemptId]) {
        if let Some(worker) = self.workers.get_mut(&id) {
            for attempt in attempts {
                worker.promised.remove(attempt);
            }
        }
    }

    /// Whether orders of this shape, which have a place there, may go to the worker as it is now: it may have come back as a
    /// smaller one, or under other labels.
    pub(super) fn takes(&self, id: WorkerId, shape: &Shape) -> bool {
        self.workers.get(&id).is_some_and(|worker| {
            let has_labels = has_all(worker.labels.as_deref().unwrap_or(&Labels::new()), &shape.require);
            let is_large_enough = worker.capacity().fits(shape.needs);
            has_labels
                && is_large_enough
                && worker.link.as_ref().is_some_and(|link| link.ready && link.version >= shape.link_version)
        })
    }

    pub(super) fn drain(&mut self, id: WorkerId, draining: bool) {
        if let Some(worker) = self.workers.get_mut(&id) {
            worker.draining = draining;
            self.roomier.insert(id);
        }
    }

    pub(super) fn is_draining(&self, id: WorkerId) -> bool {
        self.workers.get(&id).is_some_and(|worker| worker.draining)
    }

    pub(super) fn revoke(&mut self, id: WorkerId) {
        self.workers.entry(id).or_default().revoked = true;
    }

    pub(super) fn link(&self, id: WorkerId) -> Option<&LinkTx> {
        self.workers.get(&id)?.link.as_ref().map(|link| &link.tx)
    }

    /// Workers that take new work now, with no more slots than their links take frames.
    pub(super) fn candidates(&self, sessions: &Sessions, silence: Silence) -> Vec<Candidate> {
        let ready = |worker: &Worker| worker.standing(sessions, silence.now_ms, silence.ms_max) == Standing::Ready;
        let candidate = |(id, worker): (&WorkerId, &Worker)| {
            let (mut capacity, used) = (worker.capacity(), worker.used);
            let frames = worker.link.as_ref().map_or(0, |link| link.tx.capacity());
            let frames = frames.saturating_sub(LINK_RESERVE).saturating_sub(worker.promised.len());
            let frames = u32::try_from(frames).unwrap_or(u32::MAX);
            capacity.slots = capacity.slots.min(used.slots.saturating_add(frames));
            let link_version = worker.link.as_ref().map_or(0, |link| link.version);
            Candidate { worker: *id, capacity, used, labels: worker.labels.clone().unwrap_or_default(), link_version }
        };
        self.workers.iter().filter(|(_, worker)| ready(worker)).map(candidate).collect()
    }

    /// The workers that may have become roomier since the last call.
    pub(super) fn take_roomier(&mut self) -> HashSet<WorkerId> {
        std::mem::take(&mut self.roomier)
    }

    pub(super) fn subjects(&self, sessions: &Sessions, silence: Silence) -> Vec<Subject> {
        let subject = |worker: &Worker| Subject {
            name: worker.name.clone(),
            standing: worker.standing(sessions, silence.now_ms, silence.ms_max),
            capacity: worker.capacity(),
            used: worker.used,
            labels: worker.labels.clone(),
            link_version: worker.link.as_ref().map(|link| link.version),
        };
        self.workers.values().map(subject).collect()
    }

    pub(super) fn views(&self, sessions: &Sessions, silence: Silence) -> Vec<WorkerView> {
        let view = |(id, worker): (&WorkerId, &Worker)| {
            let row = worker.row(*id, sessions, silence);
            WorkerView {
                id: *id,
                name: worker.name.clone(),
                state: row.state.as_str().to_owned(),
                facts: worker.facts.clone(),
                labels: worker.labels.as_deref().cloned().unwrap_or_default(),
                live: row.live,
                used_cpu_millis: row.used_cpu_millis,
                used_memory_bytes: row.used_memory_bytes,
                free_slots: row.free_slots,
                load_millis: row.load_millis,
                heard_at: row.heard_at(),
            }
        };
        self.workers.iter().map(view).collect()
    }

    /// What the workers last said, for the API of any core.
    pub(super) fn rows(&self, sessions: &Sessions, silence: Silence) -> Vec<WorkerRow> {
        self.workers.iter().map(|(id, worker)| worker.row(*id, sessions, silence)).collect()
    }
}
