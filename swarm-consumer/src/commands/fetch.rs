//! `fetch`: outputs as files, never outside the directory named, never over a file that is there.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use serde_json::{Value, json};
use swarm_client::{Client, Destination};
use swarm_protocol::api::{OutputView, TaskView};
use swarm_protocol::globs::OutputGlob;
use swarm_protocol::text::{is_hostile, sanitise};
use swarm_protocol::{AttemptNo, JobId, OutcomeKind, TaskId};

use crate::cli::Fetch;
use crate::exit::Exit;
use crate::failure::{Done, Failure};
use crate::output::{Format, Report, note, show};

/// Tasks asked for at once.
const PAGE: u32 = 200;
/// Outputs fetched at once.
const PARALLEL: usize = 4;

pub(crate) async fn run(client: &Client, fetch: &Fetch, format: Format) -> Done<u8> {
    let parsed: TaskId = fetch.job.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    let task = fetch.task.or(fetch.job.contains('.').then_some(parsed.task));
    let fetched = fetch_job(client, parsed.job, task, &fetch.into, fetch.force).await?;
    show(format, &fetched)?;
    Ok(0)
}

/// One output and where it goes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    task: TaskId,
    attempt: AttemptNo,
    n: usize,
    output: OutputView,
    /// Below the directory named.
    path: PathBuf,
}

/// What was fetched.
#[derive(Debug)]
pub(crate) struct Fetched {
    files: Vec<(TaskId, PathBuf, u64)>,
}

impl Report for Fetched {
    fn human(&self) -> String {
        let line = |(_, path, _): &(TaskId, PathBuf, u64)| format!("{}\n", sanitise(&path.to_string_lossy(), false));
        self.files.iter().map(line).collect()
    }

    fn json(&self) -> Value {
        let one = |(task, path, size): &(TaskId, PathBuf, u64)| json!({"task": task.to_string(), "path": path.to_string_lossy(), "size_bytes": size});
        self.files.iter().map(one).collect()
    }

    fn ids(&self) -> Vec<String> {
        self.files.iter().map(|(_, path, _)| path.to_string_lossy().into_owned()).collect()
    }
}

/// Fetches the outputs of a job, or of one of its tasks, into `into`.
pub(crate) async fn fetch_job(
    client: &Client,
    job: JobId,
    only: Option<u32>,
    into: &Path,
    force: bool,
) -> Done<Fetched> {
    let detail = client.job(job).await?;
    let array = detail.spec.array.is_some();
    let (mut files, mut cursor) = (Vec::new(), None);
    loop {
        let (tasks, next) = match only {
            Some(task) => (vec![client.task(TaskId { job, task }).await?], None),
            None => {
                let page = client.tasks(job, Some(PAGE), cursor.as_deref()).await?;
                let next = page.next.filter(|_| !page.items.is_empty());
                (page.items, next)
            }
        };
        let mut items = Vec::new();
        for task in &tasks {
            match items_of(job, task, array) {
                Ok(more) => items.extend(more),
                // One task of an array that failed does not keep the others' files back.
                Err(failure) if array && only.is_none() => {
                    note(&format!("skipped: {}", sanitise(&failure.what, false)));
                }
                Err(failure) => return Err(failure),
            }
        }
        files.extend(fetch_page(client, items, into, force).await?);
        cursor = next;
        if cursor.is_none() {
            return Ok(Fetched { files });
        }
    }
}

/// Fetches the files of one page of tasks; a page at a time, for an array may have millions.
async fn fetch_page(client: &Client, items: Vec<Item>, into: &Path, force: bool) -> Done<Vec<(TaskId, PathBuf, u64)>> {
    if !force {
        free(into, items.iter().map(|item| item.path.as_path()))?;
    }
    futures_util::stream::iter(items)
        .map(|item| fetch_one(client, item, into, force))
        .buffered(PARALLEL)
        .try_collect()
        .await
}

async fn fetch_one(client: &Client, item: Item, into: &Path, force: bool) -> Done<(TaskId, PathBuf, u64)> {
    let Item { task, attempt, n, output, path } = item;
    let whole = make_parents(into, &path)?;
    let bar = super::bar(Some(output.size_bytes));
    let moving = bar.clone();
    let progress: swarm_client::Progress = Arc::new(move |moved| moving.set_position(moved));
    let destination = Destination { path: &whole, overwrite: force };
    let done = client.download_output(task, Some(attempt), n, &output, destination, progress).await;
    bar.finish_and_clear();
    done?;
    Ok((task, whole, output.size_bytes))
}

/// The outputs of a task's final attempt; an error says why there are none to have.
fn items_of(job: JobId, task: &TaskView, array: bool) -> Done<Vec<Item>> {
    let id = TaskId { job, task: task.task };
    let reason = task.detail.as_deref().map_or_else(String::new, |detail| format!(": {detail}"));
    let (exit, state) = match task.outcome {
        Some(OutcomeKind::Succeeded) => (Exit::Ok, String::new()),
        Some(OutcomeKind::Lost) => (Exit::Lost, format!("was lost{reason}")),
        Some(OutcomeKind::Cancelled) => (Exit::Cancelled, "was cancelled".to_owned()),
        Some(kind) => (Exit::Error, format!("did not succeed ({kind}){reason}")),
        None => (Exit::Error, "has not ended".to_owned()),
    };
    if exit != Exit::Ok {
        return Err(Failure::new(exit, format!("task {id} {state}, so it has no outputs"))
            .hint("`wait JOB` waits for the end; `logs JOB` shows what it wrote"));
    }
    let Some(last) = task.attempts.iter().find(|attempt| attempt.is_final) else {
        return Err(Failure::new(Exit::Error, format!("task {id} names no final attempt")));
    };
    let names = names(&last.outputs)?;
    let place = |name: PathBuf| if array { Path::new(&task.task.to_string()).join(name) } else { name };
    let items = last.outputs.iter().zip(names).enumerate().map(|(n, (output, name))| Item {
        task: id,
        attempt: last.attempt,
        n,
        output: output.clone(),
        path: place(name),
    });
    Ok(items.collect())
}

/// What each output is called here: its own name, or its whole path where two share a name. No two are called the same,
/// and none is where another needs a directory. The paths come over the network, so nothing but plain parts gets through.
fn names(outputs: &[OutputView]) -> Done<Vec<PathBuf>> {
    let mut paths: Vec<PathBuf> = outputs.iter().map(plain_path).collect::<Done<_>>()?;
    name_archives(outputs, &mut paths);
    let mut count = HashMap::new();
    for path in &paths {
        *count.entry(path.file_name()).or_insert(0) += 1;
    }
    let all_differ = count.len() == paths.len();
    let roots: HashSet<_> = paths.iter().filter_map(|path| path.iter().next()).collect();
    let name = |path: &PathBuf| match path.file_name() {
        Some(last) if all_differ || (count[&Some(last)] == 1 && !roots.contains(last)) => PathBuf::from(last),
        _ => path.clone(),
    };
    Ok(paths.iter().map(name).collect())
}

/// A directory comes as an archive: `x.tar`, or `x.1.tar` and so on where that is another output, or a directory of one.
fn name_archives(outputs: &[OutputView], paths: &mut [PathBuf]) {
    let own = |(output, path): (&OutputView, &PathBuf)| (!output.is_dir).then(|| path.clone());
    let above = paths.iter().flat_map(|path| path.ancestors().skip(1).map(Path::to_owned));
    let mut taken: HashSet<PathBuf> = above.chain(outputs.iter().zip(&*paths).filter_map(own)).collect();
    for (_, path) in outputs.iter().zip(paths).filter(|(output, _)| output.is_dir) {
        let last = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut name = path.with_file_name(format!("{last}.tar"));
        let mut n = 0;
        while !taken.insert(name.clone()) {
            n += 1;
            name = path.with_file_name(format!("{last}.{n}.tar"));
        }
        *path = name;
    }
}

/// The path below the directory named, as it was in the container.
fn plain_path(output: &OutputView) -> Done<PathBuf> {
    let refuse = || Failure::new(Exit::Error, format!("refused an output with the unsafe path `{}`", output.path));
    let plain = |part: &str| {
        !part.is_empty() && part != "." && part != ".." && !part.contains('\0') && !part.chars().any(is_hostile)
    };
    let parts: Vec<&str> = output.path.trim_start_matches('/').split('/').collect();
    if parts.iter().all(|part| plain(part)) { Ok(parts.iter().collect()) } else { Err(refuse()) }
}

/// Refuses when any of the files is there already.
pub(crate) fn free<'a>(into: &Path, paths: impl Iterator<Item = &'a Path>) -> Done<()> {
    for path in paths {
        let whole = into.join(path);
        if whole.symlink_metadata().is_ok() {
            return Err(Failure::new(Exit::Conflict, format!("{} is there already", whole.display()))
                .hint("choose another place with --into, or replace it with --force"));
        }
    }
    Ok(())
}

/// The names a single task's outputs will have, told before the job runs; those of a directory, and of what a glob will
/// match, cannot be known yet.
pub(crate) fn expected_names(paths: &[String]) -> Done<Vec<PathBuf>> {
    let digest = swarm_protocol::Digest::of(b"");
    let paths = paths.iter().filter(|path| matches!(OutputGlob::parse(path), Ok(None)));
    let view = |path: &String| OutputView { path: path.clone(), digest, size_bytes: 0, is_dir: false, mode: 0 };
    names(&paths.map(view).collect::<Vec<_>>())
}

/// Makes the directories between `into` and the file. A symbolic link among them is refused: it could lead elsewhere.
fn make_parents(into: &Path, path: &Path) -> Done<PathBuf> {
    let failed =
        |dir: &Path, error: &io::Error| Failure::io(format!("cannot make the directory {}", dir.display()), error);
    std::fs::create_dir_all(into).map_err(|error| failed(into, &error))?;
    let mut dir = into.to_owned();
    for part in path.parent().unwrap_or(Path::new("")).components() {
        dir.push(part);
        match std::fs::create_dir(&dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(&dir, &error)),
            _ => {}
        }
        let facts = dir.symlink_metadata().map_err(|error| failed(&dir, &error))?;
        if !facts.is_dir() {
            return Err(Failure::new(Exit::Conflict, format!("{} is not a directory", dir.display()))
                .hint("move it away, or choose another place with --into"));
        }
    }
    Ok(into.join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn output(path: &str, is_dir: bool) -> OutputView {
        let digest = swarm_protocol::Digest::of(b"");
        OutputView { path: path.into(), digest, size_bytes: 0, is_dir, mode: 0o644 }
    }

    #[test]
    fn outputs_keep_their_names_unless_two_share_one() {
        let named =
            names(&[output("/out/a", false), output("/x/b", true), output("/y/c", false), output("/z/c", false)]);
        let expected = ["a", "b.tar", "y/c", "z/c"].map(PathBuf::from);
        assert_eq!(named.unwrap(), expected);
    }

    fn named(outputs: &[(&str, bool)]) -> Vec<String> {
        let outputs: Vec<_> = outputs.iter().map(|(path, is_dir)| output(path, *is_dir)).collect();
        names(&outputs).unwrap().iter().map(|name| name.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn no_output_lies_over_or_under_another() {
        assert_eq!(named(&[("/out/x", true), ("/out/x.tar", false)]), ["x.1.tar", "x.tar"]);
        assert_eq!(named(&[("/out/x", true), ("/out/x.tar", true)]), ["x.tar", "x.tar.tar"]);
        let taken = [("/out/x", true), ("/out/x.tar", false), ("/out/x.1.tar", false), ("/q/x.tar", false)];
        assert_eq!(named(&taken), ["x.2.tar", "out/x.tar", "x.1.tar", "q/x.tar"]);
        // A directory that another output's path needs.
        assert_eq!(named(&[("/out/x", true), ("/out/x.tar/f", false), ("/f", false)]), ["x.1.tar", "out/x.tar/f", "f"]);
        assert_eq!(named(&[("/out/y", false), ("/y/c", false), ("/z/c", false)]), ["out/y", "y/c", "z/c"]);
    }

    #[test]
    fn a_backslash_is_a_letter() {
        assert_eq!(named(&[("/out/a\\b", false), ("/out/..\\c", false)]), ["a\\b", "..\\c"]);
    }

    #[test]
    fn nothing_climbs_out_of_the_directory() {
        for bad in [
            "/out/..",
            "/../etc/passwd",
            "/out//x",
            "",
            "/",
            "/a/./b",
            "/out/a\0b",
            "/out/\u{1b}]52;c;eA==\u{7}",
            "/out/\u{9b}",
        ] {
            assert!(names(&[output(bad, false)]).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn files_that_are_there_are_refused_and_links_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let into = dir.path().join("into");
        assert!(free(&into, [Path::new("a")].into_iter()).is_ok());
        assert_eq!(make_parents(&into, Path::new("3/a")).unwrap(), into.join("3/a"));
        std::os::unix::fs::symlink("/nowhere", into.join("a")).unwrap();
        assert_eq!(free(&into, [Path::new("a")].into_iter()).unwrap_err().exit, Exit::Conflict);
        std::os::unix::fs::symlink(dir.path(), into.join("4")).unwrap();
        assert_eq!(make_parents(&into, Path::new("4/a")).unwrap_err().exit, Exit::Conflict);
    }
}
