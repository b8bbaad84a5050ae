//! Heartbeats: a sealed datagram each interval, and the answers that renew leases.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use rand::RngExt;
use swarm_protocol::heartbeat::{DATAGRAM_BYTES_MAX, Heartbeat, WorkerEnd};
use tokio::net::UdpSocket;

use crate::context::Ctx;
use crate::link::Renewals;

/// Beats as long as the link session lives; ends with an error when the socket or the key cannot be used any more.
pub(crate) async fn run(ctx: &Ctx, mut end: WorkerEnd, port: u16, interval: Duration) -> io::Result<Infallible> {
    let core = ctx.config.core_ip().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let local: IpAddr = if core.is_ipv6() { std::net::Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let socket = UdpSocket::bind(SocketAddr::new(local, 0)).await?;
    socket.connect(SocketAddr::new(core, port)).await?;
    let mut renewals = Renewals::default();
    let mut datagram = [0u8; DATAGRAM_BYTES_MAX + 1];
    let mut next = tokio::time::Instant::now();
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(next) => {
                next = tokio::time::Instant::now() + jittered(interval);
                beat(ctx, &socket, &mut end, &mut renewals).await?;
            }
            received = socket.recv(&mut datagram) => {
                // An error here is the echo of a datagram nobody was there to take: the core restarts.
                let Ok(length) = received else { continue };
                let Ok(answer) = end.open(&datagram[..length]) else { continue };
                let Some((renewal, sent_ns)) = renewals.answer(answer.seq) else { continue };
                if answer.renewed {
                    ctx.hub.renew(renewal, sent_ns);
                } else {
                    ctx.hub.report_due.notify_one();
                }
            }
        }
    }
}

async fn beat(ctx: &Ctx, socket: &UdpSocket, end: &mut WorkerEnd, renewals: &mut Renewals) -> io::Result<()> {
    let renewal = ctx.hub.renewal();
    let seq = renewals.send(renewal, ctx.clock.now_ns());
    let heartbeat = Heartbeat {
        seq,
        live: renewal.live,
        free_slots: ctx.slots_offered().saturating_sub(ctx.hub.live_count()),
        load_millis: load_millis(&std::fs::read_to_string("/proc/loadavg").unwrap_or_default()),
        accepting: ctx.hub.is_accepting(),
    };
    let sealed = end.seal(&heartbeat).map_err(io::Error::other)?;
    // A heartbeat that cannot be sent is one that is lost: the link renews as well.
    if let Err(error) = socket.send(&sealed).await {
        tracing::debug!(%error, "a heartbeat was not sent");
    }
    Ok(())
}

/// A tenth up or down, so that workers started together drift apart.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::rng().random_range(0.9..1.1))
}

/// The first number of `/proc/loadavg` in thousandths.
fn load_millis(loadavg: &str) -> u32 {
    let load: f64 = loadavg.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
    (load.clamp(0.0, 1e6) * 1000.0) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_load_is_read_whatever_the_file_holds() {
        assert_eq!(load_millis("1.25 0.9 0.7 2/345 999\n"), 1250);
        assert_eq!(load_millis("nan"), 0);
        assert_eq!(load_millis(""), 0);
        assert_eq!(load_millis("-3"), 0);
    }

    #[test]
    fn intervals_stay_near_their_value() {
        let interval = Duration::from_secs(10);
        for _ in 0..100 {
            assert!((9..=11).contains(&jittered(interval).as_secs()));
        }
    }
}
