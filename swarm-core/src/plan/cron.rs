//! When a schedule fires: five-field Unix cron text, read on the clock on the wall of an IANA time zone.
//!
//! Matching is done by the `cron` crate on wall-clock time (UTC stands in as a zone without jumps); this module maps
//! the matches to instants, where the crate itself would skip or repeat runs around clock changes:
//!
//! - **Clock goes forward.** A time that does not exist fires once, at the first instant after the gap. The exception is
//!   a pattern for every hour (`10 * * * *`) over a gap of whole hours: its neighbours already are one hour apart.
//! - **Clock goes back.** A fixed time fires at its first occurrence only. An interval pattern, one whose minute or hour
//!   field has `*` or a `/step`, fires at both, so that "every 30 minutes" stays every 30 minutes.
//!
//! Results are strictly increasing, and end with the year 2100.

mod fields;
#[cfg(test)]
mod tests;

use std::str::FromStr;

use chrono::{DateTime, Datelike, Duration, MappedLocalTime, NaiveDateTime, Offset, TimeDelta, TimeZone, Utc};
use chrono_tz::Tz;

use fields::{DAY_OF_MONTH, DAY_OF_WEEK, Field, HOUR, MINUTE, MONTH};

/// The longest accepted cron text, in bytes.
const TEXT_BYTES_MAX: usize = 256;
/// The last year the `cron` crate evaluates.
const YEAR_MAX: i32 = 2100;
/// The first year this module evaluates; older instants are answered as if asked at its start.
const YEAR_MIN: i32 = 1970;

/// Why a cron text or zone is refused. Shown to people: `field` names the place, `hint` says what to try.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cron {field}: {problem}; {hint}")]
pub struct CronError {
    /// `text`, `zone`, or one of `minute`, `hour`, `day-of-month`, `month`, `day-of-week`.
    pub field: &'static str,
    /// What is wrong.
    pub problem: String,
    /// What to try instead.
    pub hint: String,
}

/// A cron text bound to a zone, known to fire at least once.
#[derive(Debug, Clone)]
pub struct CronRule {
    schedule: cron::Schedule,
    zone: Tz,
    interval: bool,
    every_hour: bool,
}

impl CronRule {
    /// Reads `text` (five fields: minute, hour, day of month, month, day of week; or `@hourly`, `@daily`, `@midnight`,
    /// `@weekly`, `@monthly`, `@yearly`, `@annually`) for the IANA zone named `zone`, such as `Europe/Berlin`.
    ///
    /// Day of week: 0 and 7 are Sunday, names work. `a/step` means from a to the end of the field.
    ///
    /// # Errors
    /// [`CronError`] for text that is not such a pattern, restricts day of month and day of week at once (crons disagree
    /// on what that means), never fires, or names an unknown zone.
    pub fn parse(text: &str, zone: &str) -> Result<Self, CronError> {
        let zone = Tz::from_str(zone).map_err(|_| CronError {
            field: "zone",
            problem: format!("{:?} is not a time zone", clip(zone)),
            hint: "use an IANA name such as UTC or Europe/Berlin".to_owned(),
        })?;
        Self::with_zone(text, zone)
    }

    /// As [`CronRule::parse`], for a zone already known.
    ///
    /// # Errors
    /// As for [`CronRule::parse`].
    pub fn with_zone(text: &str, zone: Tz) -> Result<Self, CronError> {
        let five = split(text)?;
        let minute = MINUTE.parse(five[0])?;
        let hour = HOUR.parse(five[1])?;
        let day = DAY_OF_MONTH.parse(five[2])?;
        let month = MONTH.parse(five[3])?;
        let weekday = DAY_OF_WEEK.parse(five[4])?;
        if !day.is_full(&DAY_OF_MONTH) && !weekday.is_full(&DAY_OF_WEEK) {
            return Err(CronError {
                field: DAY_OF_WEEK.name,
                problem: format!("it is restricted together with {}", DAY_OF_MONTH.name),
                hint: "use two schedules, each with * in one of the two fields".to_owned(),
            });
        }
        refuse_never(day, month)?;
        let every_hour = hour.is_full(&HOUR);
        let interval = minute.interval || hour.interval || minute.is_full(&MINUTE) || every_hour;
        Ok(Self { schedule: compile(minute, hour, day, month, weekday)?, zone, interval, every_hour })
    }

    /// The zone the pattern is read in.
    #[must_use]
    pub const fn zone(&self) -> Tz {
        self.zone
    }

    /// The first instant strictly after `after` at which the rule fires; `None` after the year 2100.
    #[must_use]
    pub fn next_after(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        if after.year() > YEAR_MAX {
            return None;
        }
        let floor = Utc.with_ymd_and_hms(YEAR_MIN, 1, 1, 0, 0, 0).single()? - Duration::seconds(1);
        let after = DateTime::from_timestamp(after.max(floor).timestamp(), 0)?;
        let first = self.next_first_occurrence(after);
        let second = if self.interval { self.next_second_occurrence(after) } else { None };
        // `None` sorts before `Some`, hence the flattening.
        [first, second].into_iter().flatten().min()
    }

    /// The next instant at which the wall clock *first* reaches a matching time.
    fn next_first_occurrence(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // First occurrences never go back while wall time advances, so the first one past `after` is the earliest. Only
        // while a fold repeats an hour can matches be passed over here, at most as many as the fold holds.
        self.matches_after(wall(self.zone, after))
            .filter_map(|local| self.first_occurrence(local))
            .find(|instant| *instant > after)
    }

    fn first_occurrence(&self, local: NaiveDateTime) -> Option<DateTime<Utc>> {
        match self.zone.from_local_datetime(&local) {
            MappedLocalTime::Single(only) => Some(only.to_utc()),
            MappedLocalTime::Ambiguous(one, other) => Some(one.min(other).to_utc()),
            MappedLocalTime::None => {
                let (end, width) = gap_around(self.zone, local);
                let bridged = self.every_hour && width.num_seconds() % 3600 == 0;
                if bridged { None } else { Some(end) }
            }
        }
    }

    /// The next instant at which the wall clock reads a matching time for the second time.
    ///
    /// Only a fold we are inside matters: for one still ahead, the first occurrence comes before the second.
    fn next_second_occurrence(&self, after: DateTime<Utc>) -> Option<DateTime<Utc>> {
        let day = Duration::hours(24);
        let folds = [(after - day, after), (after, after + day)];
        let candidate = |(from, to)| {
            let fold = Fold::between(self.zone, from, to)?;
            let start = if after < fold.at { fold.wall_start() - Duration::seconds(1) } else { wall(self.zone, after) };
            let local = self.matches_after(start).next()?;
            (local < fold.wall_end()).then(|| DateTime::from_naive_utc_and_offset(local - fold.offset_after, Utc))
        };
        folds.into_iter().filter_map(candidate).filter(|instant| *instant > after).min()
    }

    fn matches_after(&self, local: NaiveDateTime) -> impl Iterator<Item = NaiveDateTime> {
        self.schedule.after_owned(local.and_utc()).map(|fake| fake.naive_utc())
    }
}

/// The clock on the wall of `zone` at `instant`.
fn wall(zone: Tz, instant: DateTime<Utc>) -> NaiveDateTime {
    instant.with_timezone(&zone).naive_local()
}

/// How far `zone` is ahead of UTC at `instant`.
fn offset(zone: Tz, instant: DateTime<Utc>) -> TimeDelta {
    let seconds = zone.offset_from_utc_datetime(&instant.naive_utc()).fix().local_minus_utc();
    TimeDelta::seconds(i64::from(seconds))
}

/// The end of the gap that swallows `local`, and the gap's width.
fn gap_around(zone: Tz, local: NaiveDateTime) -> (DateTime<Utc>, TimeDelta) {
    // No offset is beyond ±15 h, so the gap lies between these, and around it the wall clock only goes forward.
    let (low, high) = (local.and_utc() - Duration::hours(15), local.and_utc() + Duration::hours(15));
    let end = first_second(low, high, |instant| wall(zone, instant) >= local);
    (end, offset(zone, end) - offset(zone, end - Duration::seconds(1)))
}

/// The first whole second in `(low, high]` at which `reached` holds; it must not hold at `low` and must hold at `high`.
fn first_second(
    mut low: DateTime<Utc>,
    mut high: DateTime<Utc>,
    reached: impl Fn(DateTime<Utc>) -> bool,
) -> DateTime<Utc> {
    while high - low > Duration::seconds(1) {
        let middle = low + Duration::seconds((high - low).num_seconds() / 2);
        if reached(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

/// The clock going back: wall times from `wall_start` to before `wall_end` occur twice.
struct Fold {
    at: DateTime<Utc>,
    offset_before: TimeDelta,
    offset_after: TimeDelta,
}

impl Fold {
    fn between(zone: Tz, from: DateTime<Utc>, to: DateTime<Utc>) -> Option<Self> {
        let (offset_before, offset_after) = (offset(zone, from), offset(zone, to));
        if offset_after >= offset_before {
            return None;
        }
        let at = first_second(from, to, |instant| offset(zone, instant) != offset_before);
        Some(Self { at, offset_before, offset_after })
    }

    fn wall_start(&self) -> NaiveDateTime {
        self.at.naive_utc() + self.offset_after
    }

    fn wall_end(&self) -> NaiveDateTime {
        self.at.naive_utc() + self.offset_before
    }
}

/// The five fields of `text`, its alias spelled out.
fn split(text: &str) -> Result<[&str; 5], CronError> {
    let refuse = |problem: String, hint: &str| CronError { field: "text", problem, hint: hint.to_owned() };
    const SHAPE: &str = "write five fields: minute hour day-of-month month day-of-week, such as 30 2 * * *";
    if text.len() > TEXT_BYTES_MAX {
        return Err(refuse(format!("it is {} bytes long, the limit is {TEXT_BYTES_MAX}", text.len()), SHAPE));
    }
    let text = text.trim();
    let spelled = match text.to_ascii_lowercase().as_str() {
        "@hourly" => "0 * * * *",
        "@daily" | "@midnight" => "0 0 * * *",
        "@weekly" => "0 0 * * 0",
        "@monthly" => "0 0 1 * *",
        "@yearly" | "@annually" => "0 0 1 1 *",
        other if other.starts_with('@') => {
            const ALIASES: &str = "use @hourly, @daily, @weekly, @monthly, @yearly or five fields such as */10 * * * *";
            return Err(refuse(format!("{:?} is not a known shorthand", clip(text)), ALIASES));
        }
        _ => text,
    };
    let fields: Vec<&str> = spelled.split_ascii_whitespace().collect();
    let count = fields.len();
    fields.try_into().map_err(|_| match count {
        0 => refuse("it is empty".to_owned(), SHAPE),
        6 | 7 => refuse(format!("it has {count} fields; seconds and years are not supported"), SHAPE),
        1 => refuse("it has 1 field".to_owned(), SHAPE),
        _ => refuse(format!("it has {count} fields"), SHAPE),
    })
}

/// Refuses a pattern none of whose months has any of its days.
fn refuse_never(day: Field, month: Field) -> Result<(), CronError> {
    let longest = |month: u32| match month {
        2 => 29,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    let possible = month.values().any(|month| day.values().any(|day| day <= longest(month)));
    if possible {
        return Ok(());
    }
    Err(CronError {
        field: DAY_OF_MONTH.name,
        problem: "no month chosen has such a day, so it would never fire".to_owned(),
        hint: "choose a day the month has, such as 28 for February".to_owned(),
    })
}

/// Builds the crate's schedule from plain number lists, which leave no room for differences in dialect.
fn compile(minute: Field, hour: Field, day: Field, month: Field, weekday: Field) -> Result<cron::Schedule, CronError> {
    let list = |values: Vec<u32>| values.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let days_of_week = if weekday.is_full(&DAY_OF_WEEK) {
        "*".to_owned()
    } else {
        list(weekday.values().map(|value| value + 1).collect()) // the crate counts from Sunday = 1
    };
    let text = format!(
        "0 {} {} {} {} {days_of_week}",
        list(minute.values().collect()),
        list(hour.values().collect()),
        list(day.values().collect()),
        list(month.values().collect()),
    );
    cron::Schedule::from_str(&text).map_err(|error| CronError {
        field: "text",
        problem: error.to_string(),
        hint: "simplify the pattern".to_owned(),
    })
}

/// The start of `text`, for an error message.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}
