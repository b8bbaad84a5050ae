use std::time::Duration;

use swarm_client::Timeouts;
use tokio::time::Instant;

use super::*;
use crate::config::WorkerConfig;
use crate::network::HttpNetwork;
use crate::testing::{ScriptedCore, order};

const DEADLINE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(200);

/// Sends `bytes` as an output of a worker with these timeouts.
async fn upload(core: &ScriptedCore, timeouts: Timeouts, bytes: &[u8]) -> Result<(), TransferError> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let config = WorkerConfig { core: format!("http://{}", core.address).parse().unwrap(), ..WorkerConfig::default() };
    let network = Arc::new(HttpNetwork::with_timeouts(&config, timeouts).unwrap());
    let transfer = Transfer::new(network, "swk_test".to_owned().into(), Chance::of_the_system());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    let attempt = order(1, b"image").attempt;
    let stored = transfer.upload(attempt, file.path(), Digest::of(bytes), bytes.len() as u64);
    tokio::time::timeout(DEADLINE, stored).await.expect("it is stored at last")
}

#[tokio::test]
async fn an_output_that_takes_the_core_long_is_stored_and_sent_once() {
    let core = ScriptedCore::start().await;
    core.seen().upload_takes = 4 * SHORT;
    let (timeouts, began) = (Timeouts { idle: SHORT, ..Timeouts::default() }, Instant::now());
    upload(&core, timeouts, b"result").await.unwrap();
    assert!(began.elapsed() >= 4 * SHORT, "the answer was late");
    let seen = core.seen();
    assert_eq!((seen.uploads_begun, &seen.uploads[&Digest::of(b"result")][..]), (1, &b"result"[..]));
}

#[tokio::test]
async fn an_output_that_stands_still_is_sent_again() {
    let core = ScriptedCore::start().await;
    core.seen().uploads_ignored = 1;
    // More than the sockets hold, so that some of it cannot leave.
    let bytes = vec![7; 32 << 20];
    upload(&core, Timeouts { upload_idle: SHORT, ..Timeouts::default() }, &bytes).await.unwrap();
    core.seen().uploads_ignored = 1;
    // All of it leaves, and no verdict comes.
    upload(&core, Timeouts { upload_verdict: SHORT, ..Timeouts::default() }, b"small").await.unwrap();
    let seen = core.seen();
    assert_eq!((seen.uploads_begun, seen.uploads.len()), (4, 2));
}

#[tokio::test]
async fn an_output_that_breaks_off_goes_on_where_it_was_if_the_core_still_has_that() {
    for (loses_uploads, offsets) in [(false, &[0, 300_000][..]), (true, &[0, 300_000, 0])] {
        let core = ScriptedCore::start().await;
        core.seen().upload_cut_after = Some(300_000);
        core.seen().loses_uploads = loses_uploads;
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        upload(&core, Timeouts::default(), &bytes).await.unwrap();
        let seen = core.seen();
        assert_eq!(seen.upload_offsets, offsets);
        assert!(seen.uploads[&Digest::of(&bytes)] == bytes);
    }
}

#[tokio::test]
async fn an_output_that_the_core_found_too_slow_goes_on_as_well() {
    let core = ScriptedCore::start().await;
    core.seen().upload_cut_after = Some(6);
    core.seen().says_cut_short = true;
    upload(&core, Timeouts::default(), b"result").await.unwrap();
    let seen = core.seen();
    assert_eq!((&seen.upload_offsets[..], &seen.uploads[&Digest::of(b"result")][..]), (&[0, 6][..], &b"result"[..]));
}
