//! Where a store lies: schemas in Postgres, the file of SQLite and its copies.

use std::os::unix::fs::FileExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use super::*;

#[test]
fn installations_in_schemas_of_one_database_do_not_see_each_other() {
    let Ok(base) = std::env::var(POSTGRES_URL) else {
        panic!("{POSTGRES_URL} names no Postgres to test on: run `cargo xtask test`, which starts one");
    };
    let names = ["a", "b"].map(|letter| format!("t_{letter}_{}", uuid::Uuid::new_v4().simple()));
    let _places = names.clone().map(|name| Place::Schema { url: base.clone(), name });
    let source = |name: &String| Source { schema: Some(name.clone()), ..Source::from(&base) };
    // All at once: each schema is made by one of those that open it.
    let stores: Vec<Vec<Db>> = std::thread::scope(|scope| {
        let opening: Vec<Vec<_>> = names
            .iter()
            .map(|name| (0..3).map(|_| scope.spawn(move || Db::open(source(name)).unwrap())).collect())
            .collect();
        opening.into_iter().map(|all| all.into_iter().map(|thread| thread.join().unwrap()).collect()).collect()
    });
    let ids: Vec<Vec<_>> =
        stores.iter().map(|all| all.iter().map(|store| store.swarm_id().unwrap()).collect()).collect();
    assert!(ids.iter().all(|same| same.iter().all(|id| *id == same[0])) && ids[0][0] != ids[1][0], "{ids:?}");
    let [a, b] = [&stores[0][0], &stores[1][0]];
    let epoch = a.take_over().unwrap();
    assert_eq!(b.take_over().unwrap(), epoch, "each counts its own epochs");
    a.commit(epoch, 1, &[new_user("ann", "x")]).unwrap().remove(0).unwrap();
    b.commit(epoch, 1, &[new_user("bob", "x"), new_user("ann", "x")]).unwrap().remove(1).unwrap();
    let users = |store: &Db| -> Vec<String> { store.users().unwrap().into_iter().map(|user| user.name).collect() };
    assert_eq!((users(a), users(b)), (vec!["ann".to_owned()], vec!["bob".to_owned(), "ann".to_owned()]));
    let mut plain = connect(&base);
    assert!(plain.execute("SELECT * FROM live_tasks").is_err(), "nothing lies outside of the schemas");
}

/// The files of `bench` as a power cut would leave them, in a directory of their own: the database's path there.
fn cut_off(bench: &Bench, last: &str) -> (tempfile::TempDir, std::path::PathBuf) {
    let from = bench.url.strip_prefix("sqlite://").unwrap();
    bench.administer("PRAGMA wal_checkpoint(TRUNCATE)");
    bench.apply(new_user(last, "physics")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    for suffix in ["", "-wal"] {
        std::fs::copy(format!("{from}{suffix}"), folder.path().join(format!("swarm.db{suffix}"))).unwrap();
    }
    let path = folder.path().join("swarm.db");
    (folder, path)
}

fn open(path: &Path) -> Result<Db, OpenError> {
    Db::open(path.to_str().unwrap())
}

#[test]
fn a_sqlite_file_that_was_left_open_is_checked_before_it_is_used() {
    let bench = Bench::sqlite();
    for n in 0..100 {
        bench.apply(new_user(&format!("u{n}"), "physics")).unwrap();
    }
    let (_folder, path) = cut_off(&bench, "whole");
    let log = path.with_extension("db-wal");
    assert!(std::fs::metadata(&log).unwrap().len() > 0);
    let store = open(&path).unwrap();
    assert_eq!(store.users().unwrap().len(), 102, "what lay in the log is there");
    drop(store);
    let left = std::fs::metadata(&log).map_or(0, |log| log.len());
    assert_eq!(left, 0, "closed in order, it is not checked again");

    let (_folder, path) = cut_off(&bench, "damaged");
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    let bytes = file.metadata().unwrap().len();
    // Half of its pages: a single one may lie in the log in a newer state.
    file.write_all_at(&vec![0xa5; bytes as usize / 2], bytes / 2).unwrap();
    let before = std::fs::read(&path).unwrap();
    let Err(error) = open(&path) else { panic!("a damaged database is used") };
    assert!(matches!(error, OpenError::Damaged { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("swarm core backup") && text.contains(&path.display().to_string()), "{text}");
    assert_eq!(std::fs::read(&path).unwrap().len(), before.len());
}

#[test]
fn a_copy_of_a_store_in_use_is_one_state_of_it_and_opens_as_a_store() {
    let bench = Bench::sqlite();
    let job = bench.job(3);
    bench.apply(bench.fresh(job, 0, 1)).unwrap();
    let store = Db::open(&bench.url).unwrap();
    let epoch = store.take_over().unwrap();
    let (stop, folder) = (std::sync::atomic::AtomicBool::new(false), tempfile::tempdir().unwrap());
    let copy = folder.path().join("it's a copy.db");
    let made = std::thread::scope(|scope| {
        scope.spawn(|| {
            // Two at a time, so that half of a batch would be seen.
            for n in 0.. {
                if stop.load(std::sync::atomic::Ordering::Relaxed) {
                    return;
                }
                let pair = [new_user(&format!("l{n}"), "physics"), new_user(&format!("r{n}"), "physics")];
                store.commit(epoch, n + 1, &pair).unwrap();
            }
        });
        while store.users().unwrap().len() < 20 {
            std::thread::yield_now();
        }
        let made = backup(&Source::from(&bench.url), &copy);
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        made
    });
    assert_eq!(made.unwrap(), std::fs::metadata(&copy).unwrap().len());
    assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");

    let restored = open(&copy).unwrap();
    assert_eq!(restored.swarm_id().unwrap(), bench.store.swarm_id().unwrap());
    assert_eq!(restored.load().unwrap().live, bench.store.load().unwrap().live);
    assert_eq!(restored.job(job).unwrap().unwrap().counts, bench.record(job).counts);
    let users = restored.users().unwrap().len();
    assert!(users >= 20 && users % 2 == 1, "{users}: ada, and pairs");
    let next = restored.take_over().unwrap();
    assert!(next > epoch, "and it goes on");
    let new = Transition::CreateJob(Box::new(bench.new_job(1)));
    let verdicts = restored.commit(next, 1, &[new]).unwrap();
    let Ok(Applied::Job { job: next, .. }) = &verdicts[0] else { panic!("{verdicts:?}") };
    assert!(next.0 > job.0 + 1000, "{next}: what was submitted after the copy may have left a log of this number");

    let again = backup(&Source::from(&bench.url), &copy).unwrap_err();
    assert!(matches!(again, BackupError::Exists(_)), "{again}");
    let nothing = folder.path().join("none.db");
    let missing = backup(&Source::from(nothing.to_str().unwrap()), &folder.path().join("x")).unwrap_err();
    assert!(matches!(missing, BackupError::Missing(_)) && !nothing.exists(), "{missing}");
    let elsewhere = Source { schema: Some("s1".to_owned()), ..Source::from("postgres://me:hunter2@localhost/x") };
    let text = backup(&elsewhere, &folder.path().join("x")).unwrap_err().to_string();
    assert!(text.contains("pg_dump") && text.contains("--schema=s1") && !text.contains("hunter2"), "{text}");
}

/// Only in builds that can encrypt.
#[cfg(feature = "postgres-tls")]
#[test]
fn a_server_is_used_over_tls_only_if_it_is_the_one_that_was_named() {
    let (cluster, ca) = crate::testing::cluster::Cluster::start_tls();
    let url = |host: &str, more: &str| format!("postgres://postgres@{host}:{}/postgres?{more}", cluster.port());
    let verified = |ca: &Path| format!("sslmode=verify-full&sslrootcert={}", ca.display());
    let good = url("localhost", &verified(&ca));
    let store = Db::open(&good).unwrap();
    assert_eq!(store.users().unwrap().len(), 0);
    let Conn::Postgres(c) = &mut connect(&good) else { panic!("not Postgres") };
    let query = "SELECT pid FROM pg_stat_ssl WHERE pid = pg_backend_pid() AND ssl";
    assert_eq!(diesel::sql_query(query).execute(c).unwrap(), 1, "the session is encrypted");
    let (_other, others_ca) = crate::testing::cluster::Cluster::start_tls();
    for (wrong, word) in [
        (url("localhost", &verified(&others_ca)), "certificate verify failed"),
        // The certificate is for `localhost`.
        (url("127.0.0.1", &verified(&ca)), "does not match host name"),
    ] {
        let Err(error) = Db::open(&wrong) else { panic!("{wrong}") };
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(text.contains(word), "{text}");
    }
}
