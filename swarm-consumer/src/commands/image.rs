//! `image push` and `image ls`.

use std::io;
use std::path::Path;
use std::sync::Arc;

use bollard::Docker;
use bytes::Bytes;
use chrono::Utc;
use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use swarm_client::{Client, ClientError};
use swarm_protocol::Digest;
use swarm_protocol::api::ImageView;
use tokio_util::io::ReaderStream;

use crate::cli::{ImageCommand, ImagePush};
use crate::exit::Exit;
use crate::failure::{Done, Failure};
use crate::output::{Format, show};
use crate::views::{Images, Pushed};

const READ_BYTES: usize = 256 << 10;

pub(crate) async fn run(client: &Client, command: ImageCommand, format: Format) -> Done<u8> {
    match command {
        ImageCommand::Ls(_) => show(format, &Images { images: client.images().await?.items, now: Utc::now() })?,
        ImageCommand::Push(push) => show(format, &push_image(client, &push).await?)?,
    }
    Ok(0)
}

async fn push_image(client: &Client, push: &ImagePush) -> Done<Pushed> {
    let name = push.name.as_deref();
    if push.source == "-" {
        let bytes = ReaderStream::with_capacity(stdin()?, READ_BYTES);
        return sent(upload(client, name, None, bytes, "standard input").await?);
    }
    let path = Path::new(&push.source);
    let file = tokio::fs::metadata(path).await.ok().filter(std::fs::Metadata::is_file);
    if let Some(facts) = file {
        let open = tokio::fs::File::open(path).await;
        let open = open.map_err(|error| Failure::io(format!("cannot read {}", path.display()), &error))?;
        return sent(
            upload(
                client,
                name,
                Some(facts.len()),
                ReaderStream::with_capacity(open, READ_BYTES),
                &path.display().to_string(),
            )
            .await?,
        );
    }
    if is_only_a_path(&push.source) {
        let what = format!("there is no file `{}`", push.source);
        return Err(Failure::new(Exit::NotFound, what).hint("give the path of an archive, or the name of an image"));
    }
    from_docker(client, &push.source, name).await
}

/// Whether `source` cannot be the name of an image, so that asking Docker for it would only confuse.
fn is_only_a_path(source: &str) -> bool {
    source.is_empty() || source.starts_with(['/', '.', '~']) || source.ends_with('/') || source.contains("//")
}

/// Standard input as a file: its reads block a thread made for that, not the runtime.
fn stdin() -> Done<tokio::fs::File> {
    use std::os::fd::AsFd as _;
    let handle = io::stdin().as_fd().try_clone_to_owned();
    let handle = handle.map_err(|error| Failure::io("cannot read standard input", &error))?;
    Ok(tokio::fs::File::from_std(handle.into()))
}

fn sent(image: ImageView) -> Done<Pushed> {
    Ok(Pushed { image, sent: true })
}

/// Sends an image of the local Docker; when the core has its config digest already, only the name is told.
async fn from_docker(client: &Client, reference: &str, name: Option<&str>) -> Done<Pushed> {
    let docker = Docker::connect_with_defaults().map_err(|error| no_docker(reference, &error))?;
    let found = docker.inspect_image(reference).await.map_err(|error| match error {
        bollard::errors::Error::DockerResponseServerError { status_code: 404, .. } => {
            Failure::new(Exit::NotFound, format!("there is neither a file nor a local Docker image `{reference}`"))
                .hint(format!("run `docker pull {reference}` first, or give the path of an archive"))
        }
        error => no_docker(reference, &error),
    })?;
    let name = match name {
        Some(name) => name.to_owned(),
        None => tag_of(reference, found.repo_tags.as_deref().unwrap_or_default())?,
    };
    let digest = found.id.as_deref().and_then(|id| id.parse::<Digest>().ok());
    if let Some(digest) = digest
        && client.image(digest).await?.is_some()
    {
        let image = client.tag_image(digest, &name).await?;
        return Ok(Pushed { image, sent: false });
    }
    let size = found.size.and_then(|size| u64::try_from(size).ok());
    let bytes = async_stream_of(docker, reference.to_owned());
    sent(upload(client, Some(&name), size, bytes, &format!("the local Docker's `{reference}`")).await?)
}

/// The export as a stream that owns its connection.
fn async_stream_of(docker: Docker, reference: String) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    let (send, receive) = tokio::sync::mpsc::channel(4);
    tokio::spawn(async move {
        let mut export = docker.export_image(&reference).map_err(io::Error::other).boxed();
        while let Some(piece) = export.next().await {
            if send.send(piece).await.is_err() {
                break;
            }
        }
    });
    futures_util::stream::unfold(receive, |mut receive| async move { Some((receive.recv().await?, receive)) })
}

fn no_docker(reference: &str, error: &bollard::errors::Error) -> Failure {
    Failure::new(Exit::Error, format!("cannot ask the local Docker for `{reference}`: {error}"))
        .hint("start Docker or set DOCKER_HOST; or `docker save` the image elsewhere and push the file")
}

/// An image named by its id has to be called something in the swarm.
fn tag_of(reference: &str, tags: &[String]) -> Done<String> {
    let hex = reference.strip_prefix("sha256:").unwrap_or(reference);
    let is_id = hex.len() >= 12 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_id {
        return Ok(reference.to_owned());
    }
    tags.first().cloned().ok_or_else(|| Failure::usage("the image has no name").hint("give it one with --name"))
}

async fn upload(
    client: &Client,
    name: Option<&str>,
    size: Option<u64>,
    bytes: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
    source: &str,
) -> Done<ImageView> {
    let bar = bar(size);
    let moving = bar.clone();
    let progress: swarm_client::Progress = Arc::new(move |moved| moving.set_position(moved));
    let pushed = client.upload_image(name, bytes, progress).await;
    bar.finish_and_clear();
    pushed.map_err(|error| match error {
        ClientError::Source(error) => Failure::io(format!("cannot read {source}"), &error),
        error => error.into(),
    })
}

/// A progress bar on standard error; hidden where that is no terminal.
pub(crate) fn bar(size: Option<u64>) -> indicatif::ProgressBar {
    use indicatif::{ProgressBar, ProgressStyle};
    let text = "{spinner} {bytes} {wide_bar} {bytes_per_sec}";
    let style = ProgressStyle::with_template(text).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = size.map_or_else(ProgressBar::no_length, ProgressBar::new);
    bar.with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_a_path_can_be_is_not_asked_of_docker() {
        for path in ["/tmp/image.tar", "./image.tar", "../a", "~/a", "a/", "a//b", ""] {
            assert!(is_only_a_path(path), "{path}");
        }
        for name in ["alpine", "alpine:3.20", "localhost:5000/tools/a", "image.tar", "sha256:0123456789abcdef"] {
            assert!(!is_only_a_path(name), "{name}");
        }
    }

    #[test]
    fn an_id_is_no_name() {
        assert_eq!(tag_of("alpine:3", &[]).unwrap(), "alpine:3");
        assert_eq!(tag_of("sha256:0123456789abcdef", &["a:1".into()]).unwrap(), "a:1");
        assert!(tag_of("0123456789ab", &[]).is_err());
    }
}
