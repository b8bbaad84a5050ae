//! A line of a crontab (crontab(5)): five fields or a nickname, then a command for `sh`.

use super::{ConvertError, Converted};
use crate::model::{JobFile, Schedule};

/// Takes over a line of a user's crontab. A crontab names no image, so that `image` is asked for.
///
/// # Errors
/// When it is no such line, or one that says `@reboot`.
pub fn crontab(line: &str, image: &str, zone: Option<&str>) -> Result<Converted, ConvertError> {
    let hint = "write MINUTE HOUR DAY MONTH WEEKDAY COMMAND, such as '30 2 * * * backup --all'";
    let line = line.trim();
    let first = line.split_whitespace().next().unwrap_or_default();
    if first.starts_with('#') || first.contains('=') {
        return Err(ConvertError::new("the line makes nothing: it is a comment, or sets a variable", hint));
    }
    let (cron, command) = match line.strip_prefix('@') {
        Some(rest) => {
            let (nickname, command) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
            (fields_of(nickname)?.to_owned(), command.trim())
        }
        None => {
            let mut rest = line;
            let mut fields = Vec::new();
            for _ in 0..5 {
                let (field, more) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                fields.push(field);
                rest = more.trim_start();
            }
            (fields.join(" "), rest)
        }
    };
    if command.is_empty() {
        return Err(ConvertError::new("the line has no command", hint));
    }
    let (command, input) = percent(command);
    let mut notes = vec!["the command runs in the image, which must have all that it calls".to_owned()];
    if zone.is_none() {
        notes.push("the fields are meant in UTC here; name the crontab's own time zone otherwise".to_owned());
    }
    if input.is_some() {
        notes.push("what follows the first % is left out: a job reads nothing from standard input".to_owned());
    }
    let program = command.split_whitespace().next().unwrap_or_default();
    let name = program.rsplit('/').next().unwrap_or_default();
    let name: String = name.chars().filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c)).collect();
    let job = JobFile {
        image: Some(image.to_owned()),
        name: super::docker_values::name(&name, &mut Vec::new()),
        command: ["sh", "-c", &command].map(str::to_owned).to_vec(),
        schedule: Some(Schedule { cron, zone: zone.map(str::to_owned) }),
        ..JobFile::default()
    };
    Ok(Converted { job, notes })
}

fn fields_of(nickname: &str) -> Result<&'static str, ConvertError> {
    Ok(match nickname {
        "yearly" | "annually" => "0 0 1 1 *",
        "monthly" => "0 0 1 * *",
        "weekly" => "0 0 * * 0",
        "daily" | "midnight" => "0 0 * * *",
        "hourly" => "0 * * * *",
        "reboot" => {
            return Err(ConvertError::new("@reboot has no instant", "a swarm does not boot; name a time instead"));
        }
        other => {
            let known = "@yearly, @monthly, @weekly, @daily and @hourly are known";
            return Err(ConvertError::new(format!("@{other} is no nickname of cron"), known));
        }
    })
}

/// The command, and what cron would feed it: from the first `%` on that no backslash precedes.
fn percent(command: &str) -> (String, Option<String>) {
    let mut out = String::new();
    let mut chars = command.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if chars.peek() == Some(&'%') => out.extend(chars.next()),
            '%' => return (out, Some(chars.collect())),
            other => out.push(other),
        }
    }
    (out, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(line: &str) -> (String, String, Option<String>) {
        let job = crontab(line, "tool:1", Some("Europe/Berlin")).unwrap().job;
        assert_eq!(
            (job.image.as_deref(), &job.command[..2]),
            (Some("tool:1"), &["sh".to_owned(), "-c".to_owned()][..])
        );
        let schedule = job.schedule.unwrap();
        assert_eq!(schedule.zone.as_deref(), Some("Europe/Berlin"));
        (schedule.cron, job.command[2].clone(), job.name)
    }

    #[test]
    fn fields_and_nicknames_become_a_schedule() {
        let expected = |cron: &str, command: &str, name: &str| (cron.into(), command.into(), Some(name.into()));
        assert_eq!(
            taken("30  2 * * 1-5\t/usr/bin/backup.sh --all  > /tmp/x 2>&1"),
            expected("30 2 * * 1-5", "/usr/bin/backup.sh --all  > /tmp/x 2>&1", "backup.sh")
        );
        assert_eq!(taken("@daily report"), expected("0 0 * * *", "report", "report"));
        assert_eq!(taken(r"@hourly date +\%F"), expected("0 * * * *", "date +%F", "date"));
    }

    #[test]
    fn what_cron_feeds_a_command_is_named_and_what_is_no_line_is_refused() {
        let converted = crontab("@daily mail root%hello%", "tool:1", None).unwrap();
        assert_eq!(converted.job.command[2], "mail root");
        assert!(converted.notes.iter().any(|note| note.contains("standard input")), "{:?}", converted.notes);
        let told = |line: &str| crontab(line, "tool:1", None).unwrap_err().to_string();
        assert!(told("# 0 0 * * * x").contains("comment") && told("MAILTO=a 0 0 * * * x").contains("variable"));
        assert_eq!(
            [told("@reboot x"), told("@often x"), told("0 0 * * *"), told("")],
            [
                "@reboot has no instant",
                "@often is no nickname of cron",
                "the line has no command",
                "the line has no command"
            ]
        );
    }
}
