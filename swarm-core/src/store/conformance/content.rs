//! Blobs and images.

use std::collections::BTreeSet;

use swarm_protocol::link::OutputReport;

use super::*;

pub(super) fn blobs_are_readable_by_linked_groups_alone(bench: &Bench) {
    let (_, chemistry) = bench.user("bob", "chemistry");
    let digest = Digest::of(b"blob");
    let link = Transition::LinkBlob { group: bench.group, digest, size_bytes: 4, at: at(1) };
    for _ in 0..2 {
        assert_eq!(bench.apply(link.clone()), Ok(Applied::Done));
    }
    assert_eq!(bench.store.linked_blob(bench.group, &digest).unwrap(), Some(4));
    assert_eq!(bench.store.linked_blob(chemistry, &digest).unwrap(), None);
    assert_eq!(bench.store.linked_blob(bench.group, &Digest::of(b"other")).unwrap(), None);
}

pub(super) fn names_of_images_move(bench: &Bench) {
    let (_, chemistry) = bench.user("bob", "chemistry");
    let tag = |name: &str, content: &str| {
        let platform = "linux/amd64".to_owned();
        let new =
            NewImage { group: bench.group, name: name.to_owned(), image: image(content), platform, pushed_at: at(4) };
        bench.apply(Transition::TagImage(Box::new(new))).unwrap();
    };
    tag("tool:1", "first");
    tag("tool:latest", "first");
    tag("tool:latest", "second");
    let find = |group, reference: &str| bench.store.image(group, reference).unwrap();
    let moved = find(bench.group, "tool:latest").unwrap();
    assert_eq!((moved.image, moved.platform.as_str(), moved.pushed_at), (image("second"), "linux/amd64", at(4)));
    assert_eq!(find(bench.group, "tool:1").unwrap().image, image("first"));
    assert_eq!(find(bench.group, &image("first").config.to_string()).unwrap().name, "tool:1");
    assert!(find(chemistry, "tool:1").is_none(), "another group's image");
    assert!(find(chemistry, &image("first").config.to_string()).is_none());
    for blobs in [image("first"), image("second")] {
        assert_eq!(bench.store.linked_blob(bench.group, &blobs.config).unwrap(), Some(7));
        for layer in &blobs.layers {
            assert_eq!(bench.store.linked_blob(bench.group, &layer.digest).unwrap(), Some(layer.size_bytes));
        }
    }
    let names =
        |group| -> Vec<String> { bench.store.images(group).unwrap().into_iter().map(|image| image.name).collect() };
    assert_eq!(names(bench.group), ["tool:1", "tool:latest"]);
    let untag = Transition::UntagImage { group: bench.group, name: "tool:1".to_owned() };
    assert_eq!(bench.apply(untag.clone()), Ok(Applied::Done));
    assert!(is_not_found(&bench.apply(untag)));
    assert_eq!((names(bench.group), names(chemistry).len()), (vec!["tool:latest".to_owned()], 0));
}

pub(super) fn outputs_are_linked_to_the_group(bench: &Bench) {
    let job = bench.job(1);
    bench.apply(bench.fresh(job, 0, 0)).unwrap();
    let Transition::End(mut end) = bench.end(id(job, 0, 1), Outcome::Succeeded, Next::Final) else { unreachable!() };
    let digest = Digest::of(b"result");
    end.outputs = vec![OutputReport { path: "/out".to_owned(), digest, size_bytes: 6, is_dir: true, mode: 0o755 }];
    bench.apply(Transition::End(end.clone())).unwrap();
    assert_eq!(bench.store.linked_blob(bench.group, &digest).unwrap(), Some(6));
    assert_eq!(bench.store.attempt(id(job, 0, 1)).unwrap().unwrap().outputs, end.outputs);
}

pub(super) fn what_an_attempt_sent_is_kept_while_it_lives(bench: &Bench) {
    let (job, [one, two]) = (bench.job(2), bench.worker_ids());
    bench.apply(bench.fresh(job, 0, 1)).unwrap();
    let send = |attempt, worker, name: &str| {
        let digest = Digest::of(name.as_bytes());
        bench.apply(Transition::SendOutput { attempt, worker, digest, size_bytes: name.len() as u64 })
    };
    let (first, second) = (id(job, 0, 1), id(job, 1, 1));
    for name in ["a", "bb", "a"] {
        assert_eq!(send(first, one, name), Ok(Applied::Done));
    }
    assert!(is_stale(&send(first, two, "x")) && is_stale(&send(id(job, 0, 2), one, "x")));
    let sent = |attempt| bench.store.sent_outputs(attempt).unwrap().into_iter().collect::<BTreeSet<_>>();
    let both = BTreeSet::from([(Digest::of(b"a"), 1), (Digest::of(b"bb"), 2)]);
    assert_eq!((sent(first), sent(second)), (both, BTreeSet::new()));
    for number in 2..SENT_MAX {
        send(first, one, &number.to_string()).unwrap();
    }
    assert!(is_conflict(&send(first, one, "one too many")));
    assert_eq!(send(first, one, "bb"), Ok(Applied::Done), "sent again");

    send(second, one, "c").unwrap();
    bench.apply(bench.end(first, lost(), retry(4))).unwrap();
    bench.apply(bench.recall(second)).unwrap();
    assert!(sent(first).is_empty() && sent(second).is_empty());
    assert!(is_stale(&send(first, one, "d")));
}
