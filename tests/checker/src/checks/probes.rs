//! I12: what is not listed is denied.

use crate::history::{Entry, Op, Verdict};
use crate::report::{Invariant, Report};

pub(super) fn check(history: &[Entry], report: &mut Report) {
    let finding = report.at(Invariant::I12);
    for entry in history {
        let Op::Probe(probe) = &entry.op else { continue };
        if entry.result == Verdict::Unknown {
            finding.unknown += 1;
            continue;
        }
        let denied = match probe.status {
            Some(status) => probe.denied_by.contains(&status),
            None => probe.denied_by.is_empty(),
        };
        finding.expect(denied, || format!("{} was answered with {:?}", probe.what, probe.status));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use crate::history::Probe;

    #[test]
    fn an_open_route_and_an_answered_stranger_are_found() {
        let probe = |denied_by: &[u16], status| {
            entry(1, Op::Probe(Probe { what: "GET /jobs".into(), denied_by: denied_by.to_vec(), status }))
        };
        broken(&[], |history, _, _| history.extend([probe(&[401], Some(401)), probe(&[], None)]));
        broken(&[Invariant::I12], |history, _, _| history.push(probe(&[401], Some(200))));
        broken(&[Invariant::I12], |history, _, _| history.push(probe(&[], Some(0))));
        broken(&[Invariant::I12], |history, _, _| history.push(probe(&[401], None)));
    }
}
