//! `swarm demo`: the main job end to end, for real, leaving nothing behind but its results.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use swarm_client::{Client, Destination, JobFilter, LogOptions, Progress};
use swarm_core::config::{CoreConfig, LogSettings};
use swarm_core::logger::Stderr;
use swarm_protocol::api::{JobDetail, TaskView};
use swarm_protocol::logs::LogStream;
use swarm_protocol::spec::{Input, JobSpec, Output};
use swarm_protocol::{Digest, JobId, TaskId};
use swarm_worker::config::WorkerConfig;
use swarm_worker::runtime::ContainerRuntime;

use crate::embedded::{self, Embedded};
use crate::selfimage;

#[derive(Args)]
pub(crate) struct Options {
    /// Where the results go
    #[arg(long, default_value = "swarm-demo")]
    into: PathBuf,
    /// The engine's socket, for instance unix:///var/run/docker.sock
    #[arg(long, env = "DOCKER_HOST")]
    docker_host: Option<String>,
}

const IMAGE: &str = "swarm-demo:latest";
/// How long a job of the demo may take altogether.
const PATIENCE: Duration = Duration::from_secs(180);
/// How long the removal of what is left may take, and between two tries of it.
const REMOVAL: Duration = Duration::from_secs(20);
const REMOVAL_STEP: Duration = Duration::from_millis(200);
const TEXT: &str = "\
A swarm is many small machines that act as one.
A job goes in, a result comes out, and no job is lost or run twice.
The swarm says why a job waits, where a job runs, and how a job ended.
";

pub(crate) async fn main(options: Options) -> ExitCode {
    match demo(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => embedded::failed(&error),
    }
}

/// Prints a step on standard output.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

async fn demo(options: Options) -> anyhow::Result<()> {
    let began = Instant::now();
    let data = tempfile::Builder::new().prefix("swarm-demo-").tempdir()?;
    say("1/6  Starting a swarm: core (SQLite, in-process cache) and one worker (local Docker)");
    let config = core_config(data.path())?;
    let core_data = config.data_dir.clone();
    let mut worker = embedded::worker_config(WorkerConfig::default(), &core_data, options.docker_host);
    // Nothing adopts its containers later.
    worker.drain_on_stop = true;
    let runtime = embedded::engine(&worker).await?;
    let log = swarm_core::cli::start_log(&config, Stderr::Quiet)?;
    let mut signals = swarm_core::cli::Signals::listen()?;
    let mut swarm = Embedded::start(config, log.clone(), worker.clone(), runtime.clone()).await?;
    let (mut image, url) = (None, swarm.url.clone());
    let worked = tokio::select! {
        worked = work(&url, &core_data, data.path(), &options.into, &mut image) => worked,
        ended = swarm.ended() => ended.and_then(|()| bail!("the swarm ended by itself")),
        () = signals.any() => Err(anyhow::anyhow!("interrupted")),
    };
    say("6/6  Stopping, and removing every container, volume and image of the demo");
    // A core that is gone cancels nothing; what then still runs is removed below.
    let _ = tokio::time::timeout(REMOVAL, cancel_all(&url, &core_data)).await;
    let stopped = swarm.stop().await;
    let cleaned = clean_up(&worker, &*runtime, image).await;
    tokio::task::spawn_blocking(move || log.flush(Duration::from_secs(2))).await?;
    worked.and(stopped).and(cleaned)?;
    let results = options.into.display();
    say(&format!(
        "\nDone in {:.1} s. The results are in {results}/:\n  {results}/words.txt     what the first job handed back\n\n\
         What next:\n  swarm up                         keep a swarm running on this machine\n  \
         swarm consumer --help            push images, run jobs, arrays and schedules, ask why\n  \
         (with cargo: `cargo run --release -- up`)",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

/// The demo itself; `image` tells the caller what to remove, whatever happens.
async fn work(
    url: &str,
    core_data: &Path,
    scratch: &Path,
    into: &Path,
    image: &mut Option<Digest>,
) -> anyhow::Result<()> {
    let client = embedded::admin(url, &embedded::admin_password(core_data)).await?;
    say("2/6  Building a container image out of this very program, without a registry");
    let archive = scratch.join("image.tar");
    let target = archive.clone();
    tokio::task::spawn_blocking(move || selfimage::write(&target, IMAGE)).await??;
    let megabytes = std::fs::metadata(&archive)?.len() / 1_000_000;
    say(&format!("3/6  Uploading it ({megabytes} MB): checked layer by layer, sealed at rest"));
    let bytes = tokio_util::io::ReaderStream::with_capacity(tokio::fs::File::open(&archive).await?, 256 << 10);
    let pushed = client.upload_image(Some(IMAGE), bytes, quiet()).await.context("the image was not accepted")?;
    *image = Some(pushed.config_digest);
    say(&format!("     {} is {}", pushed.name, pushed.config_digest));
    count_words(&client, scratch, into).await?;
    failing(&client).await
}

async fn count_words(client: &Client, scratch: &Path, into: &Path) -> anyhow::Result<()> {
    say("4/6  A job that takes an input file and hands back an output file");
    let text = scratch.join("text.txt");
    std::fs::write(&text, TEXT)?;
    let uploaded = client.upload_file(&text, quiet()).await?;
    let mut spec = JobSpec::new(IMAGE);
    spec.name = Some("count-words".to_owned());
    spec.command = Some(["count-words", "/in/text.txt", "/out/words.txt"].map(String::from).to_vec());
    spec.inputs = vec![Input { digest: uploaded.digest, path: "/in/text.txt".to_owned(), mode: 0o644, unpack: false }];
    spec.outputs = vec![Output { path: "/out/words.txt".to_owned() }];
    let (job, detail, task) = run(client, &spec).await?;
    ensure!(detail.job.tasks.succeeded == 1, "the first job did not succeed: {}", reason(&task));
    std::fs::create_dir_all(into).with_context(|| format!("{} cannot be made", into.display()))?;
    let target = into.join("words.txt");
    let output = task.attempts.last().and_then(|attempt| attempt.outputs.first()).context("the job has no output")?;
    let destination = Destination { path: &target, overwrite: true };
    client.download_output(TaskId { job, task: 0 }, None, 0, output, destination, quiet()).await?;
    let table = std::fs::read_to_string(&target)?;
    say(&format!("     fetched {} and its first lines:", target.display()));
    for line in table.lines().take(3) {
        say(&format!("     {}", swarm_protocol::text::sanitise(line, false)));
    }
    Ok(())
}

async fn failing(client: &Client) -> anyhow::Result<()> {
    say("5/6  A job that fails, with its reason");
    let mut spec = JobSpec::new(IMAGE);
    spec.name = Some("failing".to_owned());
    spec.command = Some(["fail", "3"].map(String::from).to_vec());
    let (job, detail, task) = run(client, &spec).await?;
    ensure!(detail.job.tasks.failed == 1, "the second job was meant to fail");
    say(&format!("     it ended as: {}", reason(&task)));
    say(&format!("     `swarm consumer why {job}` says: {}", client.why(job).await?.summary));
    Ok(())
}

/// Submits, follows the log, and waits for the end.
async fn run(client: &Client, spec: &JobSpec) -> anyhow::Result<(JobId, JobDetail, TaskView)> {
    let key = format!("demo-{}", spec.name.as_deref().unwrap_or_default());
    let job = client.submit(spec, Some(&key)).await?.job;
    say(&format!("     job {job} accepted"));
    let follow = async {
        let began = Instant::now();
        let detail = loop {
            let detail = client.wait_job(job, Duration::from_secs(10)).await?;
            if detail.job.state.is_final() {
                break detail;
            }
            say(&format!("     … {} after {} s", detail.job.state, began.elapsed().as_secs()));
        };
        let id = TaskId { job, task: 0 };
        let mut log = client.log(id, LogOptions::default());
        while let Some(record) = log.next().await? {
            let stream = if record.stream == LogStream::Stderr { "stderr" } else { "stdout" };
            for line in swarm_protocol::text::sanitise_bytes(&record.bytes, true).lines() {
                say(&format!("     {stream} | {line}"));
            }
        }
        anyhow::Ok((job, detail, client.task(id).await?))
    };
    match tokio::time::timeout(PATIENCE, follow).await {
        Ok(done) => done,
        Err(_) => bail!("job {job} did not end within {} s: {}", PATIENCE.as_secs(), client.why(job).await?.summary),
    }
}

fn reason(task: &TaskView) -> String {
    let outcome = task.outcome.map_or("unknown", swarm_protocol::OutcomeKind::as_str);
    let code = task.exit_code.map(|code| format!(", exit code {code}")).unwrap_or_default();
    let detail = task.detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default();
    swarm_protocol::text::sanitise(&format!("{outcome}{code}{detail}"), false)
}

/// The demo's transfers take a moment each; its own lines are progress enough.
fn quiet() -> Progress {
    std::sync::Arc::new(|_| ())
}

/// A loopback address nobody listens on at the moment.
fn free_address() -> anyhow::Result<std::net::SocketAddr> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

/// The defaults in a directory of the demo's own. Neither a file nor the environment has a say: they may name the
/// database of a swarm that is used in earnest.
fn core_config(data: &Path) -> anyhow::Result<CoreConfig> {
    // The demo speaks for itself; of the log it shows errors only.
    let log = LogSettings { filter: "error".to_owned(), ..LogSettings::default() };
    Ok(CoreConfig { data_dir: data.join("core"), listen: free_address()?, log, ..CoreConfig::default() })
}

/// Cancels what has not ended, so that the worker has nothing to wait for.
async fn cancel_all(url: &str, core_data: &Path) -> anyhow::Result<()> {
    let client = embedded::admin(url, &embedded::admin_password(core_data)).await?;
    for job in client.jobs(&JobFilter::default()).await?.items {
        if !job.state.is_final() {
            client.cancel(job.id).await?;
        }
    }
    Ok(())
}

/// Containers and volumes are removed by the worker after each attempt; what is left is the image, and everything if
/// the worker could not do it.
async fn clean_up(worker: &WorkerConfig, runtime: &dyn ContainerRuntime, image: Option<Digest>) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        let removed = remove_all(worker, runtime, image).await;
        if removed.is_ok() || began.elapsed() > REMOVAL {
            return removed.context("something of the demo could not be removed from Docker");
        }
        tokio::time::sleep(REMOVAL_STEP).await;
    }
}

async fn remove_all(
    worker: &WorkerConfig,
    runtime: &dyn ContainerRuntime,
    image: Option<Digest>,
) -> anyhow::Result<()> {
    swarm_worker::run::remove_everything(worker, runtime).await?;
    match image {
        Some(image) => match runtime.remove_image(&image).await {
            // No job came so far that the engine was given the image.
            Err(error) if error.is_not_found() => Ok(()),
            removed => Ok(removed?),
        },
        None => Ok(()),
    }
}
