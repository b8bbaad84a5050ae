//! Invariants over many zones and patterns, and a brute-force reference that walks the wall clock minute by minute.

use chrono::{Timelike, Weekday};
use proptest::prelude::*;

use super::*;

/// Zones with ordinary, southern, half-hour, midnight, two-hour, mid-Ramadan and no clock changes.
const ZONES: [&str; 46] = [
    "UTC",
    "Europe/Berlin",
    "Europe/London",
    "Europe/Dublin",
    "Europe/Lisbon",
    "Europe/Moscow",
    "Europe/Kyiv",
    "Europe/Istanbul",
    "Europe/Athens",
    "Europe/Chisinau",
    "Atlantic/Azores",
    "Atlantic/Reykjavik",
    "America/New_York",
    "America/Chicago",
    "America/Denver",
    "America/Phoenix",
    "America/Los_Angeles",
    "America/Anchorage",
    "America/St_Johns",
    "America/Halifax",
    "America/Havana",
    "America/Santiago",
    "America/Asuncion",
    "America/Sao_Paulo",
    "America/Mexico_City",
    "America/Nuuk",
    "America/Scoresbysund",
    "Pacific/Easter",
    "Pacific/Auckland",
    "Pacific/Chatham",
    "Pacific/Apia",
    "Pacific/Kiritimati",
    "Pacific/Marquesas",
    "Australia/Sydney",
    "Australia/Adelaide",
    "Australia/Lord_Howe",
    "Australia/Eucla",
    "Asia/Tokyo",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Asia/Beirut",
    "Asia/Jerusalem",
    "Asia/Gaza",
    "Africa/Cairo",
    "Africa/Casablanca",
    "Antarctica/Troll",
];

const PATTERNS: [&str; 22] = [
    "* * * * *",
    "*/5 * * * *",
    "*/30 * * * *",
    "10 * * * *",
    "7,37 * * * *",
    "30 2 * * *",
    "0 2 * * *",
    "0 3 * * *",
    "0 0 * * *",
    "30 0 * * *",
    "30 1 * * *",
    "59 23 * * *",
    "0 */2 * * *",
    "0 1-3 * * *",
    "*/30 2 * * *",
    "15 2,14 * * *",
    "0 2 * * 0",
    "0 3 * * mon-fri",
    "0 2 1 * *",
    "30 2 29 2 *",
    "*/20 1,2 * 3,10 *",
    "45 23 31 * *",
];

fn rule(text: &str, zone: &str) -> CronRule {
    CronRule::parse(text, zone).unwrap_or_else(|error| panic!("{text} in {zone}: {error}"))
}

fn utc(text: &str) -> DateTime<Utc> {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn fires(rule: &CronRule, from: &str, count: usize) -> Vec<String> {
    let mut at = utc(from);
    let mut found = Vec::new();
    for _ in 0..count {
        at = rule.next_after(at).expect("fires again");
        found.push(at.with_timezone(&rule.zone()).format("%m-%d %H:%M %:z").to_string());
    }
    found
}

/// Every minute of `[from, to)` with what the wall clock of `zone` reads then.
fn minutes(zone: Tz, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<(DateTime<Utc>, NaiveDateTime)> {
    let count = (to - from).num_minutes();
    (0..count).map(|minute| from + Duration::minutes(minute)).map(|at| (at, wall(zone, at))).collect()
}

/// What should fire during `minutes`, by walking them: the definition in the module's words, without the crate. The
/// first minute only serves to look back on.
fn reference(text: &str, minutes: &[(DateTime<Utc>, NaiveDateTime)]) -> Vec<DateTime<Utc>> {
    let five = split(text).unwrap();
    let (minute, hour) = (MINUTE.parse(five[0]).unwrap(), HOUR.parse(five[1]).unwrap());
    let (day, month) = (DAY_OF_MONTH.parse(five[2]).unwrap(), MONTH.parse(five[3]).unwrap());
    let weekday = DAY_OF_WEEK.parse(five[4]).unwrap();
    let interval = five[0].contains(['*', '/']) || five[1].contains(['*', '/']);
    let matches = |local: NaiveDateTime| {
        minute.contains(local.minute())
            && hour.contains(local.hour())
            && day.contains(local.day())
            && month.contains(local.month())
            && weekday.contains(local.weekday().days_since(Weekday::Sun))
    };
    let step = Duration::minutes(1);
    let mut found = Vec::new();
    let mut highest = minutes[0].1;
    for &(at, local) in &minutes[1..] {
        let repeated = local <= highest;
        let mut due = matches(local) && (interval || !repeated);
        // Wall minutes jumped over since the highest one seen are due now.
        let bridged = five[1] == "*" && (local - highest - step).num_minutes() % 60 == 0;
        let mut skipped = highest + step;
        while skipped < local && !bridged {
            due |= matches(skipped);
            skipped += step;
        }
        if due {
            found.push(at);
        }
        highest = highest.max(local);
    }
    found
}

/// The days around which `zone` changes its offset between 2024 and 2030.
fn changes(zone: Tz) -> Vec<DateTime<Utc>> {
    let start = utc("2024-01-01T00:00:00Z");
    (0..7 * 366)
        .map(|day| start + Duration::days(day))
        .filter(|day| offset(zone, *day) != offset(zone, *day + Duration::days(1)))
        .collect()
}

#[test]
fn every_pattern_agrees_with_the_reference_around_every_clock_change() {
    for (index, zone) in ZONES.into_iter().enumerate() {
        let tz: Tz = zone.parse().unwrap();
        // Every third change, beginning elsewhere in each zone, so that all years and both directions have their turn.
        let mut days: Vec<_> = changes(tz).into_iter().skip(index % 3).step_by(3).collect();
        days.push(utc("2026-06-01T00:00:00Z"));
        for day in days {
            let (from, to) = (day - Duration::hours(3), day + Duration::hours(29));
            let minutes = minutes(tz, from, to);
            for pattern in PATTERNS {
                let rule = rule(pattern, zone);
                let expected = reference(pattern, &minutes);
                let mut found = Vec::new();
                let mut at = from;
                while let Some(next) = rule.next_after(at).filter(|next| *next < to) {
                    assert!(next > at, "{pattern} in {zone}: {next} is not after {at}");
                    found.push(next);
                    at = next;
                }
                assert_eq!(found, expected, "{pattern} in {zone} around {day}");
            }
        }
    }
}

#[test]
fn daily_half_past_two_in_berlin_fires_once_on_every_day() {
    let rule = rule("30 2 * * *", "Europe/Berlin");
    let mut at = utc("2023-12-31T23:00:00Z");
    let mut day = at.with_timezone(&rule.zone()).date_naive();
    while day.year() < 2031 {
        at = rule.next_after(at).unwrap();
        assert_eq!(at.with_timezone(&rule.zone()).date_naive(), day, "one run per day, none left out");
        day = day.succ_opt().unwrap();
    }
}

#[test]
fn every_thirty_minutes_stays_every_thirty_minutes_of_real_time() {
    for zone in ["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Antarctica/Troll", "Asia/Kathmandu"] {
        let rule = rule("*/30 * * * *", zone);
        let mut at = rule.next_after(utc("2024-01-01T00:00:00Z")).unwrap();
        while at.year() < 2026 {
            let next = rule.next_after(at).unwrap();
            assert_eq!(next - at, Duration::minutes(30), "{zone} after {at}");
            at = next;
        }
    }
}

#[test]
fn the_clock_changes_of_berlin_as_people_see_them() {
    let daily = rule("30 2 * * *", "Europe/Berlin");
    assert_eq!(
        fires(&daily, "2026-03-28T00:00:00Z", 3),
        ["03-28 02:30 +01:00", "03-29 03:00 +02:00", "03-30 02:30 +02:00"]
    );
    assert_eq!(fires(&daily, "2026-10-24T12:00:00Z", 2), ["10-25 02:30 +02:00", "10-26 02:30 +01:00"]);
    let often = rule("*/30 * * * *", "Europe/Berlin");
    assert_eq!(
        fires(&often, "2026-10-24T23:45:00Z", 6),
        [
            "10-25 02:00 +02:00",
            "10-25 02:30 +02:00",
            "10-25 02:00 +01:00",
            "10-25 02:30 +01:00",
            "10-25 03:00 +01:00",
            "10-25 03:30 +01:00"
        ]
    );
    let ten_past = rule("10 * * * *", "Europe/Berlin");
    assert_eq!(fires(&ten_past, "2026-03-29T00:00:00Z", 2), ["03-29 01:10 +01:00", "03-29 03:10 +02:00"]);
}

#[test]
fn sunday_has_two_numbers_and_a_name() {
    let sunday = fires(&rule("0 12 * * 0", "UTC"), "2026-11-20T00:00:00Z", 3);
    assert_eq!(sunday, ["11-22 12:00 +00:00", "11-29 12:00 +00:00", "12-06 12:00 +00:00"]);
    for same in ["0 12 * * 7", "0 12 * * SUN", "0 12 ? * sun", "0 12 1-31 * 7"] {
        assert_eq!(fires(&rule(same, "UTC"), "2026-11-20T00:00:00Z", 3), sunday, "{same}");
    }
    let weekend = fires(&rule("0 0 * * sat-sun", "UTC"), "2026-11-20T00:00:00Z", 3);
    assert_eq!(weekend, ["11-21 00:00 +00:00", "11-22 00:00 +00:00", "11-28 00:00 +00:00"]);
    assert_eq!(fires(&rule("0 0 * * 6-7", "UTC"), "2026-11-20T00:00:00Z", 3), weekend);
    assert_eq!(fires(&rule("0 0 * * 1", "UTC"), "2026-11-20T00:00:00Z", 1), ["11-23 00:00 +00:00"]);
}

#[test]
fn shorthands_mean_what_they_say() {
    for (short, long) in [
        ("@hourly", "0 * * * *"),
        ("@daily", "0 0 * * *"),
        (" @Midnight ", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("@monthly", "0 0 1 * *"),
        ("@yearly", "0 0 1 1 *"),
        ("@annually", "0 0 1 1 *"),
    ] {
        let from = "2026-11-20T00:30:00Z";
        assert_eq!(fires(&rule(short, "UTC"), from, 4), fires(&rule(long, "UTC"), from, 4), "{short}");
    }
    assert_eq!(
        fires(&rule("50/5 0 * * *", "UTC"), "2026-11-20T00:30:00Z", 2),
        ["11-20 00:50 +00:00", "11-20 00:55 +00:00"]
    );
}

#[test]
fn a_refusal_names_the_field_and_the_way_out() {
    for (text, field, part) in [
        ("", "text", "empty"),
        ("* * * *", "text", "4 fields"),
        ("0 0 2 * * *", "text", "seconds"),
        ("@reboot", "text", "@hourly"),
        ("60 * * * *", "minute", "use 0 to 59"),
        ("-1 * * * *", "minute", "missing"),
        ("+5 * * * *", "minute", "not a value"),
        ("? * * * *", "minute", "not a value"),
        ("*/0 * * * *", "minute", "step"),
        ("*/ * * * *", "minute", "step"),
        ("1/2/3 * * * *", "minute", "step"),
        ("1,,2 * * * *", "minute", "missing"),
        ("* 24 * * *", "hour", "use 0 to 23"),
        ("* 22-2 * * *", "hour", "split it in two"),
        ("* * 0 * *", "day-of-month", "use 1 to 31"),
        ("* * L * *", "day-of-month", "L, W and #"),
        ("* * * 13 *", "month", "jan to dec"),
        ("* * * * 8", "day-of-week", "sun to sat"),
        ("* * * * mon#2", "day-of-week", "L, W and #"),
        ("0 0 13 * fri", "day-of-week", "use two schedules"),
        ("0 0 31 2 *", "day-of-month", "never fire"),
        ("0 0 31 4,6,9,11 *", "day-of-month", "never fire"),
    ] {
        let error = CronRule::parse(text, "UTC").expect_err(text);
        assert_eq!(error.field, field, "{text}: {error}");
        assert!(error.to_string().contains(part), "{text}: {error}");
    }
    let error = CronRule::parse("* * * * *", "Europe/Nowhere\n").unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"cron zone: "Europe/Nowhere\n" is not a time zone; use an IANA name such as UTC or Europe/Berlin"#
    );
    assert!(CronRule::parse(&"1,".repeat(200), "UTC").is_err());
}

#[test]
fn the_ends_of_time_are_no_trap() {
    let minutely = rule("* * * * *", "UTC");
    let rule = rule("0 0 29 2 *", "Europe/Berlin");
    assert_eq!(rule.next_after(utc("2096-03-01T00:00:00Z")), None, "2100 has no 29 February");
    assert_eq!(rule.next_after(DateTime::<Utc>::MAX_UTC), None);
    assert_eq!(rule.next_after(DateTime::<Utc>::MIN_UTC), Some(utc("1972-02-28T23:00:00Z")));
    let at = utc("2026-01-01T10:00:00.250Z");
    assert_eq!(minutely.next_after(at), Some(utc("2026-01-01T10:01:00Z")));
}

proptest! {
    #[test]
    fn next_is_after_and_nothing_lies_between(
        zone in proptest::sample::select(&ZONES[..]),
        pattern in proptest::sample::select(&PATTERNS[..]),
        seconds in 1_704_067_200i64..1_924_991_999,
        back in 1i64..86_400,
    ) {
        let rule = rule(pattern, zone);
        let at = DateTime::from_timestamp(seconds, 0).unwrap();
        let next = rule.next_after(at).unwrap();
        prop_assert!(next > at);
        // Asked from anywhere before, the answer is never past `next`, and walking on from there arrives at it.
        let mut walk = at - Duration::seconds(back);
        while let Some(step) = rule.next_after(walk).filter(|step| *step <= at) {
            prop_assert!(step > walk);
            walk = step;
        }
        prop_assert_eq!(rule.next_after(walk), Some(next));
    }

    #[test]
    fn hostile_text_never_panics(text in "\\PC{0,40}", zone in "\\PC{0,20}") {
        let _ = CronRule::parse(&text, &zone);
        let _ = CronRule::parse(&text, "UTC").map(|rule| rule.next_after(utc("2026-01-01T00:00:00Z")));
    }

    #[test]
    fn any_field_text_that_parses_can_be_evaluated(
        minute in "[0-9*/,-]{1,6}", hour in "[0-9*/,-]{1,5}", weekday in "[0-7*/,-]{1,5}",
    ) {
        if let Ok(rule) = CronRule::parse(&format!("{minute} {hour} * * {weekday}"), "America/New_York") {
            prop_assert!(rule.next_after(utc("2026-11-01T05:30:00Z")).is_some());
        }
    }
}
