//! The one picture of what this worker holds. Every task that changes an attempt does so here, under one short lock;
//! what must happen next reaches the attempt's own task through its [`Control`].

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use swarm_protocol::AttemptId;
use swarm_protocol::link::{HeldAttempt, HeldPhase, LiveSet, ToCore, live_hash};
use tokio::sync::{Notify, mpsc, watch};

use crate::latest::{Follower, Latest};
use crate::lease::kill_at_ns;

/// Why an attempt must stop; a later variant overrides an earlier one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Stop {
    /// Its owner cancelled it: the image's stop signal, this many milliseconds, SIGKILL, and a report.
    Cancel {
        /// Between the two signals.
        grace_ms: u32,
    },
    /// The lease is about to end: kill now, and report.
    LeaseExpired,
    /// The core wants it back unstarted: clean up and say `Recalled`.
    Recall,
    /// The core gave it up: kill, clean up, report nothing.
    Abandon,
}

/// Everything the outside has asked of one attempt; each field only moves forward, but for `log_stored`.
#[derive(Debug, Clone, Default)]
pub(crate) struct Control {
    /// Set at most upwards.
    pub(crate) stop: Option<Stop>,
    /// The start of an at-most-once attempt is committed.
    pub(crate) start_committed: bool,
    /// A renewal that covers the attempt was answered: it is the core's current one.
    pub(crate) confirmed: bool,
    /// The log is durable on the core up to here, as it last said: less than before if it lost the end.
    pub(crate) log_stored: u64,
    /// The final report is committed.
    pub(crate) finish_stored: bool,
}

impl Control {
    /// Adds a reason to stop; a weaker one changes nothing.
    pub(crate) fn ask_stop(&mut self, stop: Stop) {
        self.stop = self.stop.max(Some(stop));
    }

    /// Whether the core wants to hear no more of this attempt.
    pub(crate) fn is_over(&self) -> bool {
        self.finish_stored || self.stop >= Some(Stop::Recall)
    }
}

/// The link as long as it is up.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// Frames to the core, in order; bounded.
    pub(crate) out: mpsc::Sender<ToCore>,
}

#[derive(Debug)]
struct Held {
    phase: HeldPhase,
    /// Renewals sent while the hub's generation was at least this cover the attempt.
    generation: u64,
    /// Where the lease counts from. `None`: no container runs, and none may start before a renewal is answered.
    renewed_ns: Option<u64>,
    lease_ms: u64,
    /// Set once the attempt may start: it can no longer be given back.
    starting: bool,
    control: watch::Sender<Control>,
}

impl Held {
    fn is_overdue(&self, now_ns: u64) -> bool {
        self.renewed_ns.is_some_and(|renewed_ns| now_ns >= kill_at_ns(renewed_ns, self.lease_ms))
    }
}

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<AttemptId, Held>,
    generation: u64,
    draining: bool,
    engine_silent: bool,
    /// The disk of the data directory is full.
    is_full: bool,
}

/// What a renewal said, to be kept until it is answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Renewal {
    /// What goes out.
    pub(crate) live: LiveSet,
    /// Which attempts it covers.
    pub(crate) generation: u64,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Hub {
    state: Mutex<State>,
    session: Latest<Option<Session>>,
    /// Wakes the link to send a state report.
    pub(crate) report_due: Notify,
    /// The send time of the last answered renewal, for the watchdog.
    pub(crate) renewed: watch::Sender<u64>,
    empty: watch::Sender<bool>,
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::default(),
            session: Latest::default(),
            report_due: Notify::new(),
            renewed: watch::Sender::new(0),
            empty: watch::Sender::new(true),
        }
    }

    /// A panic elsewhere stops the whole worker, so a poisoned lock is taken as it is.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an attempt in. `None` when it is held already. `granted_ns` is where its lease counts from until the first
    /// renewal that covers it; without one nothing of it runs, and nothing may start before such a renewal.
    pub(crate) fn hold(
        &self,
        attempt: AttemptId,
        phase: HeldPhase,
        lease_ms: u64,
        granted_ns: Option<u64>,
    ) -> Option<watch::Receiver<Control>> {
        let mut state = self.state();
        if state.held.contains_key(&attempt) {
            return None;
        }
        state.generation += 1;
        let control = watch::Sender::new(Control::default());
        let receiver = control.subscribe();
        let starting = phase != HeldPhase::Pending;
        let generation = state.generation;
        let held = Held { phase, generation, renewed_ns: granted_ns, lease_ms, starting, control };
        state.held.insert(attempt, held);
        self.empty.send_replace(false);
        Some(receiver)
    }

    /// Where an attempt's lease counts from; 0 for one that is not held.
    pub(crate) fn renewed_ns(&self, attempt: AttemptId) -> u64 {
        self.state().held.get(&attempt).and_then(|held| held.renewed_ns).unwrap_or(0)
    }

    /// Whether an attempt's lease is ending.
    pub(crate) fn is_overdue(&self, attempt: AttemptId, now_ns: u64) -> bool {
        self.state().held.get(&attempt).is_some_and(|held| held.is_overdue(now_ns))
    }

    /// Whether an attempt is held already.
    pub(crate) fn is_held(&self, attempt: AttemptId) -> bool {
        self.state().held.contains_key(&attempt)
    }

    /// Notes how far an attempt is.
    pub(crate) fn set_phase(&self, attempt: AttemptId, phase: HeldPhase) {
        if let Some(held) = self.state().held.get_mut(&attempt) {
            held.phase = phase;
        }
    }

    /// The point of no return before a start: false when the attempt has been asked to stop or its lease is ending.
    pub(crate) fn begin_start(&self, attempt: AttemptId, now_ns: u64) -> bool {
        let mut state = self.state();
        let Some(held) = state.held.get_mut(&attempt) else { return false };
        if held.is_overdue(now_ns) || held.renewed_ns.is_none() {
            held.control.send_modify(|control| control.ask_stop(Stop::LeaseExpired));
        }
        held.starting = held.control.borrow().stop.is_none();
        held.starting
    }

    /// Changes what is asked of an attempt; false when it is not held.
    pub(crate) fn control(&self, attempt: AttemptId, change: impl FnOnce(&mut Control)) -> bool {
        let state = self.state();
        let Some(held) = state.held.get(&attempt) else { return false };
        held.control.send_modify(change);
        true
    }

    /// Asks for an attempt back, if it has not begun to start.
    pub(crate) fn recall(&self, attempt: AttemptId) {
        let state = self.state();
        if let Some(held) = state.held.get(&attempt).filter(|held| !held.starting) {
            held.control.send_modify(|control| control.ask_stop(Stop::Recall));
        }
    }

    /// Lets go of an attempt: it is in no report any more.
    pub(crate) fn forget(&self, attempt: AttemptId) {
        let mut state = self.state();
        state.held.remove(&attempt);
        self.empty.send_replace(state.held.is_empty());
    }

    /// Returns once nothing is held.
    pub(crate) async fn until_empty(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.empty.subscribe().wait_for(|empty| *empty).await;
    }

    /// Everything held, for a state report.
    pub(crate) fn report(&self) -> Vec<HeldAttempt> {
        self.state().held.iter().map(|(attempt, held)| HeldAttempt { attempt: *attempt, phase: held.phase }).collect()
    }

    /// What a renewal sent now says and covers.
    pub(crate) fn renewal(&self) -> Renewal {
        let state = self.state();
        let live = state.held.iter().filter(|(_, held)| held.phase != HeldPhase::Ended).map(|(attempt, _)| attempt);
        Renewal { live: live_hash(live), generation: state.generation }
    }

    /// A renewal sent at `sent_ns` was answered: every attempt it covered has its lease from then.
    pub(crate) fn renew(&self, renewal: Renewal, sent_ns: u64) {
        let mut state = self.state();
        for held in state.held.values_mut().filter(|held| held.generation <= renewal.generation) {
            held.renewed_ns = held.renewed_ns.max(Some(sent_ns));
            held.control.send_if_modified(|control| !std::mem::replace(&mut control.confirmed, true));
        }
        self.renewed.send_if_modified(|renewed| {
            let newer = sent_ns > *renewed;
            *renewed = sent_ns.max(*renewed);
            newer
        });
    }

    /// Stops every attempt whose lease is about to end; an attempt that has ended needs none.
    pub(crate) fn expire(&self, now_ns: u64) {
        for (attempt, held) in &self.state().held {
            if held.phase != HeldPhase::Ended
                && held.is_overdue(now_ns)
                && held.control.borrow().stop < Some(Stop::LeaseExpired)
            {
                tracing::warn!(%attempt, "the lease is ending without a renewal: stopping the attempt");
                held.control.send_modify(|control| control.ask_stop(Stop::LeaseExpired));
            }
        }
    }

    /// Attempts that are not over, whether waiting or running.
    pub(crate) fn live_count(&self) -> u32 {
        let count = self.state().held.values().filter(|held| held.phase != HeldPhase::Ended).count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Whether new work is taken.
    pub(crate) fn is_accepting(&self) -> bool {
        let state = self.state();
        !state.draining && !state.engine_silent && !state.is_full
    }

    /// Notes whether the data directory's disk has room; what was noted before.
    pub(crate) fn set_room(&self, has_room: bool) -> bool {
        !std::mem::replace(&mut self.state().is_full, !has_room)
    }

    /// Whether the container engine answered last.
    pub(crate) fn engine_answers(&self) -> bool {
        !self.state().engine_silent
    }

    /// Notes whether the container engine answers; what was noted before.
    pub(crate) fn set_engine_answers(&self, answers: bool) -> bool {
        !std::mem::replace(&mut self.state().engine_silent, !answers)
    }

    /// Takes no new work, or takes it again.
    pub(crate) fn set_draining(&self, draining: bool) {
        self.state().draining = draining;
    }

    /// The link came up or went down.
    pub(crate) fn set_session(&self, session: Option<Session>) {
        self.session.set(session);
    }

    /// Follows the link's ups and downs.
    pub(crate) fn sessions(&self) -> Follower<Option<Session>> {
        self.session.follow()
    }

    /// Sends a frame if the link is up. What must not be lost is sent by the attempt's reporter instead.
    pub(crate) async fn say(&self, frame: ToCore) {
        let session = self.session.get();
        if let Some(session) = session {
            // A link that broke meanwhile makes a state report, which says the same.
            let _ = session.out.send(frame).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::JobId;

    use super::*;

    fn id(job: u64) -> AttemptId {
        AttemptId { job: JobId(job), task: 0, attempt: 1 }
    }

    const LEASE_MS: u64 = 30_000;
    const KILL_NS: u64 = 27_000_000_000;

    #[test]
    fn a_renewal_covers_what_was_held_when_it_was_sent() {
        let hub = Hub::new();
        let old = hub.hold(id(1), HeldPhase::Pending, LEASE_MS, Some(0)).unwrap();
        let renewal = hub.renewal();
        let young = hub.hold(id(2), HeldPhase::Pending, LEASE_MS, Some(0)).unwrap();
        hub.renew(renewal, 10);
        hub.expire(KILL_NS + 5);
        assert_eq!(old.borrow().stop, None);
        assert_eq!(young.borrow().stop, Some(Stop::LeaseExpired));
        hub.expire(KILL_NS + 10);
        assert_eq!(old.borrow().stop, Some(Stop::LeaseExpired));
        assert_eq!(*hub.renewed.borrow(), 10);
    }

    #[test]
    fn an_answer_that_comes_late_takes_nothing_away() {
        let hub = Hub::new();
        let control = hub.hold(id(1), HeldPhase::Pending, LEASE_MS, Some(0)).unwrap();
        let renewal = hub.renewal();
        hub.renew(renewal, 100);
        hub.renew(renewal, 50);
        hub.expire(KILL_NS + 99);
        assert_eq!(control.borrow().stop, None);
        assert_eq!(*hub.renewed.borrow(), 100);
    }

    #[test]
    fn ended_attempts_are_reported_but_not_renewed() {
        let hub = Hub::new();
        let control = hub.hold(id(1), HeldPhase::Running { started_at_us: 3 }, LEASE_MS, Some(0)).unwrap();
        assert_eq!(hub.renewal().live, live_hash([&id(1)]));
        hub.set_phase(id(1), HeldPhase::Ended);
        assert_eq!(hub.renewal().live, LiveSet::default());
        assert_eq!(hub.report(), [HeldAttempt { attempt: id(1), phase: HeldPhase::Ended }]);
        hub.expire(u64::MAX);
        assert_eq!(control.borrow().stop, None, "its container is gone, so no lease is needed");
    }

    #[test]
    fn only_what_has_not_begun_to_start_can_be_given_back() {
        let hub = Hub::new();
        let (kept, given) = (
            hub.hold(id(1), HeldPhase::Pending, LEASE_MS, Some(0)).unwrap(),
            hub.hold(id(2), HeldPhase::Pending, LEASE_MS, Some(0)).unwrap(),
        );
        assert!(hub.begin_start(id(1), 0));
        hub.recall(id(1));
        hub.recall(id(2));
        assert_eq!((kept.borrow().stop, given.borrow().stop), (None, Some(Stop::Recall)));
        assert!(!hub.begin_start(id(2), 0), "what was given back never starts");
        assert!(hub.hold(id(2), HeldPhase::Pending, LEASE_MS, Some(0)).is_none());
    }

    #[test]
    fn nothing_starts_on_an_old_lease() {
        let hub = Hub::new();
        let control = hub.hold(id(1), HeldPhase::Pending, LEASE_MS, Some(0)).unwrap();
        assert!(!hub.begin_start(id(1), KILL_NS));
        assert_eq!(control.borrow().stop, Some(Stop::LeaseExpired));
    }

    #[test]
    fn an_unconfirmed_attempt_neither_starts_nor_expires() {
        let hub = Hub::new();
        let waiting = hub.hold(id(1), HeldPhase::Pending, LEASE_MS, None).unwrap();
        hub.expire(u64::MAX);
        assert_eq!(waiting.borrow().stop, None);
        let (renewal, now_ns) = (hub.renewal(), 5 * KILL_NS);
        hub.renew(renewal, now_ns);
        assert!(waiting.borrow().confirmed && hub.begin_start(id(1), now_ns + 1));
        let other = hub.hold(id(2), HeldPhase::Pending, LEASE_MS, None).unwrap();
        assert!(!hub.begin_start(id(2), now_ns), "not before a renewal");
        assert!(!other.borrow().confirmed);
    }

    #[test]
    fn the_stronger_reason_to_stop_stays() {
        let mut control = Control::default();
        control.ask_stop(Stop::Abandon);
        control.ask_stop(Stop::Cancel { grace_ms: 5 });
        assert_eq!(control.stop, Some(Stop::Abandon));
        assert!(control.is_over());
    }
}
