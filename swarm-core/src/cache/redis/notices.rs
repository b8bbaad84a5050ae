//! The line on which the notices of other cores come.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ::redis::RedisError;
use futures_util::StreamExt as _;

use super::super::health::NOTICES_MS_MIN;
use super::super::wire::{self, NOTICE_BYTES_MAX, Notice};
use super::{RedisCache, lock, reason};

/// How long subscribing may take.
const SUBSCRIBE_TIMEOUT: Duration = Duration::from_secs(2);
/// A line on which nothing comes for so long is dead, for this core's own probes come over it, too.
const SILENCE_MAX: Duration = Duration::from_secs(5);

impl RedisCache {
    /// Hears as far as it can. Never ends.
    pub(super) async fn listen(&self) {
        loop {
            let reason = match tokio::time::timeout(SUBSCRIBE_TIMEOUT, self.subscribe()).await {
                Ok(Ok(messages)) => self.hear_all(messages).await.to_owned(),
                Ok(Err(error)) => reason(&error),
                Err(_) => format!("no subscription within {} ms", SUBSCRIBE_TIMEOUT.as_millis()),
            };
            let pause = {
                let mut notices = lock(&self.notices);
                notices.down(self.now_ms(), reason);
                notices.pause(rand::random())
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn subscribe(&self) -> Result<::redis::aio::PubSubStream, RedisError> {
        let mut line = self.client.get_async_pubsub().await?;
        line.subscribe(self.keys.notices()).await?;
        Ok(line.into_on_message())
    }

    async fn hear_all(&self, mut messages: ::redis::aio::PubSubStream) -> &'static str {
        loop {
            match tokio::time::timeout(SILENCE_MAX, messages.next()).await {
                Ok(Some(message)) => self.hear_one(message.get_payload_bytes()),
                Ok(None) => return "the connection ended",
                Err(_) => return "nothing is heard",
            }
        }
    }

    /// While the other line is up, says once that notices do not come, and once that they do again.
    pub(super) fn tell_of_notices(&self) {
        let now_ms = self.now_ms();
        let trouble = lock(&self.notices)
            .trouble()
            .map(|(since_ms, reason)| (now_ms.saturating_sub(since_ms), reason.to_owned()));
        let long = trouble.as_ref().filter(|(for_ms, _)| *for_ms >= NOTICES_MS_MIN);
        match (long, self.told_deaf.swap(long.is_some(), Ordering::Relaxed)) {
            (Some((_, reason)), false) => {
                tracing::warn!(
                    "no notices of other cores come over Redis, so followers of logs look by themselves: {reason}"
                );
            }
            (None, true) => crate::notice!("notices of other cores come over Redis again"),
            _ => {}
        }
    }

    fn hear_one(&self, bytes: &[u8]) {
        match wire::decode::<Notice>(bytes, NOTICE_BYTES_MAX) {
            Ok(Notice { from, log }) => {
                // Up once it hears, not once it is connected.
                lock(&self.notices).up(self.now_ms());
                if let Some(log) = log.filter(|_| from != self.me) {
                    self.wakes.wake(log);
                }
            }
            Err(wire::Garbage) => drop(self.found_garbage()),
        }
    }
}
