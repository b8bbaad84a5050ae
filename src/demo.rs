//! `swarm demo`: the main job end to end, for real, leaving nothing behind but its results.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use swarm_client::{Client, Destination, LogOptions, Progress};
use swarm_core::config::{CoreConfig, CoreFlags};
use swarm_core::logger::Stderr;
use swarm_protocol::api::{JobDetail, TaskView};
use swarm_protocol::logs::LogStream;
use swarm_protocol::spec::{Input, JobSpec, Output};
use swarm_protocol::{Digest, JobId, TaskId};

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
    let flags =
        CoreFlags { data_dir: Some(data.path().join("core")), listen: Some(free_address()?), ..CoreFlags::default() };
    let mut config = CoreConfig::load(None, &flags)?;
    // The demo speaks for itself; of the log it shows errors only.
    config.log.filter = "error".to_owned();
    let core_data = config.data_dir.clone();
    let worker = embedded::worker_config(&core_data, options.docker_host);
    let runtime = embedded::engine(&worker).await?;
    let log = swarm_core::cli::start_log(&config, Stderr::Quiet)?;
    let mut signals = swarm_core::cli::Signals::listen()?;
    let mut swarm = Embedded::start(config, log.clone(), worker, runtime.clone()).await?;
    let (mut image, url) = (None, swarm.url.clone());
    let worked = tokio::select! {
        worked = work(&url, &core_data, data.path(), &options.into, &mut image) => worked,
        ended = swarm.ended() => ended.and_then(|()| bail!("the swarm ended by itself")),
        () = signals.any() => Err(anyhow::anyhow!("interrupted")),
    };
    say("6/6  Stopping, and removing every container, volume and image of the demo");
    let stopped = swarm.stop().await;
    let cleaned = clean_up(&*runtime, image).await;
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
    let first = count_words(&client, scratch, into).await?;
    failing(&client).await?;
    let why = client.why(first).await?;
    say(&format!("     `why {first}` says: {}", why.summary));
    Ok(())
}

async fn count_words(client: &Client, scratch: &Path, into: &Path) -> anyhow::Result<JobId> {
    say("4/6  A job that takes an input file and hands back an output file");
    let text = scratch.join("text.txt");
    std::fs::write(&text, TEXT)?;
    let uploaded = client.upload_file(&text, quiet()).await?;
    let mut spec = JobSpec::new(IMAGE);
    spec.name = Some("count-words".to_owned());
    spec.command = Some(["count-words", "/in/text.txt", "/out/words.txt"].map(String::from).to_vec());
    spec.inputs = vec![Input { digest: uploaded.digest, path: "/in/text.txt".to_owned(), mode: 0o644 }];
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
    Ok(job)
}

async fn failing(client: &Client) -> anyhow::Result<()> {
    say("5/6  A job that fails, with its reason");
    let mut spec = JobSpec::new(IMAGE);
    spec.name = Some("failing".to_owned());
    spec.command = Some(["fail", "3"].map(String::from).to_vec());
    let (_, detail, task) = run(client, &spec).await?;
    ensure!(detail.job.tasks.failed == 1, "the second job was meant to fail");
    say(&format!("     it ended as: {}", reason(&task)));
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

/// Containers and volumes are removed by the worker after each attempt; the image is what is left.
async fn clean_up(runtime: &dyn swarm_worker::runtime::ContainerRuntime, image: Option<Digest>) -> anyhow::Result<()> {
    let Some(image) = image else { return Ok(()) };
    runtime.remove_image(&image).await.context("the demo's image could not be removed from Docker")
}
