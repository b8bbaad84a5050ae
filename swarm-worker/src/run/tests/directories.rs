//! Inputs that are directories.

use swarm_protocol::link::InputOrder;

use super::*;

/// An archive with these names as they are, each a file with its own name as bytes, a directory if it ends in `/`.
pub(super) fn archive(names: &[&str]) -> Vec<u8> {
    let bytes = |name: &str| if name.ends_with('/') { Vec::new() } else { name.as_bytes().to_vec() };
    archive_of(names.iter().map(|name| (*name, bytes(name))))
}

fn archive_of<'a>(files: impl Iterator<Item = (&'a str, Vec<u8>)>) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in files {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(if bytes.is_empty() { tar::EntryType::Directory } else { tar::EntryType::Regular });
        header.set_size(bytes.len() as u64);
        header.set_mode(0o640);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        tar.append(&header, &bytes[..]).unwrap();
    }
    tar.into_inner().unwrap()
}

impl Bench {
    /// An input that unpacks `bytes` into `dir`; the core has it.
    fn directory(&self, dir: &str, bytes: &[u8]) -> InputOrder {
        self.core.seen().blobs.insert(Digest::of(bytes), bytes.to_vec().into());
        testing::input(&format!("{dir}/"), bytes)
    }
}

/// A container that says which files it was given.
async fn telling() -> Bench {
    Bench::start_with(0, |view| {
        let told = |(path, bytes): (&String, &bytes::Bytes)| format!("{path}={}\n", String::from_utf8_lossy(bytes));
        Script::new().out(view.files.iter().map(told).collect::<String>()).write("/data/deep/out", "42")
    })
    .await
}

#[tokio::test]
async fn a_directory_is_there_beside_files_and_outputs_lie_in_it() {
    let bench = telling().await;
    let mut order = order(1);
    order.inputs =
        vec![bench.directory("/data", &archive(&["./", "sub/", "sub/a", "b"])), testing::input("/in/a", b"data")];
    order.outputs = vec!["/data/deep/out".into(), "/data/sub/a".into()];
    bench.core.seen().blobs.insert(Digest::of(b"data"), (&b"data"[..]).into());
    let report = bench.run(&order).await;
    assert_eq!(report.outcome, Outcome::Succeeded);
    assert_eq!(text(&bench.core.seen().logs[&order.attempt]), "/data/b=b\n/data/sub/a=sub/a\n/in/a=data\n");
    let digests: Vec<_> = report.outputs.iter().map(|output| output.digest).collect();
    assert_eq!(digests, [Digest::of(b"42"), Digest::of(b"sub/a")]);
    bench.until_clean().await;
    bench.end().await;
}

#[tokio::test]
async fn an_archive_that_is_none_to_unpack_is_the_job_s_own_fault() {
    let bench = telling().await;
    let whole = archive(&["a", "b"]);
    let mut cases = vec![
        (archive(&["fine", "../../etc/passwd"]), "`../../etc/passwd` is not a plain path"),
        (whole[..whole.len() - 1400].to_vec(), "ended early"),
        (b"no archive".repeat(200), "checksum"),
        (Vec::new(), "ended early"),
    ];
    let large = ("large", vec![b'x'; 2 << 20]);
    cases.push((archive_of(std::iter::once(large)), "disk limit"));
    for (job, (bytes, words)) in (1..).zip(cases) {
        let mut order = order(job);
        order.inputs = vec![bench.directory("/data/tree", &bytes)];
        if words == "disk limit" {
            order.limits.disk_bytes = 1 << 20;
        }
        let report = bench.run(&order).await;
        let Outcome::Refused { reason } = &report.outcome else { panic!("{words}: {report:?}") };
        assert!(reason.contains("the input /data/tree cannot be unpacked") && reason.contains(words), "{reason}");
        assert_eq!(report.started_at_us, None, "it never ran");
    }
    bench.until_clean().await;
    let mut fine = order(99);
    fine.inputs = vec![bench.directory("/data/tree", &whole)];
    assert_eq!(bench.outcome(&fine).await, Outcome::Succeeded);
    bench.end().await;
}

#[tokio::test]
async fn other_bytes_than_the_digest_s_are_no_fault_of_the_job() {
    let bench = telling().await;
    let (good, bad) = (archive(&["a/b"]), archive(&["../"]));
    let bad = [bad, vec![0; 4096]].concat()[..good.len()].to_vec();
    let mut order = order(1);
    order.inputs = vec![bench.directory("/data", &good)];
    bench.core.seen().blobs.insert(Digest::of(&good), bad.into());
    let outcome = bench.outcome(&order).await;
    assert!(matches!(&outcome, Outcome::Lost { reason: LossReason::Transfer, .. }), "{outcome:?}");
    bench.end().await;
}

/// An engine that fails for the machine's file system has not failed itself.
#[tokio::test]
async fn what_the_file_system_does_not_take_is_told_as_that() {
    for (said, is_refused, told) in [
        ("Error processing tar file(exit status 1): link /a /b: too many links", true, "hard links"),
        ("Error processing tar file(exit status 1): mkdir /a: no space left on device", false, "inodes"),
    ] {
        let bench = telling().await;
        let message = format!("{said} (status 500)");
        let error = RuntimeError::Engine { call: "put archive", message };
        // The first call sets the directory's owner.
        bench.engine.plan(FaultPlan::new().on(Call::PutArchive, 2, Effect::Fail(error)));
        let order = TaskOrder { inputs: vec![bench.directory("/data", &archive(&["a"]))], ..order(1) };
        let reason = match bench.outcome(&order).await {
            Outcome::Refused { reason } if is_refused => reason,
            Outcome::Lost { reason: LossReason::Engine, detail } if !is_refused => detail,
            other => panic!("{said}: {other:?}"),
        };
        assert!(reason.contains(told) && reason.contains("/data"), "{reason}");
        bench.until_clean().await;
        bench.end().await;
    }
}
