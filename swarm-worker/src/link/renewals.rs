//! Renewals on their way: what was sent when, until it is answered.

use std::collections::VecDeque;

use crate::hub::Renewal;

/// Unanswered renewals kept; older ones are as good as lost.
const KEPT_MAX: usize = 64;

/// The renewals of one channel (link or heartbeats) within one session, numbered from 1.
#[derive(Debug, Default)]
pub(crate) struct Renewals {
    last: u64,
    sent: VecDeque<(u64, Renewal, u64)>,
}

impl Renewals {
    /// Notes a renewal about to be sent at `now_ns`, and gives it its number.
    pub(crate) fn send(&mut self, renewal: Renewal, now_ns: u64) -> u64 {
        self.last += 1;
        self.sent.push_back((self.last, renewal, now_ns));
        if self.sent.len() > KEPT_MAX {
            self.sent.pop_front();
        }
        self.last
    }

    /// The renewal that is answered, and when it was sent; each answers once. Earlier ones need no answer any more.
    pub(crate) fn answer(&mut self, seq: u64) -> Option<(Renewal, u64)> {
        while let Some((number, renewal, sent_ns)) = self.sent.pop_front() {
            if number == seq {
                return Some((renewal, sent_ns));
            }
            if number > seq {
                self.sent.push_front((number, renewal, sent_ns));
                return None;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::link::LiveSet;

    use super::*;

    #[test]
    fn an_answer_counts_from_the_send_time_and_once() {
        let renewal = |generation| Renewal { live: LiveSet::default(), generation };
        let mut renewals = Renewals::default();
        assert_eq!(renewals.send(renewal(1), 100), 1);
        assert_eq!(renewals.send(renewal(2), 200), 2);
        assert_eq!(renewals.send(renewal(3), 300), 3);
        let (answered, sent_ns) = renewals.answer(2).unwrap();
        assert_eq!((answered.generation, sent_ns), (2, 200));
        assert!(renewals.answer(2).is_none());
        assert!(renewals.answer(1).is_none(), "older than one answered");
        assert!(renewals.answer(9).is_none(), "a number never sent takes the rest with it");
        assert!(renewals.answer(3).is_none());
        for n in 0..1000 {
            renewals.send(renewal(n), n);
        }
        assert!(renewals.sent.len() <= KEPT_MAX);
    }
}
