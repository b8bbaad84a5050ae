//! `swarm demo`: it shows what it promises, and leaves nothing behind however it ends.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{Docker, PATIENCE, Proc, command, docker, eventually, strays};

struct Demo {
    dir: tempfile::TempDir,
    proc: Proc,
}

impl Demo {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("swarm-test-").tempdir().expect("a directory can be made");
        std::fs::create_dir(dir.path().join("tmp")).expect("a directory can be made");
        let mut command = command(dir.path(), &["demo"]);
        command.env("TMPDIR", dir.path().join("tmp"));
        // A database that is used in earnest is none of the demo's business; nobody answers at this one.
        command.env("SWARM_CORE_DATABASE_URL", "postgres://nobody@127.0.0.1:1/none");
        command.env("SWARM_CORE_ALLOW_ROOT", "nonsense");
        let proc = Proc::start("demo", dir.path(), command);
        Self { dir, proc }
    }

    fn home(&self) -> &Path {
        self.dir.path()
    }

    /// What the demo keeps in the directory for temporary files.
    fn temporary(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.home().join("tmp")).expect("the directory is there");
        entries.flatten().map(|entry| entry.path()).collect()
    }

    /// The swarm's id, as its containers are labelled.
    fn swarm(&mut self) -> String {
        eventually("the demo's core has a database", PATIENCE, || {
            assert!(self.proc.ended().is_none(), "it ended: {}", self.proc.printed());
            let database = self.temporary().first()?.join("core/swarm.db");
            swarm_checker::load(database.to_str()?).ok()?.swarm
        })
    }

    fn wait_for_container(&mut self, swarm: &str) {
        // Before that it packs, uploads and loads this program, of more than 100 MB in a debug build.
        eventually("the demo runs a container", 3 * PATIENCE, || {
            assert!(self.proc.ended().is_none(), "it ended before: {}", self.proc.printed());
            (!Docker::default().listing(swarm).is_empty()).then_some(())
        });
    }

    /// Waits for the end, and asserts that nothing but the results is left.
    fn end(&mut self, swarm: &str) -> Option<i32> {
        let status = eventually("the demo ends", PATIENCE, || self.proc.ended());
        let printed = self.proc.printed();
        assert!(Docker::default().listing(swarm).is_empty(), "containers are left\n{printed}");
        assert!(Docker::default().volumes(swarm).is_empty(), "volumes are left\n{printed}");
        let image = printed.split_whitespace().find(|word| word.starts_with("sha256:"));
        let image = image.unwrap_or_else(|| panic!("no image was made\n{printed}"));
        assert!(docker(&["image", "inspect", image]).is_none(), "its image is left\n{printed}");
        assert_eq!(self.temporary(), Vec::<PathBuf>::new(), "temporary files are left");
        eventually("the demo's watchdog has left", Duration::from_secs(10), || {
            strays(self.home()).is_empty().then_some(())
        });
        status.code()
    }
}

/// That it shows its jobs is a stage of `cargo xtask test` by itself.
#[test]
fn a_demo_that_is_interrupted_leaves_nothing_and_uses_no_database_but_its_own() {
    let mut demo = Demo::start();
    let swarm = demo.swarm();
    demo.wait_for_container(&swarm);
    demo.proc.signal(Signal::INT);
    let code = demo.end(&swarm);
    let printed = demo.proc.printed();
    assert_eq!(code, Some(1), "{printed}");
    assert!(printed.contains("interrupted"), "{printed}");
}
