//! Why a task is not placed now: every worker with its complete reason, the most hopeful worker first.

use std::sync::Arc;

use swarm_protocol::api::{Warning, WhyReason};
use swarm_protocol::labels::{Labels, has_all};
use swarm_protocol::spec::Resources;

use super::fit::{INPUTS, REQUIRE, bytes, cores, misfit};
use super::place::Amount;
use crate::messages::Shape;

/// Whether a worker takes new work, and if not, why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Ready,
    /// Linked, but its state report has not been judged yet.
    Joining,
    /// It says itself that it takes nothing now.
    Declining,
    /// Drained by an operator.
    Draining,
    /// Linked, but not heard of for so many milliseconds.
    Suspect {
        /// Milliseconds of silence.
        silence_ms: u64,
    },
    /// Not linked.
    Offline,
    /// Its key was revoked.
    Revoked,
}

/// One worker as the reasons need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// For people.
    pub name: String,
    /// Whether it takes new work.
    pub standing: Standing,
    /// What it offers.
    pub capacity: Amount,
    /// What it has promised.
    pub used: Amount,
    /// What it is known by; none while it has never said.
    pub labels: Option<Arc<Labels>>,
    /// What its link speaks; none while it is not linked.
    pub link_version: Option<u8>,
}

impl Subject {
    /// Whether it has these labels, as far as is known.
    pub(super) fn may_have(&self, require: &Labels) -> bool {
        self.labels.as_ref().is_none_or(|labels| has_all(labels, require))
    }

    /// Whether it understands orders of this link version, as far as is known.
    pub(super) fn may_speak(&self, link_version: u8) -> bool {
        self.link_version.is_none_or(|speaks| speaks >= link_version)
    }
}

/// How far a worker is from taking the task; the lower, the more hopeful. The order of the variants is the order shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Hope {
    /// Room comes when running tasks end.
    Busy,
    /// Takes work soon, or again when it is told to.
    Standing,
    /// Not there.
    Away,
    /// Would never fit.
    Never,
}

/// Every worker's reason, the most hopeful first; empty when the task would fit somewhere now.
#[must_use]
pub fn why(workers: &[Subject], shape: &Shape) -> Vec<WhyReason> {
    let room = |worker: &Subject| worker.capacity.minus(worker.used).fits(shape.needs);
    let labelled = |worker: &Subject| lacks(worker.labels.as_deref(), &shape.require).is_empty();
    let fits = |worker: &Subject| {
        worker.standing == Standing::Ready && room(worker) && labelled(worker) && worker.may_speak(shape.link_version)
    };
    if workers.iter().any(fits) {
        return Vec::new();
    }
    if workers.is_empty() {
        let text = "no worker has joined the swarm yet".to_owned();
        return vec![WhyReason { code: "no-worker".into(), text, worker: None }];
    }
    let mut judged: Vec<_> = workers.iter().map(|worker| judge(worker, shape)).collect();
    judged.sort_by(|a, b| (a.0, &a.1.worker).cmp(&(b.0, &b.1.worker)));
    let mut reasons = nowhere(workers, shape);
    reasons.extend(judged.into_iter().map(|(_, reason)| reason));
    reasons
}

/// What would change it, by the reasons [`why`] gave.
#[must_use]
pub fn hint(reasons: &[WhyReason]) -> Option<String> {
    let code = |code: &str| reasons.iter().any(|reason| reason.code == code);
    let hint = match reasons.first()?.code.as_str() {
        "no-worker" => "start a worker, or let one join",
        "too-big" => "ask for less, or add a bigger worker",
        "version" => "update a worker, or give the job files instead of directories",
        "label" => "require what a worker has, or start one with these labels, by --label KEY=VALUE",
        "cpu" | "memory" | "slots" => "it starts when running tasks end; a further worker makes it start sooner",
        _ if code("draining") => "resume a drained worker, or add one",
        _ => "bring a worker back, or add one",
    };
    Some(hint.to_owned())
}

/// The reason that concerns all workers: none is new enough or has the labels, or none that has them is big enough.
fn nowhere(workers: &[Subject], shape: &Shape) -> Vec<WhyReason> {
    let reason = |misfit: Warning| {
        let code = match misfit.field.as_str() {
            INPUTS => "version",
            field if field.starts_with(REQUIRE) => "label",
            _ => "too-big",
        };
        WhyReason { code: code.into(), text: misfit.problem, worker: None }
    };
    misfit(workers, shape).map(reason).into_iter().collect()
}

fn judge(worker: &Subject, shape: &Shape) -> (Hope, WhyReason) {
    let needs = shape.needs;
    let (hope, code, text) = match worker.standing {
        Standing::Revoked => (Hope::Never, "revoked", "its key was revoked".to_owned()),
        Standing::Offline => (Hope::Away, "offline", "it is offline".to_owned()),
        Standing::Suspect { silence_ms } => {
            (Hope::Away, "suspect", format!("it has been silent for {} s", silence_ms / 1000))
        }
        Standing::Draining => (Hope::Standing, "draining", "it is being drained".to_owned()),
        Standing::Declining => (Hope::Standing, "draining", "it takes no new work at the moment".to_owned()),
        Standing::Joining => (Hope::Standing, "joining", "it is joining".to_owned()),
        Standing::Ready => (Hope::Busy, "", String::new()),
    };
    let (never, short) = (shortages(worker.capacity, needs), shortages(worker.capacity.minus(worker.used), needs));
    let unknown = worker.capacity == Amount::default();
    let missing = lacks(worker.labels.as_deref(), &shape.require);
    let (hope, own, room) = match (never.first(), short.first()) {
        _ if !worker.may_speak(shape.link_version) => (Hope::Never, "version", too_old(worker, shape.link_version)),
        _ if !missing.is_empty() => {
            (if worker.labels.is_some() { Hope::Never } else { hope }, "label", missing.join(", "))
        }
        (Some((code, _)), _) if !unknown => (Hope::Never, *code, words("never big enough: ", &never)),
        (_, Some((code, _))) if !unknown => (hope, *code, words("", &short)),
        _ => (hope, code, String::new()),
    };
    let code = if code.is_empty() { own } else { code };
    let text = [text, room].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ");
    (hope, WhyReason { code: code.to_owned(), text, worker: Some(worker.name.clone()) })
}

fn too_old(worker: &Subject, link_version: u8) -> String {
    let speaks = worker.link_version.unwrap_or_default();
    format!("it speaks link version {speaks}, and to unpack input directories takes {link_version}")
}

fn words(prefix: &str, shortages: &[(&'static str, String)]) -> String {
    let texts: Vec<&str> = shortages.iter().map(|(_, text)| text.as_str()).collect();
    format!("{prefix}{}", texts.join(", "))
}

/// Each label required that is not among `labels`, or has another value there. A worker that never said which it has
/// gets nothing that requires any.
fn lacks(labels: Option<&Labels>, require: &Labels) -> Vec<String> {
    let Some(labels) = labels else {
        let unknown = || vec!["it has not said yet which labels it has".to_owned()];
        return if require.is_empty() { Vec::new() } else { unknown() };
    };
    let missing = require.iter().filter_map(|(name, value)| match labels.get(name) {
        Some(has) if has == value => None,
        Some(has) => Some(format!("its label `{name}` is `{has}`, not `{value}`")),
        None => Some(format!("it has no label `{name}={value}`")),
    });
    missing.collect()
}

/// What `free` lacks for one task.
fn shortages(free: Amount, needs: Resources) -> Vec<(&'static str, String)> {
    let mut short = Vec::new();
    let cpu = u64::from(needs.cpu_millis);
    if free.cpu_millis < cpu {
        let by = cores(cpu - free.cpu_millis);
        short.push(("cpu", format!("{by} cores short ({} of {} free)", cores(free.cpu_millis), cores(cpu))));
    }
    if free.memory_bytes < needs.memory_bytes {
        let by = bytes(needs.memory_bytes - free.memory_bytes);
        short.push(("memory", format!("{by} of memory short ({} free)", bytes(free.memory_bytes))));
    }
    if free.slots == 0 {
        short.push(("slots", "no free slot".to_owned()));
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::labels;

    const GIB: u64 = 1 << 30;

    fn worker(name: &str, standing: Standing, cores: u64, gib: u64) -> Subject {
        let capacity = Amount { cpu_millis: cores * 1000, memory_bytes: gib * GIB, slots: 4 };
        let labels = Some(labels(&[]));
        Subject { name: name.to_owned(), standing, capacity, used: Amount::default(), labels, link_version: Some(4) }
    }

    fn shape(cpu_millis: u32, memory_bytes: u64) -> Shape {
        Shape { needs: Resources { cpu_millis, memory_bytes }, ..Shape::default() }
    }

    fn told(workers: &[Subject], cpu_millis: u32, memory_bytes: u64) -> Vec<(String, String)> {
        told_of(workers, &shape(cpu_millis, memory_bytes))
    }

    fn told_of(workers: &[Subject], shape: &Shape) -> Vec<(String, String)> {
        let reasons = why(workers, shape);
        let text = |r: WhyReason| (r.code, format!("{}: {}", r.worker.unwrap_or_else(|| "swarm".into()), r.text));
        reasons.into_iter().map(text).collect()
    }

    #[test]
    fn a_task_that_fits_somewhere_has_no_reason() {
        let workers = [worker("a", Standing::Offline, 4, 4), worker("b", Standing::Ready, 4, 4)];
        assert!(told(&workers, 1000, GIB).is_empty());
    }

    #[test]
    fn every_worker_has_its_complete_reason_the_most_hopeful_first() {
        let mut busy = worker("busy", Standing::Ready, 4, 8);
        busy.used = Amount { cpu_millis: 3500, memory_bytes: 7 * GIB, slots: 4 };
        let mut suspect = worker("silent", Standing::Suspect { silence_ms: 31_400 }, 4, 8);
        suspect.used.memory_bytes = 7 * GIB;
        let workers = [
            worker("small", Standing::Ready, 1, 1),
            worker("gone", Standing::Offline, 4, 8),
            suspect,
            worker("drained", Standing::Draining, 4, 8),
            busy,
        ];
        assert_eq!(
            told(&workers, 2000, 2 * GIB),
            [
                (
                    "cpu".into(),
                    "busy: 1.5 cores short (0.5 of 2 free), 1 GiB of memory short (1 GiB free), no free slot"
                        .to_owned()
                ),
                ("draining".into(), "drained: it is being drained".to_owned()),
                ("offline".into(), "gone: it is offline".to_owned()),
                (
                    "suspect".into(),
                    "silent: it has been silent for 31 s; 1 GiB of memory short (1 GiB free)".to_owned()
                ),
                (
                    "cpu".into(),
                    "small: never big enough: 1 cores short (1 of 2 free), 1 GiB of memory short (1 GiB free)"
                        .to_owned()
                ),
            ]
        );
    }

    #[test]
    fn a_worker_without_a_label_says_which_it_lacks() {
        let with = |worker: Subject, pairs: &[(&str, &str)]| Subject { labels: Some(labels(pairs)), ..worker };
        let shape = Shape { require: labels(&[("gpu", "nvidia"), ("zone", "a")]), ..shape(1000, GIB) };
        let mut workers = vec![
            with(worker("bare", Standing::Ready, 4, 4), &[]),
            with(worker("other", Standing::Offline, 4, 4), &[("gpu", "nvidia"), ("zone", "b")]),
        ];
        let lacking = [
            ("label".to_owned(), "bare: it has no label `gpu=nvidia`, it has no label `zone=a`".to_owned()),
            ("offline".to_owned(), "other: it is offline; its label `zone` is `b`, not `a`".to_owned()),
        ];
        let nowhere = ("label".to_owned(), "swarm: no worker has the label `zone=a`".to_owned());
        assert_eq!(told_of(&workers, &shape), [&[nowhere][..], &lacking].concat());
        assert!(hint(&why(&workers, &shape)).unwrap().contains("--label"));
        let mut full = with(worker("full", Standing::Ready, 4, 4), &[("gpu", "nvidia"), ("zone", "a")]);
        full.used.cpu_millis = 4000;
        workers.push(full);
        let busy = ("cpu".to_owned(), "full: 1 cores short (0 of 1 free)".to_owned());
        assert_eq!(told_of(&workers, &shape), [&[busy][..], &lacking].concat());
        workers[2].used.cpu_millis = 0;
        assert!(told_of(&workers, &shape).is_empty());
    }

    #[test]
    fn a_worker_too_old_for_the_order_says_so() {
        let old = |worker: Subject| Subject { link_version: Some(3), ..worker };
        let shape = Shape { link_version: 4, ..shape(1000, GIB) };
        let mut workers = vec![old(worker("old", Standing::Ready, 4, 4))];
        let said =
            ("version".to_owned(), "old: it speaks link version 3, and to unpack input directories takes 4".to_owned());
        let nowhere = ("version".to_owned(), "swarm: no worker is new enough to unpack input directories".to_owned());
        assert_eq!(told_of(&workers, &shape), [nowhere, said.clone()]);
        assert!(hint(&why(&workers, &shape)).unwrap().contains("update a worker"));
        workers.push(Subject { link_version: None, ..worker("gone", Standing::Offline, 4, 4) });
        assert_eq!(told_of(&workers, &shape), [("offline".to_owned(), "gone: it is offline".to_owned()), said]);
        workers.push(worker("new", Standing::Ready, 4, 4));
        assert!(told_of(&workers, &shape).is_empty());
    }

    #[test]
    fn what_no_worker_can_ever_take_is_said_first() {
        let workers = [worker("a", Standing::Ready, 8, 24), worker("b", Standing::Ready, 8, 16)];
        let reasons = why(&workers, &shape(1000, 64 * GIB));
        assert_eq!(reasons[0].text, "a task needs 64 GiB of memory; the largest worker, a, has 24 GiB");
        assert_eq!(reasons.len(), 3);
        assert!(hint(&reasons).unwrap().contains("less"));
        let reasons = why(&[], &Shape::default());
        assert_eq!(reasons[0].code, "no-worker");
        assert!(hint(&reasons).unwrap().contains("worker"));
        assert_eq!(hint(&[]), None);
    }
}
