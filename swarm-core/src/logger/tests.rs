use std::fs;
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use tracing::dispatcher::with_default;
use tracing::{debug, error, info, info_span, trace, warn};

use super::drain::Sink;
use super::terminal::Terminal;
use super::*;
use crate::{audit, notice};

const LIMIT: Duration = Duration::from_secs(10);

fn silent(filter: &str) -> LoggerConfig {
    LoggerConfig { filter: filter.to_owned(), stderr: Stderr::Off, ..LoggerConfig::default() }
}

fn in_dir(dir: &Path, file_bytes_max: u64, files_max: usize) -> LoggerConfig {
    let file = FileConfig { dir: dir.to_owned(), name: "core".to_owned(), file_bytes_max, files_max };
    LoggerConfig { file: Some(file), ..silent("info") }
}

/// What the ring holds, as `level tag message`.
fn lines(handle: &LoggerHandle) -> Vec<String> {
    let entries = handle.recent(usize::MAX, &Filter::everything());
    entries.iter().map(|entry| format!("{} {} {}", entry.level, entry.tag, entry.message)).collect()
}

fn filter(text: &str) -> Filter {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn own_levels_and_tags_arrive_and_the_filter_changes_while_running() {
    let (dispatch, handle) = scoped(&silent("info")).unwrap();
    with_default(&dispatch, || {
        let step = |n: u32| {
            info!(n, "step");
            debug!(swarm.tag = "scheduler", n, "thinking");
            audit!(user = "ada", "user {} logged in", n);
            notice!("look");
        };
        step(1);
        handle.set_filter("scheduler=debug,error").unwrap();
        step(2);
        handle.set_filter("off").unwrap();
        step(3);
    });
    assert_eq!(
        lines(&handle),
        [
            "info tests step",
            "audit tests user 1 logged in",
            "notice tests look",
            "debug scheduler thinking",
            "audit tests user 2 logged in",
            "audit tests user 3 logged in",
        ]
    );
    let audit = &handle.recent(1, &filter("audit"))[0];
    assert_eq!(audit.fields.get("user"), Some(&"ada".into()), "fields stay, the level field goes");
    assert_eq!(audit.fields.len(), 1);
    assert_eq!(audit.seq, 6);
    assert_eq!(handle.filter(), "off");
    assert!(handle.set_filter("scheduler=loud").is_err());
    assert_eq!(handle.filter(), "off", "a bad filter changes nothing");
}

#[test]
fn the_closest_directive_decides() {
    let filter = filter("swarm_core=error, scheduler=debug, swarm_core::scheduler::queue=off, info");
    let lets = |level, target: &str, tag| filter.lets(level, target, tag);
    assert!(lets(Level::Info, "other", None));
    assert!(!lets(Level::Warn, "swarm_core::receiver", None));
    assert!(lets(Level::Debug, "swarm_core::scheduler", None));
    assert!(!lets(Level::Error, "swarm_core::scheduler::queue", None));
    assert!(lets(Level::Debug, "swarm_core::scheduler::queue", Some("scheduler")), "a tag beats the target");
    assert!(!lets(Level::Debug, "swarm_core::scheduler2", None), "only whole parts match");
    assert!(!lets(Level::Trace, "myscheduler", None));
    assert!(lets(Level::Audit, "swarm_core::scheduler::queue", None), "audit passes everything");
    let again: Filter = filter.to_string().parse().unwrap();
    assert_eq!(again, filter);
}

#[test]
fn a_bad_filter_names_the_part() {
    for (text, part) in [("info,x=y", "x=y"), ("=debug", "=debug"), ("loud", "loud"), ("a b=info", "a b=info")] {
        let error = text.parse::<Filter>().unwrap_err();
        assert_eq!(error.part, part);
        assert!(error.to_string().contains("scheduler=debug,info"), "{error}");
    }
    assert!(vec!["a=info"; 65].join(",").parse::<Filter>().is_err());
}

#[test]
fn a_notice_lies_between_info_and_warn() {
    let (dispatch, handle) = scoped(&silent("notice")).unwrap();
    with_default(&dispatch, || {
        info!("one");
        notice!("two");
        warn!("three");
    });
    assert_eq!(lines(&handle), ["notice tests two", "warn tests three"]);
}

#[test]
fn the_ring_is_bounded_and_read_from_its_end() {
    let (dispatch, handle) = scoped(&LoggerConfig { ring_entries: 5, ..silent("trace") }).unwrap();
    with_default(&dispatch, || {
        for n in 0..9 {
            info!("info {n}");
            trace!(swarm.tag = "noise", "trace {n}");
        }
    });
    assert_eq!(
        lines(&handle),
        ["trace noise trace 6", "info tests info 7", "trace noise trace 7", "info tests info 8", "trace noise trace 8"]
    );
    let newest = handle.recent(1, &filter("noise=off,info"));
    assert_eq!(newest[0].message, "info 8");
}

#[tokio::test]
async fn a_live_reader_gets_everything_or_learns_how_much_it_lost() {
    let (dispatch, handle) = scoped(&silent("info")).unwrap();
    let mut reader = handle.subscribe();
    with_default(&dispatch, || (0..3).for_each(|n| info!("{n}")));
    for n in 1..=3 {
        assert_eq!(reader.next().await.unwrap().seq, n);
    }
    assert_eq!(reader.lost(), 0);
    with_default(&dispatch, || (0..2000).for_each(|n| info!("{n}")));
    let next = reader.next().await.unwrap();
    assert!(reader.lost() > 0);
    assert_eq!(next.seq, 3 + reader.lost() + 1, "lost and seen add up");
    drop((dispatch, handle));
    while reader.next().await.is_some() {}
}

#[test]
fn fields_of_spans_are_inherited_and_the_innermost_wins() {
    let (dispatch, handle) = scoped(&silent("info")).unwrap();
    with_default(&dispatch, || {
        let outer = info_span!("job", job.id = 42, part = "outer", late = tracing::field::Empty).entered();
        outer.record("late", true);
        let _inner = info_span!("attempt", part = "inner").entered();
        info!(n = -1i64, "in the middle");
    });
    let entry = &handle.recent(1, &Filter::everything())[0];
    let fields: serde_json::Value = serde_json::to_value(&entry.fields).unwrap();
    assert_eq!(fields, serde_json::json!({"job.id": 42, "part": "inner", "late": true, "n": -1}));
}

#[test]
fn no_text_can_forge_a_line_or_steer_a_terminal() {
    let (dispatch, handle) = scoped(&silent("info")).unwrap();
    let evil = "a\r\nfaked\x1b[2J\u{9b}31m\u{202e}\u{7f}\u{0}é";
    with_default(&dispatch, || {
        info!(name = evil, other = ?evil, swarm.tag = evil, "said {evil}");
        info!(long = "x".repeat(1 << 20), "{}", "ü".repeat(1 << 20));
    });
    let safe = r"a\r\nfaked\u{1b}[2J\u{9b}31m\u{202e}\u{7f}\u{0}é";
    let entries = handle.recent(2, &Filter::everything());
    assert_eq!(entries[0].message, format!("said {safe}"));
    assert_eq!(entries[0].tag, safe);
    assert_eq!(entries[0].fields.get("name"), Some(&safe.into()));
    assert!(entries[1].message.len() < 17 * 1024 && entries[1].message.contains("bytes cut"));
    assert!(entries[1].fields["long"].as_str().unwrap().len() < 5 * 1024);
    let mut screen = Vec::new();
    let mut terminal = Terminal::new(&mut screen, false, false);
    terminal.put(&entries[0]).unwrap();
    terminal.put_out().unwrap();
    let shown = String::from_utf8(screen).unwrap();
    assert_eq!(shown.matches('\n').count(), 1);
    assert!(!shown.trim_end().contains(char::is_control), "{shown:?}");
}

#[test]
fn people_see_one_line_and_quiet_ones_only_trouble() {
    let entry = |level, name: &str, value: &str| {
        let fields = [(name.to_owned(), value.into())].into();
        Entry { at: "2026-11-21T02:38:19.5Z".parse().unwrap(), fields, ..Entry::own(level, "a message".to_owned()) }
    };
    let shown = |colour, quiet| {
        let mut screen = Vec::new();
        let mut terminal = Terminal::new(&mut screen, colour, quiet);
        terminal.put(&entry(Level::Info, "path", "a b=\"c\"")).unwrap();
        terminal.put(&entry(Level::Warn, "n", "plain")).unwrap();
        terminal.put_out().unwrap();
        String::from_utf8(screen).unwrap()
    };
    let warning = "2026-11-21T02:38:19.500Z warn   logger: a message n=plain\n";
    assert_eq!(shown(false, true), warning);
    assert_eq!(
        shown(false, false),
        format!("2026-11-21T02:38:19.500Z info   logger: a message path=\"a b=\\\"c\\\"\"\n{warning}")
    );
    assert!(shown(true, true).contains("\x1b[33mwarn  \x1b[0m"));
}

#[test]
fn the_file_holds_json_lines_and_survives_a_restart_in_mid_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = in_dir(&dir.path().join("new"), 1 << 20, 3);
    let path = dir.path().join("new/core.jsonl");
    for round in 0..2 {
        let (dispatch, handle) = scoped(&config).unwrap();
        with_default(&dispatch, || warn!(round, "one\ntwo"));
        assert!(handle.flush(LIMIT));
        fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"half\":").unwrap();
    }
    let (_, handle) = scoped(&config).unwrap();
    assert!(handle.flush(LIMIT));
    let text = fs::read_to_string(&path).unwrap();
    let parsed: Vec<Option<Entry>> = text.lines().map(|line| serde_json::from_str(line).ok()).collect();
    assert_eq!(parsed.len(), 4, "{text}");
    assert!(parsed[1].is_none() && parsed[3].is_none(), "the torn lines stand alone");
    let second = parsed[2].as_ref().unwrap();
    assert_eq!((second.level, second.message.as_str()), (Level::Warn, r"one\ntwo"));
    assert_eq!(second.fields["round"], 1);
    use std::os::unix::fs::PermissionsExt;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn files_are_put_aside_by_size_and_the_oldest_goes() {
    let dir = tempfile::tempdir().unwrap();
    let (dispatch, handle) = scoped(&in_dir(dir.path(), 2000, 3)).unwrap();
    with_default(&dispatch, || (0..60).for_each(|n| info!(n, "some words that take up room")));
    assert!(handle.flush(LIMIT));
    let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["core.jsonl", "core.jsonl.1", "core.jsonl.2"]);
    let mut numbers = Vec::new();
    for name in names.iter().rev() {
        let text = fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(text.len() <= 2000);
        numbers.extend(text.lines().map(|line| serde_json::from_str::<Entry>(line).unwrap().seq));
    }
    let expected: Vec<u64> = (numbers[0]..=60).collect();
    assert_eq!(numbers, expected, "nothing is lost between the files");
    assert_eq!(handle.dropped(), 0);
    let view = handle.view();
    assert_eq!((view.name.as_str(), view.handled, view.queue_depth, view.errors), ("logger", 60, 0, 0));
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let error = scoped(&in_dir(Path::new("/proc/nowhere"), 1000, 2)).err().unwrap();
    assert_eq!(error.to_string(), "cannot open the log file /proc/nowhere/core.jsonl");
}

/// Set for the process in which the test below installs a logger for good.
const CHILD: &str = "SWARM_CORE_TEST_GLOBAL_LOGGER";

#[test]
fn the_global_logger_serves_people_and_libraries() {
    if std::env::var_os(CHILD).is_some() {
        return log_globally();
    }
    let name = "logger::tests::the_global_logger_serves_people_and_libraries";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let shown = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{shown}");
    // Everything after the time stamp.
    let lines: Vec<&str> = shown.lines().map(|line| &line[25..]).collect();
    assert_eq!(
        lines,
        [
            r#"audit  tests: first user="ada l""#,
            "warn   library: from a library with its own target",
            "debug  server: a request that matched no route",
            "debug  tests: second n=1",
            r"error  tests: third\nline",
        ]
    );
    assert!(!shown.contains('\x1b'), "no colour in a pipe");
}

fn log_globally() {
    let handle = init(&LoggerConfig { filter: "off".to_owned(), ..LoggerConfig::default() }).unwrap();
    assert!(matches!(init(&LoggerConfig::default()), Err(LoggerError::AlreadyInstalled)));
    error!("not shown");
    log::error!("not shown");
    audit!(user = "ada l", "first");
    handle.set_filter("info").unwrap();
    log::error!(target: "rocket::server::_", "not shown: anyone may cause it");
    log::error!(target: "swarm_core::http::jobs::_", "not shown either: a guard refused somebody");
    handle.set_filter("library=debug,rocket=debug,tests=debug,off").unwrap();
    log::warn!(target: "some::library", "from a library with its own target");
    log::trace!(target: "some::library", "too fine");
    log::error!(target: "rocket::server", "a request that matched no route");
    log::error!(target: "elsewhere", "not shown");
    debug!(n = 1, "second");
    error!("third\nline");
    assert!(handle.flush(LIMIT));
    assert_eq!(handle.dropped(), 0);
}

/// A sink that takes one entry per token received, and fails when told so.
struct Slow {
    tokens: Receiver<bool>,
    seen: Sender<String>,
}

impl Sink for Slow {
    fn write(&mut self, entry: &Entry) -> io::Result<()> {
        let works = self.tokens.recv().unwrap_or(true);
        if !works {
            return Err(io::Error::other("told to fail"));
        }
        self.seen.send(entry.message.clone()).map_err(io::Error::other)
    }

    fn flush(&mut self, _sync: bool) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_stuck_writer_drops_counts_and_says_so_later() {
    let (token, tokens) = channel();
    let (seen, shown) = channel();
    let drain = Drain::start("slow", 2, Slow { tokens, seen }).unwrap();
    let entry = |n: u32| Arc::new(Entry::own(Level::Info, format!("entry {n}")));
    drain.offer(&entry(0));
    token.send(true).unwrap();
    assert_eq!(shown.recv_timeout(LIMIT).unwrap(), "entry 0");
    (1..=10).for_each(|n| drain.offer(&entry(n)));
    let dropped = drain.dropped();
    assert!((7..=8).contains(&dropped), "two wait, one may be in hand: {dropped}");
    assert!(!drain.flush(Instant::now()), "a stuck writer does not hold up the asker");
    drop(token);
    assert!(drain.flush(Instant::now() + LIMIT));
    let rest: Vec<String> = shown.try_iter().collect();
    let (kept, reports): (Vec<&String>, Vec<&String>) = rest.iter().partition(|line| line.starts_with("entry"));
    assert_eq!(kept.len() as u64, 10 - dropped);
    let told: u64 = reports.iter().map(|line| line.split_once(' ').unwrap().0.parse::<u64>().unwrap()).sum();
    assert_eq!(told, dropped, "{reports:?}");
}

#[test]
fn a_failing_writer_counts_what_it_lost() {
    let (token, tokens) = channel();
    let (seen, shown) = channel();
    let drain = Drain::start("failing", 8, Slow { tokens, seen }).unwrap();
    for works in [false, true, true] {
        token.send(works).unwrap();
    }
    drain.offer(&Arc::new(Entry::own(Level::Info, "lost".to_owned())));
    drain.offer(&Arc::new(Entry::own(Level::Info, "kept".to_owned())));
    assert!(drain.flush(Instant::now() + LIMIT));
    assert_eq!(drain.dropped(), 1);
    let lines: Vec<String> = shown.try_iter().collect();
    assert!(lines[0].starts_with("1 log entries were dropped") && lines[1] == "kept", "{lines:?}");
}

#[test]
fn many_threads_share_one_order() {
    let dir = tempfile::tempdir().unwrap();
    let (dispatch, handle) = scoped(&in_dir(dir.path(), 1 << 30, 2)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| with_default(&dispatch, || (0..500).for_each(|n| error!(n, "busy"))));
        }
    });
    assert!(handle.flush(LIMIT));
    let text = fs::read_to_string(dir.path().join("core.jsonl")).unwrap();
    let numbers: Vec<u64> = text.lines().map(|line| serde_json::from_str::<Entry>(line).unwrap().seq).collect();
    assert_eq!(numbers, (1..=2000).collect::<Vec<_>>());
    let ring: Vec<u64> = handle.recent(usize::MAX, &Filter::everything()).iter().map(|entry| entry.seq).collect();
    assert_eq!(ring, numbers);
}
