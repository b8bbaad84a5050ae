//! Outputs named by a glob, such as `/out/*.csv`: `*` and `?` match within a name, `**` across directories, `[a-z]` one
//! character, `{a,b}` either. `[*]` stands for a star itself. The notation is that of the `globset` crate.

use globset::{GlobBuilder, GlobSet};

/// What makes a path a glob.
const WILDCARDS: [char; 4] = ['*', '?', '[', '{'];
/// The longest glob, in bytes.
const BYTES_MAX: usize = 1024;
/// The most `{` in one: the reader of globs recurses for each.
const BRACES_MAX: usize = 16;

/// A path with wildcards, for the files of one directory and below.
#[derive(Debug, Clone)]
pub struct OutputGlob {
    dir: String,
    matcher: GlobSet,
}

/// It cannot be read as a glob.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct GlobError(String);

impl OutputGlob {
    /// Reads the path of an output; `None` when it has no wildcard and names one file or directory.
    ///
    /// # Errors
    /// [`GlobError`] for one that is too long or involved, or has wildcards that are not closed or the like.
    pub fn parse(path: &str) -> Result<Option<Self>, GlobError> {
        if !path.contains(WILDCARDS) {
            return Ok(None);
        }
        if path.len() > BYTES_MAX || path.matches('{').count() > BRACES_MAX {
            return Err(GlobError(format!("it has more than {BYTES_MAX} bytes or {BRACES_MAX} braces")));
        }
        let glob = GlobBuilder::new(path).literal_separator(true).build();
        // As a set of one: a matcher of its own panics where the compiled glob grows too large.
        let matcher = glob.and_then(|glob| GlobSet::builder().add(glob).build());
        let matcher = matcher.map_err(|error| GlobError(error.kind().to_string()))?;
        Ok(Some(Self { dir: dir_of(path).to_owned(), matcher }))
    }

    /// The directory to search: all of the path before the first part with a wildcard.
    #[must_use]
    pub fn dir(&self) -> &str {
        &self.dir
    }

    /// Whether a file's path, given whole, is meant.
    #[must_use]
    pub fn is_match(&self, path: &[u8]) -> bool {
        use std::os::unix::ffi::OsStrExt;
        self.matcher.is_match(std::ffi::OsStr::from_bytes(path))
    }
}

/// The directory that an output lies in, or that is searched for it: it becomes a volume.
#[must_use]
pub fn dir_of(path: &str) -> &str {
    let plain = path.find(WILDCARDS).map_or(path, |at| &path[..at]);
    plain.rsplit_once('/').map_or("", |(dir, _)| dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn glob(path: &str) -> OutputGlob {
        OutputGlob::parse(path).unwrap().expect("it has wildcards")
    }

    #[test]
    fn wildcards_stay_within_a_name_unless_doubled() {
        let csv = glob("/out/*.csv");
        assert_eq!(csv.dir(), "/out");
        assert!(csv.is_match(b"/out/a.csv") && csv.is_match(b"/out/.csv") && csv.is_match(b"/out/\xff.csv"));
        assert!(!csv.is_match(b"/out/sub/a.csv") && !csv.is_match(b"/out/a.csv.gz") && !csv.is_match(b"/other/a.csv"));
        let deep = glob("/out/run-?/**/part-[0-9].{csv,json}");
        assert_eq!(deep.dir(), "/out");
        assert!(deep.is_match(b"/out/run-1/part-0.csv") && deep.is_match(b"/out/run-1/a/b/part-9.json"));
        assert!(!deep.is_match(b"/out/run-10/part-0.csv") && !deep.is_match(b"/out/run-1/part-x.csv"));
        assert!(glob("/out/[*]").is_match(b"/out/*") && !glob("/out/[*]").is_match(b"/out/x"));
    }

    #[test]
    fn a_plain_path_is_no_glob_and_a_broken_one_is_told() {
        assert!(OutputGlob::parse("/out/result.csv").unwrap().is_none());
        assert_eq!((dir_of("/out/result.csv"), dir_of("/out/a/b*/c"), dir_of("/*")), ("/out", "/out/a", ""));
        for broken in ["/out/[a", "/out/{a,b"] {
            assert!(!OutputGlob::parse(broken).unwrap_err().to_string().is_empty(), "{broken}");
        }
        let nested = |depth: usize| format!("/out/{}a{}", "{".repeat(depth), "}".repeat(depth));
        assert!(glob(&nested(BRACES_MAX)).is_match(b"/out/a"));
        for hostile in [nested(BRACES_MAX + 1), nested(300), "{".repeat(20_000), format!("/out/*{}", "x".repeat(1024))]
        {
            assert!(OutputGlob::parse(&hostile).is_err(), "{} bytes", hostile.len());
        }
    }
}
