//! What hosts hold of the network: ends of links, sockets, calls.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Sink, Stream};
use rand::RngExt as _;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::{CORE, End, Event, Net, Packet, Site};
use crate::calls::{Answer, Request};

/// How long anybody waits for an answer.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// One end of a link. The other end hears that it was dropped, if the machine lives on.
pub(crate) struct LinkEnd {
    hold: Arc<Hold>,
    events: mpsc::UnboundedReceiver<Event>,
}

/// The half of an end that takes messages.
pub(crate) struct Outlet(Arc<Hold>);

/// The half of an end that gives them.
pub(crate) struct Inlet {
    _hold: Arc<Hold>,
    events: mpsc::UnboundedReceiver<Event>,
}

struct Hold {
    net: Net,
    link: u64,
    side: usize,
}

impl LinkEnd {
    pub(super) fn new(net: Net, link: u64, side: usize, events: mpsc::UnboundedReceiver<Event>) -> Self {
        Self { hold: Arc::new(Hold { net, link, side }), events }
    }

    /// Both halves; the end is dropped with the last of them.
    pub(crate) fn split(self) -> (Outlet, Inlet) {
        (Outlet(Arc::clone(&self.hold)), Inlet { _hold: self.hold, events: self.events })
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut inner = self.net.lock();
        let Some(ends) = inner.links.get_mut(&self.link) else { return };
        ends[self.side].events = None;
        let (site, is_last) = (ends[self.side].site, ends[1 - self.side].events.is_none());
        if !inner.dark.contains(&site) {
            inner.send_event(self.link, self.side, Event::Closed);
        }
        if is_last {
            inner.links.remove(&self.link);
        }
    }
}

impl Sink<Bytes> for Outlet {
    type Error = io::Error;

    fn poll_ready(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let inner = self.0.net.lock();
        let is_open = inner.links.get(&self.0.link).is_some_and(|ends| ends[self.0.side].events.is_some());
        Poll::Ready(if is_open { Ok(()) } else { Err(io::ErrorKind::BrokenPipe.into()) })
    }

    fn start_send(self: Pin<&mut Self>, bytes: Bytes) -> io::Result<()> {
        self.0.net.lock().send_event(self.0.link, self.0.side, Event::Message(bytes));
        Ok(())
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Stream for Inlet {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            return match self.events.poll_recv(context) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Some(Event::Opened)) => continue,
                Poll::Ready(Some(Event::Message(bytes))) => Poll::Ready(Some(Ok(bytes))),
                Poll::Ready(Some(Event::Closed) | None) => Poll::Ready(None),
            };
        }
    }
}

impl Net {
    /// Opens a link to the core.
    pub(crate) async fn open(&self, from: Site, key: String) -> io::Result<LinkEnd> {
        let (sender, events) = mpsc::unbounded_channel();
        let mut end = {
            let mut inner = self.lock();
            let link = inner.draw();
            let empty = |site, events| End { site, events, last_us: 0, sent: 0 };
            inner.links.insert(link, [empty(from, Some(sender)), empty(CORE, None)]);
            inner.send(from, CORE, Packet::Open { link, key });
            LinkEnd::new(self.clone(), link, 0, events)
        };
        match end.events.recv().await {
            Some(Event::Opened) => Ok(end),
            _ => Err(io::ErrorKind::ConnectionRefused.into()),
        }
    }

    /// Asks the core; `None` when no answer came, whatever became of the request.
    pub(crate) async fn call(&self, from: Site, request: Request) -> Option<Answer> {
        let (asked, answer) = oneshot::channel();
        {
            let mut inner = self.lock();
            let call = inner.draw();
            inner.calls.insert(call, (from, asked));
            inner.send(from, CORE, Packet::Call { call, request });
        }
        tokio::time::timeout(CALL_TIMEOUT, answer).await.ok()?.ok()?.map(|answer| *answer)
    }

    /// A socket for datagrams; port 0 takes a free one.
    pub(crate) fn socket(&self, site: Site, port: u16) -> Socket {
        let mut inner = self.lock();
        let number = inner.draw();
        let free = 1024 + u16::try_from(number % 60_000).unwrap_or_default();
        let own = address(site, if port == 0 { free } else { port });
        let (sender, datagrams) = mpsc::unbounded_channel();
        inner.sockets.insert(own, (number, sender));
        Socket { net: self.clone(), own, number, datagrams: Mutex::new(datagrams) }
    }
}

/// A socket for datagrams, closed when it is dropped.
pub(crate) struct Socket {
    net: Net,
    number: u64,
    pub(crate) own: SocketAddr,
    datagrams: Mutex<mpsc::UnboundedReceiver<(Vec<u8>, SocketAddr)>>,
}

impl Socket {
    pub(crate) fn send(&self, bytes: &[u8], to: SocketAddr) {
        let mut inner = self.net.lock();
        let (Some(from), Some(site)) = (site_of(self.own), site_of(to)) else { return };
        let weather = inner.weather;
        if inner.rng.random_bool(weather.loss) {
            return inner.count("datagram lost");
        }
        let times = if inner.rng.random_bool(weather.doubled) { 2 } else { 1 };
        if times == 2 {
            inner.count("datagram doubled");
        }
        for _ in 0..times {
            inner.send(from, site, Packet::Datagram { from: self.own, to, bytes: bytes.to_vec() });
        }
    }

    pub(crate) async fn recv(&self, buffer: &mut [u8]) -> (usize, SocketAddr) {
        let Some((bytes, from)) = self.datagrams.lock().await.recv().await else { return std::future::pending().await };
        let length = bytes.len().min(buffer.len());
        buffer[..length].copy_from_slice(&bytes[..length]);
        (length, from)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut inner = self.net.lock();
        // The address may be another one's by now.
        if inner.sockets.get(&self.own).is_some_and(|(number, ..)| *number == self.number) {
            inner.sockets.remove(&self.own);
        }
    }
}

/// An address of a site; all of them are loopback.
pub(crate) fn address(site: Site, port: u16) -> SocketAddr {
    let [high, low] = site.0.to_be_bytes();
    SocketAddr::from((Ipv4Addr::new(127, 1, high, low), port))
}

fn site_of(address: SocketAddr) -> Option<Site> {
    let SocketAddr::V4(address) = address else { return None };
    let [.., high, low] = address.ip().octets();
    Some(Site(u16::from_be_bytes([high, low])))
}

/// Where the answer to a call goes. Whoever asked hears that it was dropped, if the machine lives on.
pub(crate) struct Reply {
    net: Net,
    call: Option<u64>,
}

impl Reply {
    pub(super) fn new(net: Net, call: u64) -> Self {
        Self { net, call: Some(call) }
    }

    pub(crate) fn send(mut self, answer: Answer) {
        if let Some(call) = self.call.take() {
            self.net.lock().answer(call, CORE, Some(Box::new(answer)));
        }
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            self.net.lock().answer(call, CORE, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_tells_its_site() {
        for site in [CORE, Site(3), Site(1000)] {
            assert_eq!(site_of(address(site, 7)), Some(site));
        }
    }
}
