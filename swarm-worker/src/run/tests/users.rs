//! Whom containers run as, whatever an image says its accounts are.

use super::*;
use crate::runtime::testimage::{HostImage, host_image_with};

/// What an order as `user` and its container come to see.
async fn spec_user(bench: &Bench, job: u64, user: &str) -> String {
    let order = TaskOrder { user: Some(user.into()), ..order(job) };
    assert_eq!(bench.outcome(&order).await, Outcome::Succeeded, "{user}");
    text(&bench.core.seen().logs[&order.attempt])
}

#[tokio::test]
async fn the_engine_is_given_numbers_only() {
    let bench = Bench::start(Script::new).await;
    bench.engine.program(|view| {
        let spec = view.spec;
        Script::new().out(format!("{} {:?}", spec.user.as_deref().unwrap_or("none"), spec.groups))
    });
    let config = Digest::of(CONFIG);
    bench.engine.add_image_file(&config, "/etc/passwd", "app\nroot:x:0:0::/:\napp:x:1000:50::/:\n");
    bench.engine.add_image_file(&config, "/etc/group", "data:x:77:app\n");
    assert_eq!(spec_user(&bench, 1, "app").await, "1000:50 [77]");
    assert_eq!(spec_user(&bench, 2, "app:data").await, "1000:77 []");
    assert_eq!(spec_user(&bench, 3, "7:8").await, "7:8 []");
    assert_eq!(spec_user(&bench, 4, "9").await, "9:0 []");
    for (job, user, words) in
        [(5, ":1000", "neither"), (6, "-0", "neither"), (7, "ghost", "no user"), (8, "root", "as root")]
    {
        let order = TaskOrder { user: Some(user.into()), ..order(job) };
        let outcome = bench.outcome(&order).await;
        assert!(matches!(&outcome, Outcome::Refused { reason } if reason.contains(words)), "{user}: {outcome:?}");
    }
    // One look-up for each of the four names that need one and exist, and for the two that do not.
    let lookups = bench.engine.count(Call::Create) - bench.engine.count(Call::Start);
    assert_eq!(spec_user(&bench, 9, "app").await, "1000:50 [77]");
    assert_eq!(bench.engine.count(Call::Create) - bench.engine.count(Call::Start), lookups, "looked up once");
    bench.until_clean().await;
    bench.end().await;
}

/// Images whose accounts the engine itself would read as root's.
#[tokio::test(flavor = "multi_thread")]
async fn no_image_makes_the_engine_run_it_as_root() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let engine = TestEngine::connect().await;
    let core = ScriptedCore::start().await;
    let (data, stop) = (tempfile::tempdir().unwrap(), CancellationToken::new());
    let config = config_of(&core, data.path());
    let worker = tokio::spawn(run(config, engine.runtime.clone(), stop.clone()));
    let image = |user: &str, passwd: &str| {
        let files = [("etc/passwd", passwd.as_bytes()), ("etc/group", b"data:x:77:app\napp:x:1000:\n")];
        host_image_with(&["sh", "id"], Some(user), &files).unwrap()
    };
    let root = "root:x:0:0::/:/bin/sh\n";
    let short = image("app", &format!("app\n{root}app:x:1000:1000::/:\n"));
    let unnamed = image(":1000", &format!("{root}:x:1000:1000::/:\n"));
    let negative = image("-0", &format!("{root}-0:x:1000:1000::/:\n"));
    let mut jobs = 1..;
    let mut outcome_of = async |image: &HostImage, directory: Option<&str>| {
        let layer = std::fs::read(image.layer_path()).unwrap();
        let digest = Digest::of(&layer);
        core.seen().blobs.extend([(image.config_digest, image.config.clone()), (digest, layer.into())]);
        let mut order = testing::order(jobs.next().unwrap(), &image.config);
        order.image.layers = vec![LayerOrder { digest, diff_id: image.diff_id, size_bytes: image.layer_bytes }];
        order.command = Some(vec!["/bin/sh".into(), "-c".into(), "echo $(id -u) $(id -g) $(id -G)".into()]);
        order.inputs = directory.iter().map(|dir| testing::input(&format!("{dir}/in"), b"data")).collect();
        core.seen().blobs.insert(Digest::of(b"data"), (&b"data"[..]).into());
        core.assign(&order).await;
        let outcome = core.finished(order.attempt).await.outcome;
        let log = core.seen().logs.get(&order.attempt).map(|log| text(log));
        (outcome, log.unwrap_or_default())
    };
    let as_app = (Outcome::Succeeded, "1000 1000 1000 77\n".to_owned());
    // A volume over the accounts hides nothing of them.
    assert_eq!(outcome_of(&short, Some("/etc")).await, as_app);
    assert_eq!(outcome_of(&short, None).await, as_app);
    for image in [&unnamed, &negative] {
        let (outcome, log) = outcome_of(image, None).await;
        assert!(matches!(&outcome, Outcome::Refused { reason } if reason.contains("neither")), "{outcome:?} {log}");
    }
    stop.cancel();
    worker.await.unwrap().unwrap();
    for image in [short, unnamed, negative] {
        engine.runtime.remove_image(&image.config_digest).await.unwrap();
    }
}
