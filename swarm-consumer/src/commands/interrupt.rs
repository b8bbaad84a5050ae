//! Ctrl-C, listened to from one point on: the runtime never gives the signal back to the system, so whoever listens once
//! has to answer every later one.

use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tokio::signal::unix::{SignalKind, signal};

use crate::output::note;

/// The user's wishes to stop. One that comes while nobody waits is remembered.
pub(crate) struct CtrlC(BoxStream<'static, ()>);

impl CtrlC {
    /// Listens from now on.
    pub(crate) fn listen() -> Self {
        match signal(SignalKind::interrupt()) {
            Ok(signal) => {
                Self(stream::unfold(signal, |mut signal| async { Some((signal.recv().await?, signal)) }).boxed())
            }
            Err(error) => {
                // Without a handler Ctrl-C ends the program at once, as it does anywhere.
                note(&format!("Ctrl-C cannot be caught here: {error}"));
                Self(stream::pending().boxed())
            }
        }
    }

    /// Returns when it was pressed.
    pub(crate) async fn pressed(&mut self) {
        if self.0.next().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
impl CtrlC {
    /// Pressed whenever `presses` has an item.
    pub(crate) fn scripted(presses: impl stream::Stream<Item = ()> + Send + 'static) -> Self {
        Self(presses.boxed())
    }
}
