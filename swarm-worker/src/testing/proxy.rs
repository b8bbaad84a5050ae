//! The machine's engine behind a socket that may answer in its place, for what it cannot be brought to do in a test.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::task::AbortOnDropHandle;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The engine is asked and its answer handed back.
    Passes,
    /// The engine is asked and does it, and status 500 comes back.
    DoneButFails,
    /// The engine is not asked, and nothing comes back.
    Hangs,
}

type Judge = dyn Fn(&str) -> Fate + Send + Sync;

/// See the module. It ends when it is dropped.
pub(crate) struct Proxy {
    /// As in `DOCKER_HOST`.
    pub(crate) host: String,
    _dir: tempfile::TempDir,
    _serves: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Asks `judge` about each call, such as `POST /containers/ID/start`, with its query.
    pub(crate) fn start(judge: impl Fn(&str) -> Fate + Send + Sync + 'static) -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let socket = dir.path().join("engine.sock");
        let listener = UnixListener::bind(&socket).expect("a socket can be made");
        let (judge, engine): (Arc<Judge>, _) = (Arc::new(judge), engine_socket());
        let serves = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let (judge, engine) = (Arc::clone(&judge), engine.clone());
                // A connection that breaks is the client's to complain about.
                tokio::spawn(async move { serve(client, &engine, &*judge).await });
            }
        });
        Self { host: format!("unix://{}", socket.display()), _dir: dir, _serves: AbortOnDropHandle::new(serves) }
    }
}

fn engine_socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    PathBuf::from(host.strip_prefix("unix://").unwrap_or("/var/run/docker.sock"))
}

/// One call: each gets a connection of its own, so that no other need be told from it.
async fn serve(mut client: UnixStream, engine: &Path, judge: &Judge) -> io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let head = String::from_utf8(head).map_err(io::Error::other)?;
    let (first, headers) = head.split_once("\r\n").expect("a head has lines");
    let fate = judge(first.trim_end_matches(" HTTP/1.1"));
    if fate == Fate::Hangs {
        // Until whoever called gives up.
        return tokio::io::copy(&mut client, &mut tokio::io::sink()).await.map(drop);
    }
    let mut engine = UnixStream::connect(engine).await?;
    engine.write_all(format!("{first}\r\nConnection: close\r\n{headers}").as_bytes()).await?;
    if fate == Fate::Passes {
        return tokio::io::copy_bidirectional(&mut client, &mut engine).await.map(drop);
    }
    engine.read_to_end(&mut Vec::new()).await?;
    let body = r#"{"message":"the answer was lost"}"#;
    let head = "HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\nConnection: close";
    client.write_all(format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).await
}
