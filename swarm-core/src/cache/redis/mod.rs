//! The cache in Redis, which several cores of a swarm share.
//!
//! Calls go over one multiplexed line that a background task makes, probes every second and makes anew when it broke
//! (`line`); notices of other cores come over a line of their own (`notices`). While the line is down calls do not wait at
//! all: logins are then counted by this core alone, at its share of the rate, and tables of workers are not read.
//!
//! Whatever is read is taken for hostile: see `wire`. A value that makes no sense is counted and ignored.

#[cfg(test)]
mod faults;
mod line;
mod notices;
#[cfg(test)]
pub(super) mod server;
#[cfg(test)]
mod tls;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ::redis::aio::MultiplexedConnection;
use ::redis::{Client, RedisError, Value, from_redis_value};
use async_trait::async_trait;
use swarm_protocol::text::sanitise;
use swarm_protocol::{AttemptId, SwarmId};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::breaker::Breaker;
use super::health::{Health, Line};
use super::local::Logins;
use super::wakes::Wakes;
use super::wire::{self, Keys, TABLE_BYTES_MAX};
use super::{BUDGET, Cache, Ear, LogNotice, LoginLimit, NAME, WorkerTable};
use crate::clock::Clock;
use crate::identity::limits::Limited;
use crate::supervise::Gauge;

/// Notices that wait to be sent; those of further attempts are dropped.
const NOTICES_MAX: usize = 4096;
/// Characters kept of what Redis says of an error.
const REASON_CHARS_MAX: usize = 200;

/// A token bucket in one key, judged by the clock of Redis: the time at which it will be full, in ms. Answers how long to
/// wait (0: taken), and whether what was there made no sense. As `Limiter` in `identity/limits`, but for the place.
const TAKE: &str = r"
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local interval, room = tonumber(ARGV[1]), tonumber(ARGV[2])
local kept, full, odd = redis.pcall('GETRANGE', KEYS[1], 0, 20), now, 0
if type(kept) == 'table' then
    odd = 1
elseif kept ~= '' then
    local number = #kept <= 16 and tonumber(kept)
    if number and number == math.floor(number) and number <= now + room + interval then
        full = math.max(number, now)
    else
        odd = 1
    end
end
local debt = full - now
if debt > room then return {debt - room, odd} end
redis.call('SET', KEYS[1], string.format('%.0f', full + interval), 'PX', string.format('%.0f', debt + interval))
return {0, odd}
";

/// See the module.
pub struct RedisCache {
    client: Client,
    keys: Keys,
    clock: Arc<dyn Clock>,
    /// The number this core draws, to know its own notices.
    me: u64,
    /// It has left its mark in Redis.
    is_marked: AtomicBool,
    limit: LoginLimit,
    /// What this core lets through whatever Redis says.
    own: Logins,
    /// What it lets through without asking anybody.
    share: Logins,
    /// Until then counts in Redis may have begun anew, so the share counts as well: boot clock.
    wary_until_ms: AtomicU64,
    wakes: Wakes,
    /// Notices not sent yet.
    unsent: Mutex<HashMap<AttemptId, LogNotice>>,
    /// There are some.
    more: Notify,
    /// The newest table of workers, encoded, until it is sent.
    table: Mutex<Option<Vec<u8>>>,
    /// The line while it is up, with its number.
    line: Mutex<Option<(u64, MultiplexedConnection)>>,
    /// A call found the line broken.
    broken: Notify,
    commands: Mutex<Breaker>,
    notices: Mutex<Breaker>,
    /// It was said that notices are away while the other line is up.
    told_deaf: AtomicBool,
    calls: AtomicU64,
    odd: AtomicU64,
    gauge: Gauge,
}

/// Why a call gave nothing; what there is to say of it was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Nothing;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What Redis or the system says, made harmless.
fn reason(error: &RedisError) -> String {
    let said = error.clone().into_server_errors();
    let said = said
        .and_then(|all| all.first().map(|(_, error)| (error.code().to_owned(), error.details().map(str::to_owned))));
    let text = said.map_or_else(|| error.to_string(), |(code, text)| format!("{code} {}", text.unwrap_or_default()));
    sanitise(&text.chars().take(REASON_CHARS_MAX).collect::<String>(), false)
}

impl RedisCache {
    /// A cache of `swarm` on the server of `client`, not yet connected: see [`Cache::run`].
    #[must_use]
    pub fn new(client: Client, swarm: SwarmId, limit: LoginLimit, clock: Arc<dyn Clock>) -> Self {
        let now_ms = clock.boot_ms();
        Self {
            client,
            keys: Keys::new(swarm),
            clock,
            me: rand::random(),
            is_marked: AtomicBool::default(),
            limit,
            own: Logins::new(limit.rate),
            share: Logins::new(limit.shared_rate()),
            wary_until_ms: AtomicU64::default(),
            wakes: Wakes::default(),
            unsent: Mutex::default(),
            more: Notify::default(),
            table: Mutex::default(),
            line: Mutex::default(),
            broken: Notify::default(),
            commands: Mutex::new(Breaker::new(now_ms)),
            notices: Mutex::new(Breaker::new(now_ms)),
            told_deaf: AtomicBool::default(),
            calls: AtomicU64::default(),
            odd: AtomicU64::default(),
            gauge: Gauge::without_inbox(NAME),
        }
    }

    fn now_ms(&self) -> u64 {
        self.clock.boot_ms()
    }

    /// One question over the line, if it is up: at most [`BUDGET`] long.
    async fn ask(&self, command: &::redis::Cmd) -> Result<Value, Nothing> {
        let Some((number, mut line)) = lock(&self.line).clone() else { return Err(Nothing) };
        self.calls.fetch_add(1, Ordering::Relaxed);
        match tokio::time::timeout(BUDGET, command.query_async(&mut line)).await {
            Ok(Ok(value)) => {
                lock(&self.commands).in_time();
                Ok(value)
            }
            // Somebody put something else under this key.
            Ok(Err(error)) if error.code() == Some("WRONGTYPE") => Err(self.found_garbage()),
            Ok(Err(error)) => Err(self.give_up(number, reason(&error))),
            Err(_) if lock(&self.commands).late() => {
                Err(self.give_up(number, format!("no answer within {} ms", BUDGET.as_millis())))
            }
            Err(_) => Err(Nothing),
        }
    }

    /// A call found the line of this number broken: it is not used any more, and the background task makes another one.
    fn give_up(&self, number: u64, reason: String) -> Nothing {
        let mut line = lock(&self.line);
        // A late call over an earlier line says nothing of the one that is up.
        if line.take_if(|(current, _)| *current == number).is_some() {
            drop(line);
            self.went_down(reason);
            self.broken.notify_one();
        }
        Nothing
    }

    fn found_garbage(&self) -> Nothing {
        let odd = self.odd.fetch_add(1, Ordering::Relaxed) + 1;
        // At 1, 2, 4, 8, …: whoever writes garbage does not write the log as well.
        if odd.is_power_of_two() {
            tracing::warn!(odd, "a value in Redis makes no sense and is ignored; {odd} so far");
        }
        Nothing
    }

    async fn ask_login(&self, client: IpAddr) -> Result<Result<(), Limited>, Nothing> {
        let crate::identity::limits::Rate { burst, interval_ms } = self.limit.rate;
        let room_ms = interval_ms.saturating_mul(u64::from(burst.max(1) - 1));
        let mut command = ::redis::cmd("EVAL");
        command.arg(TAKE).arg(1).arg(self.keys.login(client)).arg(interval_ms).arg(room_ms);
        let answer: (u64, u64) = from_redis_value(self.ask(&command).await?).map_err(|_| self.found_garbage())?;
        let (retry_ms, odd) = answer;
        if odd > 0 {
            self.found_garbage();
        }
        Ok(match retry_ms {
            0 => Ok(()),
            retry_ms => Err(Limited { retry_ms: retry_ms.min(self.limit.refill_ms()) }),
        })
    }

    fn line_of(&self, breaker: &Mutex<Breaker>) -> Line {
        lock(breaker).trouble().map_or(Line::Up, |(since_ms, reason)| Line::Away {
            for_ms: self.now_ms().saturating_sub(since_ms),
            reason: reason.to_owned(),
        })
    }
}

#[async_trait]
impl Cache for RedisCache {
    async fn take_login(&self, client: IpAddr) -> Result<(), Limited> {
        let answer = self.ask_login(client).await;
        let now_ms = self.now_ms();
        let is_wary = now_ms < self.wary_until_ms.load(Ordering::Relaxed);
        // Counted in either case, so that an outage does not begin with a whole share for who has just used it up.
        let share = self.share.take(client, now_ms);
        match answer {
            Ok(answer) if is_wary => answer.and(share)?,
            Ok(answer) => answer?,
            Err(Nothing) => share?,
        }
        self.own.take(client, now_ms)
    }

    fn tell(&self, notice: LogNotice) {
        self.wakes.wake(notice);
        if lock(&self.line).is_none() {
            return;
        }
        let mut unsent = lock(&self.unsent);
        if unsent.len() < NOTICES_MAX || unsent.contains_key(&notice.attempt) {
            unsent.insert(notice.attempt, notice);
            self.more.notify_one();
        }
    }

    fn hear(&self, attempt: AttemptId) -> Ear {
        self.wakes.hear(attempt)
    }

    fn show_workers(&self, table: WorkerTable) {
        let bytes = wire::encode(&table);
        *lock(&self.table) = (bytes.len() <= TABLE_BYTES_MAX).then_some(bytes);
    }

    async fn workers(&self) -> Option<WorkerTable> {
        let mut command = ::redis::cmd("GETRANGE");
        command.arg(self.keys.workers()).arg(0).arg(TABLE_BYTES_MAX);
        let Value::BulkString(bytes) = self.ask(&command).await.ok()? else {
            self.found_garbage();
            return None;
        };
        if bytes.is_empty() {
            return None;
        }
        wire::decode(&bytes, TABLE_BYTES_MAX).map_err(|wire::Garbage| self.found_garbage()).ok()
    }

    fn health(&self) -> Health {
        Health::Redis {
            commands: self.line_of(&self.commands),
            notices: self.line_of(&self.notices),
            odd: self.odd.load(Ordering::Relaxed),
        }
    }

    fn gauge(&self) -> &Gauge {
        &self.gauge
    }

    async fn run(&self, stop: CancellationToken) -> anyhow::Result<()> {
        tokio::select! {
            () = stop.cancelled() => {}
            () = self.keep_line() => {}
            () = self.listen() => {}
        }
        // What is said from now on is said to nobody.
        drop(lock(&self.line).take());
        Ok(())
    }
}
