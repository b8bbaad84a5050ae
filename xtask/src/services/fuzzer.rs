//! Schemathesis, which makes requests out of the description of the API. It lives in an environment of its own below the
//! build's directory, and stays there until the list of its packages changes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use super::INSTALL_MAX;
use crate::report::say;
use crate::run::{self, Stop};

/// Whether this machine's Python can make environments.
pub(super) fn has_venv() -> bool {
    run::output(Command::new("python3").args(["-c", "import ensurepip, venv"])).is_ok()
}

/// Installs what `list` names into `dir`, unless it is there; gives the program.
///
/// # Errors
/// When a package cannot be had.
pub(super) fn install(dir: &Path, list: &Path, stop: &Stop) -> Result<PathBuf> {
    let program = dir.join("bin/schemathesis");
    let wanted = std::fs::read(list).with_context(|| format!("reading {}", list.display()))?;
    // Written last: an installation that was cut off is done again.
    let mark = dir.join("installed.txt");
    if std::fs::read(&mark).is_ok_and(|installed| installed == wanted) && program.is_file() {
        return Ok(program);
    }
    say(format_args!("installing schemathesis into {}", dir.display()));
    let deadline = Instant::now() + INSTALL_MAX;
    let (mut make, mut fill) = (Command::new("python3"), Command::new(dir.join("bin/python3")));
    make.args(["-m", "venv", "--clear"]).arg(dir);
    fill.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"]).arg(list);
    for command in [&mut make, &mut fill] {
        if let Some(problem) = run::stream(command, deadline, stop, &mut |_| {})?.problem() {
            bail!("installing what {} names by pip: {problem}", list.display());
        }
    }
    std::fs::write(&mark, wanted).with_context(|| format!("writing {}", mark.display()))?;
    Ok(program)
}
