//! How the worker keeps a watchdog alive that does not share its fate.

use std::fs::OpenOptions;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rustix::io::Errno;
use swarm_host::blocking;

use super::process::WATCHDOG_LOCK;
use crate::context::Ctx;
use crate::identity::try_lock;
use crate::runtime::{ContainerId, ContainerRuntime, RuntimeError, Sibling};

/// How often the worker looks whether its watchdog lives.
const CHECK: Duration = Duration::from_secs(1);

/// How often in a row there may be none: a worker does not run on for long without.
const FAILURES_MAX: u32 = 10;

/// Starts a watchdog for this worker's data directory, or does nothing where that is impossible.
pub type Launch = Arc<dyn Fn() + Send + Sync>;

/// Where a watchdog is started.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Site {
    /// As a process of this machine, or of this container if there is no better place.
    Here,
    /// In a container beside the one this worker runs in.
    Beside(ContainerId),
}

impl Site {
    fn find() -> Self {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        own_container(&mounts).map_or(Self::Here, Self::Beside)
    }
}

/// The container this process runs in, by the files that Docker mounts into each (`/etc/hostname` and the like come from
/// `…/containers/ID/`), in the format of proc_pid_mountinfo(5).
fn own_container(mountinfo: &str) -> Option<ContainerId> {
    let id_of = |line: &str| {
        let mut fields = line.split(' ').skip(3);
        let (root, target) = (fields.next()?, fields.next()?);
        let (_, rest) = root.split_once("/containers/").filter(|_| target.starts_with("/etc/"))?;
        let id = rest.split('/').next()?;
        (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| ContainerId(id.to_owned()))
    };
    mountinfo.lines().find_map(id_of)
}

/// Keeps a watchdog running beside the worker, and the renewals it reads up to date. One that an earlier start of the
/// worker left is replaced: it may be of an older build.
pub(crate) async fn supervise(ctx: Arc<Ctx>) -> anyhow::Result<()> {
    let mut renewed = ctx.hub.renewed.subscribe();
    let (mut check, mut site) = (tokio::time::interval(CHECK), Site::find());
    let (mut is_first, mut failures) = (true, 0_u32);
    // Asked now: an upgrade may replace the file while this process runs.
    let program = std::env::current_exe().context("this program's file")?;
    let is_wanted = ctx.launch_watchdog.is_some() || ctx.config.watchdog.is_some();
    loop {
        tokio::select! {
            biased;
            () = ctx.stop.cancelled() => return Ok(()),
            _ = check.tick(), if is_wanted => match ensure(&ctx, &mut site, &program, is_first).await {
                Ok(()) => (is_first, failures) = (false, 0),
                Err(error) if is_passing(&error) => tracing::debug!("cannot see to the watchdog: {error:#}"),
                Err(error) if failures < FAILURES_MAX => {
                    tracing::error!("cannot see to the watchdog, trying again: {error:#}");
                    failures += 1;
                }
                Err(error) => return Err(error),
            },
            changed = renewed.changed() => {
                changed?;
                let (files, boot, at_ns) = (ctx.watch.clone(), ctx.machine_boot.clone(), *renewed.borrow_and_update());
                let noted = blocking::run(move || files.renew(&boot, at_ns)).await;
                // Not fatal: without the note the watchdog kills too early, never too late.
                if let Err(error) = noted {
                    tracing::error!(%error, "a renewal cannot be noted for the watchdog");
                }
            }
        }
    }
}

/// Whether the want of descriptors is all that is wrong: it says nothing of the watchdog, which has its own.
fn is_passing(error: &anyhow::Error) -> bool {
    let errno = error.downcast_ref::<std::io::Error>().and_then(Errno::from_io_error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE))
}

/// Whether a watchdog holds the lock.
fn is_watched(ctx: &Ctx) -> anyhow::Result<bool> {
    let free = try_lock(&ctx.data.path.join(WATCHDOG_LOCK)).context("the watchdog's lock")?;
    Ok(free.is_none())
}

/// Starts a watchdog if there is none, or `anew` though there is one.
async fn ensure(ctx: &Ctx, site: &mut Site, program: &Path, anew: bool) -> anyhow::Result<()> {
    if !anew && is_watched(ctx)? {
        return Ok(());
    }
    if let Some(launch) = &ctx.launch_watchdog {
        launch();
        return Ok(());
    }
    let Some(words) = ctx.config.watchdog.as_deref() else { return Ok(()) };
    let words = command(program, words, &ctx.data.path, ctx.config.docker_host.as_deref());
    if !started_beside(&*ctx.runtime, site, &words, &ctx.data.path).await {
        start_here(&words, &ctx.data.path)?;
    }
    Ok(())
}

fn command(program: &Path, words: &[String], data: &Path, docker_host: Option<&str>) -> Vec<String> {
    let text = |path: &Path| path.display().to_string();
    let host = docker_host.into_iter().flat_map(|host| ["--docker-host".to_owned(), host.to_owned()]);
    let data = ["--data".to_owned(), text(data)];
    [text(program)].into_iter().chain(words.iter().cloned()).chain(data).chain(host).collect()
}

/// Whether the watchdog is started, or will be, in a container beside this one; false where that is impossible.
async fn started_beside(engine: &dyn ContainerRuntime, site: &mut Site, words: &[String], data: &Path) -> bool {
    let Site::Beside(own) = site else { return false };
    let name = format!("swarm-watchdog-{}", own.0.get(..12).unwrap_or(&own.0));
    let sibling = Sibling { name, words: words.to_vec(), data: data.to_owned() };
    match engine.start_sibling(own, &sibling).await {
        Ok(()) => true,
        // One that has just ended is being removed, or the engine is away: tried again.
        Err(RuntimeError::Conflict { .. }) => true,
        Err(error) if error.is_infrastructure() => {
            tracing::error!(%error, "the watchdog's container cannot be started, trying again");
            true
        }
        Err(error) => {
            tracing::warn!(
                %error,
                "the watchdog runs in this worker's own container and ends with it: mount the engine's socket, and the \
                 data directory as a volume"
            );
            *site = Site::Here;
            false
        }
    }
}

/// The file this process was started from: `path`, unless there is another file by now, or none.
fn own_program(path: &Path) -> &Path {
    let running = Path::new("/proc/self/exe");
    let file = |path: &Path| std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    if file(path) == file(running) { path } else { running }
}

fn start_here(words: &[String], data: &Path) -> anyhow::Result<()> {
    let log = OpenOptions::new().create(true).append(true).open(data.join("watchdog.log"))?;
    let mut command = tokio::process::Command::new(own_program(Path::new(&words[0])));
    command.arg0(&words[0]).args(&words[1..]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).kill_on_drop(false);
    let mut child = command.spawn().context("the watchdog cannot be started")?;
    tracing::debug!(pid = child.id(), "started a watchdog");
    // Waited for, so that it leaves no zombie; it outlives this worker.
    tokio::spawn(async move { child.wait().await });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::fake::{Call, Effect, FakeRuntime, FaultPlan};

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn a_container_knows_itself_by_what_the_engine_mounts() {
        let line = |root: &str, target: &str| {
            format!(
                "22 1 0:1 / / rw - overlay overlay rw\n700 650 254:1 {root} {target} rw,relatime - ext4 /dev/vda rw\n"
            )
        };
        let own = |root: &str, target: &str| own_container(&line(root, target)).map(|id| id.0);
        assert_eq!(own(&format!("/var/lib/docker/containers/{ID}/hostname"), "/etc/hostname").as_deref(), Some(ID));
        assert_eq!(own(&format!("/lib/containers/{ID}/hosts"), "/etc/hosts").as_deref(), Some(ID));
        // On a host that sees the engine's files, and in one of another kind.
        assert_eq!(own(&format!("/var/lib/docker/containers/{ID}/mounts/shm"), "/var/lib/docker/shm"), None);
        assert_eq!(own("/var/lib/containers/short/hostname", "/etc/hostname"), None);
        assert_eq!(own_container("nonsense"), None);
    }

    #[test]
    fn the_words_lead_back_to_this_worker_s_data() {
        let words = ["worker".to_owned(), "watchdog".to_owned()];
        let words = command(Path::new("/bin/swarm"), &words, Path::new("/data"), Some("unix:///s"));
        assert_eq!(words, ["/bin/swarm", "worker", "watchdog", "--data", "/data", "--docker-host", "unix:///s"]);
    }

    #[test]
    fn only_the_want_of_descriptors_passes_by_itself() {
        let of = |errno: Errno| anyhow::Error::from(std::io::Error::from(errno)).context("the watchdog's lock");
        assert!(is_passing(&of(Errno::MFILE)) && is_passing(&of(Errno::NFILE)));
        assert!(!is_passing(&of(Errno::ACCESS)) && !is_passing(&anyhow::anyhow!("no program")));
    }

    #[test]
    fn a_program_whose_file_was_replaced_is_started_from_what_runs() {
        let own = std::env::current_exe().unwrap();
        assert_eq!(own_program(&own), own);
        let dir = tempfile::tempdir().unwrap();
        let other = dir.path().join("swarm");
        assert_eq!(own_program(&other), Path::new("/proc/self/exe"), "there is none any more");
        std::fs::write(&other, "another one").unwrap();
        assert_eq!(own_program(&other), Path::new("/proc/self/exe"));
    }

    #[tokio::test]
    async fn it_runs_beside_where_it_can_and_here_where_not() {
        let engine = FakeRuntime::new();
        let (words, data) = (["/bin/swarm".to_owned()], Path::new("/data"));
        let mut site = Site::Beside(ContainerId(ID.to_owned()));
        let gone = || RuntimeError::Engine { call: "create", message: "connection reset".to_owned() };
        engine.plan(FaultPlan::new().on(Call::StartSibling, 1, Effect::Fail(gone())));
        assert!(started_beside(&engine, &mut site, &words, data).await, "the engine comes back");
        assert!(matches!(site, Site::Beside(_)));
        // This engine has no such container: the worker's is of another one.
        assert!(!started_beside(&engine, &mut site, &words, data).await);
        assert_eq!(site, Site::Here);
        assert!(!started_beside(&engine, &mut site, &words, data).await);
        assert_eq!(engine.count(Call::StartSibling), 2);
    }
}
