//! Which sandbox is joined by whom, and what has to be made or removed: decisions only.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use swarm_protocol::GroupId;
use tokio::time::Instant;

use crate::runtime::ContainerId;

/// A group keeps an idle sandbox so long before another group's need ends it: a new one costs more than it saves once.
pub(super) const KEPT_IDLE: Duration = Duration::from_secs(30);

/// What is to be done; each is told of by [`Pool::made`], [`Pool::end`] or [`Pool::removed`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Make(u64),
    Remove(u64),
}

#[derive(Debug)]
struct Sandbox {
    state: State,
    /// Whose jobs have joined it; no other group's ever will.
    group: Option<GroupId>,
    joins: u32,
}

#[derive(Debug)]
enum State {
    Making,
    Idle {
        id: ContainerId,
        since: Instant,
    },
    Joined {
        id: ContainerId,
    },
    /// To be removed, if it exists at all.
    Over,
}

/// See the module. Sandboxes are numbered, and no number is used twice.
#[derive(Debug)]
pub(super) struct Pool {
    all: BTreeMap<u64, Sandbox>,
    made: u64,
    joins_max: u32,
}

impl Pool {
    /// An empty one; each sandbox is renewed after `joins_max` joins.
    pub(super) fn new(joins_max: u32) -> Self {
        Self { all: BTreeMap::new(), made: 0, joins_max }
    }

    /// A sandbox for one job of `group` until [`leave`](Self::leave): the group's own that was used last, else one that
    /// nobody has joined. Where only other groups have one idle, the longest unused of them may end.
    pub(super) fn join(&mut self, group: GroupId, now: Instant) -> Option<(u64, ContainerId)> {
        let own = self.idle().filter(|(_, owner, _)| *owner == Some(group)).max_by_key(|(.., since)| *since);
        let fresh = || self.idle().find(|(_, owner, _)| owner.is_none());
        let Some((number, ..)) = own.or_else(fresh) else {
            let idlest = self.idle().min_by_key(|(.., since)| *since);
            if let Some((number, ..)) = idlest.filter(|(.., since)| now - *since >= KEPT_IDLE) {
                self.end(number);
            }
            return None;
        };
        let sandbox = self.all.get_mut(&number)?;
        let State::Idle { id, .. } = &sandbox.state else { return None };
        let id = id.clone();
        (sandbox.group, sandbox.joins) = (Some(group), sandbox.joins + 1);
        sandbox.state = State::Joined { id: id.clone() };
        Some((number, id))
    }

    /// Number, group and begin of idleness of each that nobody is in.
    fn idle(&self) -> impl Iterator<Item = (u64, Option<GroupId>, Instant)> {
        self.all.iter().filter_map(|(number, sandbox)| match sandbox.state {
            State::Idle { since, .. } => Some((*number, sandbox.group, since)),
            _ => None,
        })
    }

    /// The job that had joined it is gone.
    pub(super) fn leave(&mut self, number: u64, now: Instant) {
        let Some(sandbox) = self.all.get_mut(&number) else { return };
        if let State::Joined { id } = &sandbox.state {
            let idle = State::Idle { id: id.clone(), since: now };
            sandbox.state = if sandbox.joins < self.joins_max { idle } else { State::Over };
        }
    }

    /// What brings the pool to `target` sandboxes, and never beyond: one that is over counts until it is removed.
    pub(super) fn acts(&mut self, target: usize) -> Vec<Act> {
        let idle: Vec<u64> = self.idle().map(|(number, ..)| number).collect();
        let wanted = self.all.values().filter(|sandbox| !matches!(sandbox.state, State::Over)).count();
        idle.into_iter().take(wanted.saturating_sub(target)).for_each(|number| self.end(number));
        let over = self.all.iter().filter(|(_, sandbox)| matches!(sandbox.state, State::Over));
        let mut acts: Vec<Act> = over.map(|(number, _)| Act::Remove(*number)).collect();
        for _ in self.all.len()..target {
            self.made += 1;
            self.all.insert(self.made, Sandbox { state: State::Making, group: None, joins: 0 });
            acts.push(Act::Make(self.made));
        }
        acts
    }

    /// It runs.
    pub(super) fn made(&mut self, number: u64, id: ContainerId, now: Instant) {
        if let Some(sandbox) = self.all.get_mut(&number) {
            sandbox.state = State::Idle { id, since: now };
        }
    }

    /// It serves nobody any more.
    pub(super) fn end(&mut self, number: u64) {
        if let Some(sandbox) = self.all.get_mut(&number) {
            sandbox.state = State::Over;
        }
    }

    /// The engine holds it no more.
    pub(super) fn removed(&mut self, number: u64) {
        self.all.remove(&number);
    }

    /// Ends the idle ones that are not among those that run.
    pub(super) fn keep_only(&mut self, running: &BTreeSet<u64>) {
        let dead: Vec<u64> =
            self.idle().map(|(number, ..)| number).filter(|number| !running.contains(number)).collect();
        dead.into_iter().for_each(|number| self.end(number));
    }

    /// Ends all of them, and says which there were.
    pub(super) fn end_all(&mut self) -> Vec<u64> {
        let all: Vec<u64> = self.all.keys().copied().collect();
        all.iter().for_each(|number| self.end(*number));
        all
    }

    /// Whether it is there, being made or being removed.
    pub(super) fn knows(&self, number: u64) -> bool {
        self.all.contains_key(&number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: GroupId = GroupId(1);
    const B: GroupId = GroupId(2);

    fn pool(target: usize, joins_max: u32) -> (Pool, Instant) {
        let (mut pool, now) = (Pool::new(joins_max), Instant::now());
        settle(&mut pool, target, now);
        (pool, now)
    }

    /// Carries acts out until there are none; gives how many.
    fn settle(pool: &mut Pool, target: usize, now: Instant) -> usize {
        let mut done = 0;
        loop {
            let acts = pool.acts(target);
            if acts.is_empty() {
                return done;
            }
            for act in acts {
                done += 1;
                match act {
                    Act::Make(number) => pool.made(number, ContainerId(format!("c{number}")), now),
                    Act::Remove(number) => pool.removed(number),
                }
            }
        }
    }

    fn numbers(pool: &Pool) -> Vec<u64> {
        pool.all.keys().copied().collect()
    }

    #[test]
    fn one_job_at_a_time() {
        let (mut pool, now) = pool(1, 10);
        let (number, id) = pool.join(A, now).unwrap();
        assert_eq!((number, id), (1, ContainerId("c1".into())));
        assert_eq!(pool.join(A, now), None);
        pool.leave(number, now);
        assert_eq!(pool.join(A, now).unwrap().0, number);
    }

    #[test]
    fn a_group_never_gets_what_another_one_had() {
        let (mut pool, now) = pool(2, 10);
        let (first, _) = pool.join(A, now).unwrap();
        pool.leave(first, now);
        let (second, _) = pool.join(B, now).unwrap();
        pool.leave(second, now);
        assert_ne!(first, second);
        assert_eq!(pool.join(B, now).unwrap().0, second);
        assert_eq!(pool.join(B, now), None, "the other one is group A's");
        assert_eq!(pool.join(A, now).unwrap().0, first, "which is its still");
    }

    #[test]
    fn what_a_group_has_left_alone_for_long_makes_room_for_another_group() {
        let (mut pool, now) = pool(1, 10);
        let (first, _) = pool.join(A, now).unwrap();
        pool.leave(first, now);
        let later = now + KEPT_IDLE;
        assert_eq!(pool.join(B, later - Duration::from_millis(1)), None);
        assert!(pool.acts(1).is_empty(), "not yet");
        assert_eq!(pool.join(B, later), None);
        assert_eq!(settle(&mut pool, 1, later), 2);
        assert_eq!(pool.join(B, later).unwrap().0, 2);
    }

    #[test]
    fn it_is_renewed_after_so_many_joins() {
        let (mut pool, now) = pool(1, 2);
        for _ in 0..2 {
            let (number, _) = pool.join(A, now).unwrap();
            pool.leave(number, now);
        }
        assert_eq!(pool.join(A, now), None);
        assert_eq!(pool.acts(1), [Act::Remove(1)], "it counts until it is gone");
        pool.removed(1);
        assert_eq!(pool.acts(1), [Act::Make(2)]);
    }

    #[test]
    fn the_dead_are_replaced_and_the_joined_are_left_to_their_job() {
        let (mut pool, now) = pool(2, 10);
        let (joined, _) = pool.join(A, now).unwrap();
        pool.keep_only(&BTreeSet::new());
        assert_eq!(settle(&mut pool, 2, now), 2);
        assert_eq!(numbers(&pool), [joined, 3]);
        pool.end(joined);
        pool.leave(joined, now);
        settle(&mut pool, 2, now);
        assert_eq!(numbers(&pool), [3, 4], "what could not be joined does not come back");
    }

    #[test]
    fn a_smaller_target_ends_idle_ones_only() {
        let (mut pool, now) = pool(3, 10);
        let (joined, _) = pool.join(A, now).unwrap();
        settle(&mut pool, 0, now);
        assert_eq!(numbers(&pool), [joined]);
        pool.leave(joined, now);
        settle(&mut pool, 0, now);
        assert!(numbers(&pool).is_empty());
    }
}
