//! `-i`: files and directories of this machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use swarm_client::{Client, ClientError, PackError, Packing, Progress};
use swarm_protocol::Digest;
use swarm_protocol::spec::{Input, default_mode};
use swarm_protocol::text::sanitise;

use crate::commands::bar;
use crate::failure::{Done, Failure};

/// A file or directory of this machine and where a task finds it.
#[derive(Debug)]
pub(crate) struct InputFile {
    source: Source,
    path: String,
    mode: u32,
    /// The file is an archive, or the directory becomes one.
    unpack: bool,
}

#[derive(Debug)]
enum Source {
    File(PathBuf),
    Directory(Arc<Packing>),
}

impl InputFile {
    /// Sends it to the core; its digest there.
    pub(super) async fn upload(&self, client: &Client) -> Result<Digest, ClientError> {
        let bar = bar(match &self.source {
            Source::File(_) => None,
            Source::Directory(packing) => Some(packing.size_bytes()),
        });
        let moving = bar.clone();
        let progress: Progress = Arc::new(move |moved| moving.set_position(moved));
        let uploaded = match &self.source {
            Source::File(path) => client.upload_file(path, progress).await,
            Source::Directory(packing) => client.upload_directory(packing, progress).await,
        };
        bar.finish_and_clear();
        Ok(uploaded?.digest)
    }

    pub(super) fn input(&self, digest: Digest) -> Input {
        Input { digest, path: self.path.clone(), mode: self.mode, unpack: self.unpack }
    }
}

/// Reads `FILE[:PATH]`, where FILE may be a directory; a colon belongs to the file's name unless `/` follows it.
pub(super) fn input_file(text: &str) -> Done<InputFile> {
    use std::os::unix::fs::PermissionsExt as _;
    let (file, path) = match text.rfind(":/") {
        Some(at) if at > 0 => (&text[..at], Some(text[at + 1..].to_owned())),
        _ => (text, None),
    };
    let file = PathBuf::from(file);
    let shown = file.display();
    let facts = std::fs::metadata(&file).map_err(|error| Failure::io(format!("-i {shown}"), &error))?;
    if !facts.is_file() && !facts.is_dir() {
        return Err(Failure::usage(format!("-i {shown} is neither a regular file nor a directory")));
    }
    let path = match path {
        Some(path) => path,
        None => format!("/in/{}", name_of(&file)?),
    };
    let directory = path.strip_suffix('/').map(str::to_owned);
    let (unpack, path) = (facts.is_dir() || directory.is_some(), directory.unwrap_or(path));
    // A job runs as another user than the file's owner, who may have kept it to themselves.
    let mode = if unpack { default_mode() } else { (facts.permissions().mode() & 0o777) | default_mode() };
    let source = if facts.is_dir() { Source::Directory(Arc::new(pack(&file)?)) } else { Source::File(file) };
    Ok(InputFile { source, path, mode, unpack })
}

/// What a file or directory is called; that of `.` is known by its whole path only.
fn name_of(file: &Path) -> Done<String> {
    let shown = file.display();
    let name = match file.file_name() {
        Some(name) => Some(name.to_owned()),
        None => {
            let whole = file.canonicalize().map_err(|error| Failure::io(format!("-i {shown}"), &error))?;
            whole.file_name().map(std::ffi::OsStr::to_owned)
        }
    };
    name.and_then(|name| name.into_string().ok()).ok_or_else(|| {
        Failure::usage(format!("-i {shown}: it has no name, or none in UTF-8")).hint("name its place: -i FILE:/in/NAME")
    })
}

fn pack(dir: &Path) -> Done<Packing> {
    let shown = dir.display();
    Packing::of(dir).map_err(|error| match error {
        PackError::Io { path, source } => Failure::io(format!("-i {shown}: cannot read {}", path.display()), &source),
        PackError::Strange { .. } => Failure::usage(format!("-i {shown}: {}", sanitise(&error.to_string(), false)))
            .hint("remove these, or give a directory without them"),
        PackError::TooMany => Failure::usage(format!("-i {shown}: {error}"))
            .hint("pack it with tar, give the archive as a file, and unpack it in the job"),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::{draft, refused};
    use super::*;

    #[test]
    fn inputs_go_to_in_or_where_they_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a:b.csv");
        std::fs::write(&file, "x").unwrap();
        let plain = file.to_str().unwrap();
        let placed = format!("{plain}:/data/in.csv");
        let draft = draft(&["-i", plain, "-i", &placed, "img"]).unwrap();
        let paths: Vec<_> = draft.files.iter().map(|file| file.path.as_str()).collect();
        assert_eq!(paths, ["/in/a:b.csv", "/data/in.csv"]);
        let digest = Digest::of(b"x");
        let expected = Input { digest, path: "/data/in.csv".into(), mode: 0o644, unpack: false };
        assert_eq!(draft.files[1].input(digest), expected);
        assert!(refused(&["-i", plain, "-i", plain, "img"]).contains("-i number 2"));
        assert!(refused(&["-i", "/dev/null", "img"]).contains("neither a regular file nor a directory"));
    }

    #[test]
    fn a_directory_is_one_input_and_so_is_what_an_archive_holds() {
        let dir = tempfile::tempdir().unwrap();
        let tree = dir.path().join("tree");
        std::fs::create_dir_all(tree.join("sub")).unwrap();
        std::fs::write(dir.path().join("x.tar"), "").unwrap();
        let [tree, tar] = [tree, dir.path().join("x.tar")].map(|path| path.to_str().unwrap().to_owned());
        let (placed, dotted) = (format!("{tree}:/data/"), format!("{tree}/sub/.."));
        let unpacked = format!("{tar}:/packed/");
        let inputs = |args: &[&str]| {
            let files = draft(args).unwrap().files;
            let input = |file: &InputFile| (file.path.clone(), file.unpack, file.mode);
            files.iter().map(input).collect::<Vec<_>>()
        };
        let named = |path: &str, unpack| (path.to_owned(), unpack, 0o644);
        let args = ["-i", &format!("{tree}/"), "-i", &placed, "-i", &tar, "-i", &unpacked, "img"];
        let expected =
            [named("/in/tree", true), named("/data", true), named("/in/x.tar", false), named("/packed", true)];
        assert_eq!(inputs(&args), expected);
        assert_eq!(inputs(&["-i", &dotted, "img"]), [named("/in/tree", true)]);
        let told = refused(&["-i", &format!("{tree}:/data"), "-i", &format!("{tar}:/data/sub/x.tar"), "img"]);
        assert!(told.contains("-i number 2") && told.contains("lies in the directory"), "{told}");
        std::os::unix::fs::symlink("/etc", dir.path().join("tree/etc")).unwrap();
        let told = refused(&["-i", &tree, "img"]);
        assert!(told.contains("etc (a link that leads out of it)") && told.contains("hint"), "{told}");
    }
}
