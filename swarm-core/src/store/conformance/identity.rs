//! Accounts, tokens, workers.

use swarm_protocol::labels::Labels;
use swarm_protocol::link::WorkerFacts;

use super::*;

fn token(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

pub(super) fn accounts_are_unique_and_can_be_reset(bench: &Bench) {
    assert!(is_conflict(&bench.apply(new_user("ada", "chemistry"))));
    let (bob, group) = bench.user("bob", "physics");
    assert_eq!(group, bench.group, "a known group is joined");
    let issue = |hash: &str, token_version| Transition::IssueRefresh {
        hash: token(hash),
        family: uuid::Uuid::new_v4(),
        user: bob,
        token_version,
        expires_at: at(99),
        replaces: None,
    };
    bench.apply(issue("r", 0)).unwrap();
    bench.apply(Transition::ResetUser { user: bob, password_hash: None }).unwrap();
    let record = bench.store.user("bob").unwrap().unwrap();
    assert_eq!((record.token_version, record.password_hash.as_str()), (1, "$argon2id$x"));
    assert_eq!((record.role, record.group_name.as_str(), record.created_at), (Role::Consumer, "physics", at(0)));
    assert!(bench.store.refresh_token(&token("r")).unwrap().unwrap().revoked);
    assert!(is_stale(&bench.apply(issue("late", 0))), "a login that a reset overtook");
    assert!(bench.store.refresh_token(&token("late")).unwrap().is_none());
    bench.apply(issue("new", 1)).unwrap();
    bench.apply(Transition::ResetUser { user: bob, password_hash: Some("new".to_owned()) }).unwrap();
    let record = bench.store.user("bob").unwrap().unwrap();
    assert_eq!((record.token_version, record.password_hash.as_str()), (2, "new"));
    assert!(is_not_found(&bench.apply(Transition::ResetUser { user: UserId(99), password_hash: None })));
    let names: Vec<_> = bench.store.users().unwrap().into_iter().map(|user| (user.name, user.token_version)).collect();
    assert_eq!(names, [("ada".to_owned(), 0), ("bob".to_owned(), 2)]);
    assert!(bench.store.user("eve").unwrap().is_none());
}

pub(super) fn root_is_allowed_to_a_group_and_taken_back(bench: &Bench) {
    let job = bench.job(1);
    let allowed = || bench.store.job(job).unwrap().unwrap().allow_root;
    assert!(!allowed());
    for allow_root in [true, false] {
        bench.apply(Transition::AllowRoot { group: bench.group, allow_root }).unwrap();
        assert_eq!(allowed(), allow_root);
    }
    assert!(is_not_found(&bench.apply(Transition::AllowRoot { group: GroupId(99), allow_root: true })));
}

pub(super) fn failed_logins_are_counted(bench: &Bench) {
    let note = |failed, second| Transition::NoteLogin { user: bench.owner, failed, at: at(second) };
    bench.commit(&[note(true, 1), note(true, 2)]).unwrap();
    let record = bench.store.user("ada").unwrap().unwrap();
    assert_eq!((record.failed_logins, record.last_failed_at), (2, Some(at(2))));
    bench.apply(note(false, 3)).unwrap();
    let record = bench.store.user("ada").unwrap().unwrap();
    assert_eq!((record.failed_logins, record.last_failed_at), (0, None));
    assert!(is_not_found(&bench.apply(Transition::NoteLogin { user: UserId(99), failed: true, at: at(4) })));
}

pub(super) fn a_refresh_token_is_used_once(bench: &Bench) {
    let family = uuid::Uuid::new_v4();
    let issue = |hash: &str, replaces: Option<&str>, family| Transition::IssueRefresh {
        hash: token(hash),
        family,
        user: bench.owner,
        token_version: 0,
        expires_at: at(99),
        replaces: replaces.map(token),
    };
    let read = |hash: &str| bench.store.refresh_token(&token(hash)).unwrap();
    bench.apply(issue("a", None, family)).unwrap();
    assert!(is_stale(&bench.apply(issue("x", Some("a"), uuid::Uuid::new_v4()))), "of another family");
    assert_eq!(bench.apply(issue("b", Some("a"), family)), Ok(Applied::Done));
    assert!(is_stale(&bench.apply(issue("c", Some("a"), family))), "used already");
    assert!(is_stale(&bench.apply(issue("c", Some("never made"), family))));
    let (a, b) = (read("a").unwrap(), read("b").unwrap());
    assert_eq!((a.used, b.used, b.revoked), (true, false, false));
    assert_eq!((b.family, b.user_name.as_str(), b.expires_at), (family, "ada", at(99)));
    assert!(read("c").is_none() && read("x").is_none(), "a refused exchange makes no token");
    assert_eq!(bench.apply(Transition::RevokeFamily { family }), Ok(Applied::Done));
    assert!(read("b").unwrap().revoked);
    assert!(is_stale(&bench.apply(issue("d", Some("b"), family))), "revoked");
    assert!(is_not_found(&bench.apply(Transition::RevokeFamily { family: uuid::Uuid::new_v4() })));
}

pub(super) fn jwts_are_revoked_until_they_expire(bench: &Bench) {
    let [open, over] = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
    let revoke = |jti, second| Transition::RevokeJwt { jti, expires_at: at(second) };
    let verdicts = bench.commit(&[revoke(open, 60), revoke(open, 60), revoke(over, 50)]).unwrap();
    assert!(verdicts.iter().all(Result::is_ok));
    assert_eq!(bench.store.revoked_jwts(at(50)).unwrap(), [(open, at(60))]);
    assert_eq!(bench.store.revoked_jwts(at(49)).unwrap().len(), 2);
}

pub(super) fn what_has_expired_is_removed_a_few_at_a_time(bench: &Bench) {
    let family = uuid::Uuid::new_v4();
    for second in 1..=5 {
        let (hash, expires_at) = (token(&format!("refresh {second}")), at(second));
        let (user, token_version, replaces) = (bench.owner, 0, None);
        bench.apply(Transition::IssueRefresh { hash, family, user, token_version, expires_at, replaces }).unwrap();
        let (hash, worker) = (token(&format!("join {second}")), format!("worker-{second}"));
        bench.apply(Transition::CreateJoinToken { hash, worker, expires_at }).unwrap();
        bench.apply(Transition::RevokeJwt { jti: uuid::Uuid::new_v4(), expires_at }).unwrap();
    }
    let purge = |second| match bench.apply(Transition::PurgeExpired { before: at(second), rows_max: 2 }) {
        Ok(Applied::Purged(rows)) => rows,
        other => panic!("{other:?}"),
    };
    assert_eq!([purge(1), purge(4), purge(4), purge(4)], [0, 6, 3, 0]);
    let left: Vec<_> = (1..=5)
        .filter(|second| bench.store.refresh_token(&token(&format!("refresh {second}"))).unwrap().is_some())
        .collect();
    assert_eq!(left, [4, 5]);
    assert_eq!(bench.store.revoked_jwts(at(0)).unwrap().len(), 2);
    let join = |second: i64| Transition::JoinWorker {
        token: token(&format!("join {second}")),
        worker: format!("worker-{second}"),
        key: token(&format!("key {second}")),
        at: at(0),
    };
    assert!(is_stale(&bench.apply(join(3))), "gone");
    assert!(matches!(bench.apply(join(4)), Ok(Applied::Worker(_))));
}

pub(super) fn a_join_token_is_good_once_in_time_for_its_name(bench: &Bench) {
    let create = Transition::CreateJoinToken { hash: token("t"), worker: "w3".to_owned(), expires_at: at(50) };
    assert_eq!(bench.apply(create.clone()), Ok(Applied::Done));
    assert!(is_conflict(&bench.apply(create)));
    let join = |secret: &str, worker: &str, key: &str, second| Transition::JoinWorker {
        token: token(secret),
        worker: worker.to_owned(),
        key: token(key),
        at: at(second),
    };
    assert!(is_stale(&bench.apply(join("t", "w4", "k", 20))), "another name");
    assert!(is_stale(&bench.apply(join("u", "w3", "k", 20))), "unknown");
    assert!(is_stale(&bench.apply(join("t", "w3", "k", 50))), "expired");
    assert!(is_conflict(&bench.apply(join("t", "w3", "w1", 20))), "another worker's key");
    let joined = bench.apply(join("t", "w3", "k", 49));
    assert!(matches!(joined, Ok(Applied::Worker(_))), "refusals leave the token unused: {joined:?}");
    assert!(is_stale(&bench.apply(join("t", "w3", "k", 49))), "used");
    assert_eq!(bench.store.workers().unwrap().len(), 3);
}

pub(super) fn a_worker_keeps_its_name_and_key(bench: &Bench) {
    let add = |worker: &str, key: &str| bench.join(worker, token(key));
    assert_eq!(add("w1", "w1"), Ok(Applied::Worker(bench.workers[0])), "the same again");
    assert_eq!(add("w1", "fresh"), Ok(Applied::Worker(bench.workers[0])), "a new key");
    assert_eq!(bench.store.workers().unwrap()[0].key, token("fresh"));
    assert!(is_conflict(&add("w2", "fresh")), "another one's key");
    bench.apply(Transition::RevokeWorker { worker: bench.workers[0] }).unwrap();
    assert!(is_conflict(&add("w1", "newer")), "revoked for good");
    assert_eq!(add("w3", "k3"), Ok(Applied::Worker(WorkerId(bench.workers[1].0 + 1))));
}

pub(super) fn what_a_worker_says_of_itself_is_kept(bench: &Bench) {
    let [first, second] = bench.worker_ids();
    let facts = |cpu_millis| WorkerFacts { cpu_millis, os: "linux".to_owned(), ..WorkerFacts::default() };
    for cpu_millis in [1000, 2000] {
        bench.apply(Transition::NoteFacts { worker: first, facts: facts(cpu_millis) }).unwrap();
    }
    let known =
        || -> Vec<_> { bench.store.workers().unwrap().into_iter().map(|worker| (worker.id, worker.facts)).collect() };
    assert_eq!(known(), [(first, Some(facts(2000))), (second, None)]);
    assert!(is_not_found(&bench.apply(Transition::NoteFacts { worker: WorkerId(99), facts: facts(1) })));
    let mut conn = bench.connection();
    conn.execute("UPDATE workers SET facts = '{\"of\": \"another release\"}'").unwrap();
    assert_eq!(known()[0], (first, None), "said anew at the next link");
}

pub(super) fn the_labels_of_a_worker_are_kept(bench: &Bench) {
    let [first, second] = bench.worker_ids();
    let zone = |value: &str| Labels::from([("zone".to_owned(), value.to_owned())]);
    let known =
        || -> Vec<_> { bench.store.workers().unwrap().into_iter().map(|worker| (worker.id, worker.labels)).collect() };
    assert_eq!(known(), [(first, None), (second, None)]);
    for labels in [zone("a"), zone("b\" ü")] {
        bench.apply(Transition::NoteLabels { worker: first, labels }).unwrap();
    }
    bench.apply(Transition::NoteLabels { worker: second, labels: Labels::new() }).unwrap();
    assert_eq!(known(), [(first, Some(zone("b\" ü"))), (second, Some(Labels::new()))]);
    assert!(is_not_found(&bench.apply(Transition::NoteLabels { worker: WorkerId(99), labels: zone("a") })));
}

pub(super) fn workers_drain_and_are_revoked(bench: &Bench) {
    let [first, second] = bench.workers;
    bench.apply(Transition::DrainWorker { worker: first, draining: true }).unwrap();
    bench.apply(Transition::RevokeWorker { worker: second }).unwrap();
    let state = || -> Vec<_> {
        bench.store.workers().unwrap().iter().map(|worker| (worker.id, worker.draining, worker.revoked)).collect()
    };
    assert_eq!(state(), [(first, true, false), (second, false, true)]);
    bench.apply(Transition::DrainWorker { worker: first, draining: false }).unwrap();
    assert_eq!(state()[0], (first, false, false));
    let job = bench.job(1);
    let work = Work::Fresh(TaskRange::one(0));
    assert!(is_stale(&bench.apply(Transition::Assign { job, work, worker: second, at: at(2) })), "to a revoked worker");
    let nobody = WorkerId(99);
    assert!(is_not_found(&bench.apply(Transition::RevokeWorker { worker: nobody })));
    assert!(is_not_found(&bench.apply(Transition::DrainWorker { worker: nobody, draining: true })));
}
