//! A link between worker and core that a test can spoil: TCP and UDP on one loopback address, passed on to the core, late,
//! twice, out of order, with flipped bits, or not at all. What drops packets below it are the filters of a
//! [`Namespace`](super::Namespace).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Runtime;

/// How packets fare, in both directions.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Weather {
    /// Each piece of a stream, and each datagram, is held back for up to this long, drawn anew each time: datagrams
    /// overtake each other.
    pub(crate) delay_max: Duration,
    /// And no less than this; what is longer counts.
    pub(crate) delay_min: Duration,
    /// Of 100 datagrams so many are lost.
    pub(crate) lost: u32,
    /// Of 100 datagrams so many come twice.
    pub(crate) doubled: u32,
    /// Of 100 datagrams so many have a bit flipped.
    pub(crate) spoiled: u32,
    /// Of 1,000 full pieces of a stream so many have a bit flipped: those are of files. The link's own frames are short,
    /// and as long as there is no TLS they have no protection but TCP's.
    pub(crate) spoiled_files: u32,
}

/// What is read from a stream at a time, at most.
const PIECE: usize = 16 << 10;

#[derive(Default)]
struct Shared {
    weather: Mutex<Weather>,
    /// Where TCP goes, and UDP.
    target: Mutex<Option<(SocketAddr, SocketAddr)>>,
}

/// Passes on until it is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
    /// Its threads are in the namespace of the thread that made the proxy.
    _runtime: Runtime,
}

impl Proxy {
    /// Listens on a free loopback address; nothing is passed on before it is aimed.
    pub(crate) fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a runtime can be started");
        let shared = Arc::<Shared>::default();
        let (listener, socket) = runtime.block_on(bind()).expect("a port is free for TCP and UDP alike");
        let address = listener.local_addr().expect("it is bound");
        runtime.spawn(streams(listener, Arc::clone(&shared)));
        runtime.spawn(datagrams(socket, Arc::clone(&shared)));
        Self { address, shared, _runtime: runtime }
    }

    /// Where heartbeats must be received for this proxy to be in between: a worker sends them to the host of its link, on
    /// the port that the core names.
    pub(crate) fn heartbeats(&self, core: u8) -> SocketAddr {
        (Ipv4Addr::new(127, 0, 0, core), self.address.port()).into()
    }

    /// New connections, and datagrams from new senders, go there.
    pub(crate) fn aim(&self, tcp: SocketAddr, udp: SocketAddr) {
        *self.shared.target.lock().unwrap_or_else(PoisonError::into_inner) = Some((tcp, udp));
    }

    /// From now on.
    pub(crate) fn weather(&self, weather: Weather) {
        *self.shared.weather.lock().unwrap_or_else(PoisonError::into_inner) = weather;
    }
}

async fn bind() -> io::Result<(TcpListener, UdpSocket)> {
    loop {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        if let Ok(socket) = UdpSocket::bind(listener.local_addr()?).await {
            return Ok((listener, socket));
        }
    }
}

impl Shared {
    fn target(&self) -> Option<(SocketAddr, SocketAddr)> {
        *self.target.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Weather {
        *self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Weather {
    async fn hold_back(self) {
        let [least, most] = [self.delay_min, self.delay_max.max(self.delay_min)].map(|delay| delay.as_micros() as u64);
        if most > 0 {
            tokio::time::sleep(Duration::from_micros(rand::random_range(least..=most))).await;
        }
    }
}

fn spoil(bytes: &mut [u8]) {
    if !bytes.is_empty() {
        let at = rand::random_range(0..bytes.len());
        bytes[at] ^= 1 << rand::random_range(0..8u8);
    }
}

/// Whether this is one of the `few` of `many`.
fn strikes(few: u32, many: u32) -> bool {
    few > 0 && rand::random_ratio(few.min(many), many)
}

async fn streams(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((near, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let Some((tcp, _)) = shared.target() else { return };
            let Ok(far) = TcpStream::connect(tcp).await else { return };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            // When one direction breaks the other has no sense any more; an orderly end is passed on.
            let _ = tokio::try_join!(pump(near_in, far_out, &shared), pump(far_in, near_out, &shared));
        });
    }
}

async fn pump(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, shared: &Shared) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    loop {
        let count = from.read(&mut buffer).await?;
        if count == 0 {
            return to.shutdown().await;
        }
        let weather = shared.now();
        weather.hold_back().await;
        if count == PIECE && strikes(weather.spoiled_files, 1000) {
            spoil(&mut buffer);
        }
        to.write_all(&buffer[..count]).await?;
    }
}

async fn datagrams(near: UdpSocket, shared: Arc<Shared>) {
    let (near, mut far) = (Arc::new(near), HashMap::<SocketAddr, Arc<UdpSocket>>::new());
    let mut buffer = vec![0; 64 << 10];
    loop {
        // An error tells of an earlier datagram that nobody took.
        let Ok((count, sender)) = near.recv_from(&mut buffer).await else { continue };
        let socket = match far.entry(sender) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let Some((_, udp)) = shared.target() else { continue };
                let Ok(socket) = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await else { continue };
                if socket.connect(udp).await.is_err() {
                    continue;
                }
                let socket = Arc::new(socket);
                tokio::spawn(answers(Arc::clone(&socket), Arc::clone(&near), sender, Arc::clone(&shared)));
                new.insert(socket)
            }
        };
        carry(&buffer[..count], shared.now(), socket, None);
    }
}

async fn answers(far: Arc<UdpSocket>, near: Arc<UdpSocket>, sender: SocketAddr, shared: Arc<Shared>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let Ok(count) = far.recv(&mut buffer).await else { continue };
        carry(&buffer[..count], shared.now(), &near, Some(sender));
    }
}

/// Sends one datagram as the weather has it; without an address to where the socket is connected.
fn carry(bytes: &[u8], weather: Weather, socket: &Arc<UdpSocket>, to: Option<SocketAddr>) {
    if strikes(weather.lost, 100) {
        return;
    }
    for _ in 0..1 + u32::from(strikes(weather.doubled, 100)) {
        let (mut bytes, socket) = (bytes.to_vec(), Arc::clone(socket));
        tokio::spawn(async move {
            weather.hold_back().await;
            if strikes(weather.spoiled, 100) {
                spoil(&mut bytes);
            }
            // What cannot be sent is lost, as datagrams are.
            let _ = match to {
                Some(to) => socket.send_to(&bytes, to).await,
                None => socket.send(&bytes).await,
            };
        });
    }
}
