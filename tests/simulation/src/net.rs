//! The simulated network. Streams of messages keep their order and lose nothing: what cannot pass is held until it can, as
//! by a network stack that sends again. Datagrams get lost, come twice, late and in another order. All that is on its way
//! is delivered between the steps of the hosts.

mod ends;
mod faults;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::{mpsc, oneshot};

pub(crate) use self::ends::{LinkEnd, Reply, Socket, address};
use crate::calls::{Answer, Request};
use crate::time::{now_us, trace};

/// A machine on the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Site(pub(crate) u16);

/// Where the core is, the only one that listens.
pub(crate) const CORE: Site = Site(0);
/// Where the users are.
pub(crate) const USERS: Site = Site(1000);

impl fmt::Display for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            CORE => f.write_str("core"),
            USERS => f.write_str("users"),
            Self(n) => write!(f, "worker {n}"),
        }
    }
}

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Weather {
    /// Share of datagrams that get lost.
    pub(crate) loss: f64,
    /// Share of those that come twice.
    pub(crate) doubled: f64,
    /// Longest delay in milliseconds.
    pub(crate) delay_max_ms: u64,
    /// Share of packets that take up to 3 s.
    pub(crate) stalled: f64,
    /// Share of transfers that break off in the middle.
    pub(crate) torn: f64,
}

impl Weather {
    pub(crate) const FAIR: Self = Self { loss: 0.0, doubled: 0.0, delay_max_ms: 20, stalled: 0.0, torn: 0.0 };
}

/// What comes to whoever listens.
pub(crate) enum Arrival {
    /// A worker opens a link with this key.
    Link { key: String, end: LinkEnd },
    /// Somebody asks something.
    Call { request: Request, reply: Reply },
}

/// What one end of a link hears.
#[derive(Debug)]
pub(crate) enum Event {
    Opened,
    Message(Bytes),
    Closed,
}

/// What is on its way.
enum Packet {
    Datagram {
        from: SocketAddr,
        to: SocketAddr,
        bytes: Vec<u8>,
    },
    Open {
        link: u64,
        key: String,
    },
    /// To the end `side` of a link, its message of this number.
    Event {
        link: u64,
        side: usize,
        number: u64,
        event: Event,
    },
    Call {
        call: u64,
        request: Request,
    },
    Answer {
        call: u64,
        answer: Option<Box<Answer>>,
    },
}

struct Moving {
    from: Site,
    to: Site,
    packet: Packet,
}

/// One end of a link: 0 is the worker's, 1 the core's.
struct End {
    site: Site,
    events: Option<mpsc::UnboundedSender<Event>>,
    /// When the last message that it sent arrives, and how many it sent.
    last_us: u64,
    sent: u64,
}

/// Where datagrams for an address go, with the address each came from; beside it the socket's number.
type Datagrams = mpsc::UnboundedSender<(Vec<u8>, SocketAddr)>;
/// Who waits for the answer to a call; none when the line broke.
type Asked = oneshot::Sender<Option<Box<Answer>>>;

struct Inner {
    rng: StdRng,
    weather: Weather,
    /// By when it is due, then in the order it was sent.
    moving: BTreeMap<(u64, u64), Moving>,
    /// What cannot pass now, by the way it would take.
    held: BTreeMap<(Site, Site), Vec<Moving>>,
    cut: BTreeSet<(Site, Site)>,
    /// Machines without power.
    dark: BTreeSet<Site>,
    listener: Option<mpsc::UnboundedSender<Arrival>>,
    sockets: BTreeMap<SocketAddr, (u64, Datagrams)>,
    links: BTreeMap<u64, [End; 2]>,
    calls: BTreeMap<u64, (Site, Asked)>,
    /// Calls that the core has not answered yet.
    served: BTreeSet<u64>,
    drawn: u64,
    /// Frames that are watched for, and which came, with the worker that said or hears them.
    awaited: Vec<&'static str>,
    seen: Vec<(&'static str, Site)>,
    /// Faults that hit something, by kind.
    faults: BTreeMap<&'static str, u64>,
}

/// The network; clones are the same one.
#[derive(Clone)]
pub(crate) struct Net(Arc<Mutex<Inner>>);

impl Net {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            rng: StdRng::seed_from_u64(seed),
            weather: Weather::FAIR,
            moving: BTreeMap::new(),
            held: BTreeMap::new(),
            cut: BTreeSet::new(),
            dark: BTreeSet::new(),
            listener: None,
            sockets: BTreeMap::new(),
            links: BTreeMap::new(),
            calls: BTreeMap::new(),
            served: BTreeSet::new(),
            drawn: 0,
            awaited: Vec::new(),
            seen: Vec::new(),
            faults: BTreeMap::new(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// Nothing passes from `from` to `to` any more, or everything again.
    pub(crate) fn set_cut(&self, from: Site, to: Site, is_cut: bool) {
        let mut inner = self.lock();
        if is_cut {
            inner.cut.insert((from, to));
        } else if inner.cut.remove(&(from, to)) {
            inner.let_pass(from, to);
        }
    }

    /// Nothing on this machine answers any more, not even that it is gone; or it does again.
    pub(crate) fn set_dark(&self, site: Site, is_dark: bool) {
        let mut inner = self.lock();
        if is_dark {
            inner.dark.insert(site)
        } else {
            inner.dark.remove(&site)
        };
    }

    /// The process on this machine dies by `kill`. Its kernel says so to whoever it spoke with, one after the other: what a
    /// runtime drops first is left to chance.
    pub(crate) fn crash(&self, site: Site, kill: impl FnOnce()) {
        self.lock().close_all(site);
        self.set_dark(site, true);
        kill();
        self.set_dark(site, false);
    }

    /// What comes to the core from now on; dropping the receiver ends that.
    pub(crate) fn listen(&self) -> mpsc::UnboundedReceiver<Arrival> {
        let (sender, arrivals) = mpsc::unbounded_channel();
        self.lock().listener = Some(sender);
        arrivals
    }

    /// When the next packet is due.
    pub(crate) fn next_us(&self) -> Option<u64> {
        self.lock().moving.keys().next().map(|(due_us, _)| *due_us)
    }

    /// Delivers what is due.
    pub(crate) fn deliver(&self) {
        loop {
            let due = {
                let mut inner = self.lock();
                let Some(first) = inner.moving.first_entry().filter(|first| first.key().0 <= now_us()) else { return };
                first.remove()
            };
            // Without the lock: what is handed out may be dropped by whoever is not there any more.
            self.arrive(due);
        }
    }

    fn arrive(&self, Moving { from, to, packet }: Moving) {
        let mut inner = self.lock();
        if inner.dark.contains(&to) {
            inner.count("into the dark");
            return;
        }
        if inner.cut.contains(&(from, to)) {
            inner.count("cut off");
            if !matches!(packet, Packet::Datagram { .. }) {
                inner.held.entry((from, to)).or_default().push(Moving { from, to, packet });
            }
            return;
        }
        match packet {
            Packet::Datagram { from: sender, to: address, bytes } => {
                trace(format_args!("{from} → {to} datagram"));
                let socket = inner.sockets.get(&address).map(|(_, socket)| socket.clone());
                drop(inner);
                let _ = socket.map(|socket| socket.send((bytes, sender)));
            }
            Packet::Open { link, key } => {
                trace(format_args!("{from} → {to} opens link {link}"));
                let Some(listener) = inner.listening() else { return inner.reset(link, 0) };
                let end = inner.second_end(link, to, self);
                inner.send_event(link, 1, Event::Opened);
                drop(inner);
                let _ = listener.send(Arrival::Link { key, end });
            }
            Packet::Event { link, side, number, event } => {
                let text = shown(number, side, &event);
                trace(format_args!("{from} → {to} link {link} {text}"));
                let worker = if from == CORE { to } else { from };
                inner.see(&text, worker);
                let is_end = matches!(event, Event::Closed);
                let Some(ends) = inner.links.get_mut(&link) else { return };
                let there = ends[side].events.as_ref().is_some_and(|events| !events.is_closed());
                if let (true, Some(events)) = (there, ends[side].events.clone()) {
                    if is_end {
                        ends[side].events = None;
                    }
                    drop(inner);
                    let _ = events.send(event);
                } else if !is_end {
                    inner.reset(link, 1 - side);
                }
            }
            Packet::Call { call, request } => {
                trace(format_args!("{from} → {to} call {call} {request}"));
                let Some(listener) = inner.listening() else { return inner.answer(call, to, None) };
                inner.served.insert(call);
                drop(inner);
                let reply = Reply::new(self.clone(), call);
                let _ = listener.send(Arrival::Call { request, reply });
            }
            Packet::Answer { call, answer } => {
                trace(format_args!(
                    "{from} → {to} answer {call} {}",
                    answer.as_ref().map_or("none".into(), ToString::to_string)
                ));
                let asked = inner.calls.remove(&call);
                drop(inner);
                let _ = asked.map(|(_, asked)| asked.send(answer));
            }
        }
    }

    /// What faults have hit, by kind.
    pub(crate) fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.lock().faults.clone()
    }
}

/// An event as the trace has it. The two messages of a handshake hold keys, which differ from run to run.
fn shown(number: u64, side: usize, event: &Event) -> String {
    match event {
        Event::Opened => "is open".to_owned(),
        Event::Closed => "is closed".to_owned(),
        Event::Message(_) if number <= 1 + (1 - side as u64) => "handshake".to_owned(),
        Event::Message(bytes) if side == 0 => crate::show::to_worker(bytes),
        Event::Message(bytes) => crate::show::to_core(bytes),
    }
}

impl Inner {
    fn count(&mut self, fault: &'static str) {
        *self.faults.entry(fault).or_default() += 1;
    }

    fn draw(&mut self) -> u64 {
        self.drawn += 1;
        self.drawn
    }

    fn latency_us(&mut self) -> u64 {
        let stalled = self.weather.stalled;
        if stalled > 0.0 && self.rng.random_bool(stalled) {
            self.count("stalled");
            return self.rng.random_range(200_000..3_000_000);
        }
        self.rng.random_range(200..=self.weather.delay_max_ms * 1000)
    }

    fn put(&mut self, due_us: u64, moving: Moving) {
        let number = self.draw();
        self.moving.insert((due_us, number), moving);
    }

    fn send(&mut self, from: Site, to: Site, packet: Packet) {
        let due_us = now_us() + self.latency_us();
        self.put(due_us, Moving { from, to, packet });
    }

    /// Sends an event from the end `side` of a link, after what that sent before.
    fn send_event(&mut self, link: u64, side: usize, event: Event) {
        let latency_us = self.latency_us();
        let Some(ends) = self.links.get_mut(&link) else { return };
        let (from, to) = (ends[side].site, ends[1 - side].site);
        let own = &mut ends[side];
        own.last_us = (own.last_us + 1).max(now_us() + latency_us);
        own.sent += 1;
        let (due_us, number) = (own.last_us, own.sent);
        self.put(due_us, Moving { from, to, packet: Packet::Event { link, side: 1 - side, number, event } });
    }

    /// Tells the end `side` that there is nobody at the other one.
    fn reset(&mut self, link: u64, side: usize) {
        self.send_event(link, 1 - side, Event::Closed);
    }

    fn answer(&mut self, call: u64, from: Site, answer: Option<Box<Answer>>) {
        self.served.remove(&call);
        if let Some((to, _)) = self.calls.get(&call).filter(|_| !self.dark.contains(&from)) {
            let to = *to;
            self.send(from, to, Packet::Answer { call, answer });
        }
    }

    fn close_all(&mut self, site: Site) {
        let own = |(link, ends): (&u64, &[End; 2])| {
            let side = ends.iter().position(|end| end.site == site && end.events.is_some())?;
            Some((*link, side))
        };
        for (link, side) in self.links.iter().filter_map(own).collect::<Vec<_>>() {
            self.send_event(link, side, Event::Closed);
            if let Some(ends) = self.links.get_mut(&link) {
                ends[side].events = None;
            }
        }
        if site == CORE {
            for call in std::mem::take(&mut self.served) {
                self.answer(call, site, None);
            }
        }
    }

    fn listening(&self) -> Option<mpsc::UnboundedSender<Arrival>> {
        self.listener.clone().filter(|listener| !listener.is_closed())
    }

    fn let_pass(&mut self, from: Site, to: Site) {
        let mut due_us = now_us() + self.latency_us();
        for moving in self.held.remove(&(from, to)).unwrap_or_default() {
            due_us += 1;
            if let Packet::Event { link, side, .. } = &moving.packet
                && let Some(ends) = self.links.get_mut(link)
            {
                let sender = &mut ends[1 - side];
                sender.last_us = sender.last_us.max(due_us);
            }
            self.put(due_us, moving);
        }
    }

    fn second_end(&mut self, link: u64, site: Site, net: &Net) -> LinkEnd {
        let (sender, events) = mpsc::unbounded_channel();
        if let Some(ends) = self.links.get_mut(&link) {
            ends[1] = End { site, events: Some(sender), last_us: 0, sent: 0 };
        }
        LinkEnd::new(net.clone(), link, 1, events)
    }
}
