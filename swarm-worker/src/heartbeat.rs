//! Heartbeats: a sealed datagram each interval, and the answers that renew leases.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use swarm_protocol::heartbeat::{DATAGRAM_BYTES_MAX, Heartbeat, WorkerEnd};

use crate::context::Ctx;
use crate::link::Renewals;
use crate::network::Datagrams;

/// Beats as long as the link session lives; ends with an error when the socket or the key cannot be used any more.
pub(crate) async fn run(ctx: &Ctx, mut end: WorkerEnd, port: u16, interval: Duration) -> io::Result<Infallible> {
    let socket = ctx.network.heartbeats(port).await?;
    let mut renewals = Renewals::default();
    let mut datagram = [0u8; DATAGRAM_BYTES_MAX + 1];
    let mut next = tokio::time::Instant::now();
    loop {
        tokio::select! {
            biased;
            () = tokio::time::sleep_until(next) => {
                // A tenth up or down, so that workers started together drift apart.
                next = tokio::time::Instant::now() + ctx.chance.spread(interval, 0.9..1.1);
                beat(ctx, &*socket, &mut end, &mut renewals).await?;
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

async fn beat(ctx: &Ctx, socket: &dyn Datagrams, end: &mut WorkerEnd, renewals: &mut Renewals) -> io::Result<()> {
    let renewal = ctx.hub.renewal();
    let seq = renewals.send(renewal, ctx.machine.now_ns());
    let heartbeat = Heartbeat {
        seq,
        live: renewal.live,
        free_slots: ctx.slots_offered().saturating_sub(ctx.hub.live_count()),
        load_millis: ctx.machine.load_millis(),
        accepting: ctx.hub.is_accepting(),
    };
    let sealed = end.seal(&heartbeat).map_err(io::Error::other)?;
    // A heartbeat that cannot be sent is one that is lost: the link renews as well.
    if let Err(error) = socket.send(&sealed).await {
        tracing::debug!(%error, "a heartbeat was not sent");
    }
    Ok(())
}
