//! A small HTTP server for tests: answers by a function, and can break an answer off anywhere.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// What came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        let query = self.target.split_once('?')?.1;
        query.split('&').filter_map(|pair| pair.split_once('=')).find(|(key, _)| *key == name).map(|(_, value)| value)
    }

    /// Method and path in one, for matching.
    pub(crate) fn route(&self) -> String {
        format!("{} {}", self.method, self.target.split('?').next().unwrap_or_default())
    }
}

/// What goes back.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// After so many bytes of the body nothing comes for so long, then the connection is closed.
    cut: Option<(usize, Duration)>,
}

impl Reply {
    pub(crate) fn bytes(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: body.into(), cut: None }
    }

    pub(crate) fn json(status: u16, body: &serde_json::Value) -> Self {
        Self::bytes(status, body.to_string())
    }

    pub(crate) fn problem(status: u16, code: &str) -> Self {
        let problem = swarm_protocol::problem::Problem::new(status, code, code, format!("refused: {code}"));
        Self::bytes(status, serde_json::to_vec(&problem).unwrap())
    }

    pub(crate) fn header(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }

    pub(crate) fn cut(mut self, after: usize, silence: Duration) -> Self {
        self.cut = Some((after, silence));
        self
    }
}

/// A server on a port of its own, gone with the test's runtime.
pub(crate) struct Server {
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) async fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), answer)
    }

    /// A server on this port.
    pub(crate) fn on(listener: TcpListener, answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (kept, answer) = (Arc::clone(&seen), Arc::new(answer));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (kept, answer) = (Arc::clone(&kept), Arc::clone(&answer));
                tokio::spawn(async move {
                    let _ = one(socket, |request| {
                        kept.lock().unwrap().push(request.clone());
                        answer(request)
                    })
                    .await;
                });
            }
        });
        Self { url, seen }
    }

    /// Every request so far whose method and path are these.
    pub(crate) fn seen(&self, route: &str) -> Vec<Request> {
        self.seen.lock().unwrap().iter().filter(|request| request.route() == route).cloned().collect()
    }
}

async fn one(socket: TcpStream, answer: impl FnOnce(&Request) -> Reply) -> io::Result<()> {
    let mut socket = BufReader::new(socket);
    let mut line = String::new();
    socket.read_line(&mut line).await?;
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut request = Request { method, target, ..Request::default() };
    loop {
        let mut line = String::new();
        socket.read_line(&mut line).await?;
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        request.headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    request.body = body(&mut socket, &request).await?;
    let reply = answer(&request);
    let mut head =
        format!("HTTP/1.1 {} X\r\nconnection: close\r\ncontent-length: {}\r\n", reply.status, reply.body.len());
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    socket.write_all(format!("{head}\r\n").as_bytes()).await?;
    if request.method != "HEAD" {
        let (end, silence) = reply.cut.unwrap_or((reply.body.len(), Duration::ZERO));
        socket.write_all(&reply.body[..end.min(reply.body.len())]).await?;
        socket.flush().await?;
        tokio::time::sleep(silence).await;
    }
    socket.shutdown().await
}

async fn body(socket: &mut BufReader<TcpStream>, request: &Request) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if request.header("transfer-encoding") != "chunked" {
        body.resize(request.header("content-length").parse().unwrap_or(0), 0);
        socket.read_exact(&mut body).await?;
        return Ok(body);
    }
    loop {
        let mut line = String::new();
        socket.read_line(&mut line).await?;
        let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; size + 2];
        socket.read_exact(&mut chunk).await?;
        body.extend_from_slice(&chunk[..size]);
        if size == 0 {
            return Ok(body);
        }
    }
}
