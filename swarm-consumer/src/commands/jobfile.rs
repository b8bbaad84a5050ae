//! `job validate`, `job schema` and `job convert`: all without a core.

use chrono::Utc;
use serde_json::json;
use swarm_jobfile::convert::{ConvertError, Converted, compose, crontab, docker_run};
use swarm_protocol::text::sanitise;

use crate::cli::{JobCommand, JobConvert, Syntax};
use crate::failure::{Done, Failure};
use crate::flags::{SpecFlags, read_text};
use crate::output::{Format, json_text, note, print, show};
use crate::views::Said;

pub(crate) fn run(command: &JobCommand, format: Format) -> Done<u8> {
    match command {
        JobCommand::Validate(validate) => {
            let draft = SpecFlags::of_file(&validate.file).draft(Utc::now())?;
            if draft.spec().image.is_empty() {
                return Err(Failure::usage("image: is missing").hint("name an image uploaded with `image push`"));
            }
            let (name, tasks) = (validate.file.display().to_string(), draft.spec().tasks().count());
            let text = format!("{name} is a job of {tasks} {}", if tasks == 1 { "task" } else { "tasks" });
            let json = json!({ "valid": true, "tasks": tasks, "spec": draft.spec() });
            show(format, &Said { text, json, id: name })?;
        }
        JobCommand::Schema => print(&format!("{}\n", json_text(&swarm_jobfile::schema())))?,
        JobCommand::Convert(convert) => {
            let (converted, Syntax { to }) = self::convert(convert)?;
            let text = swarm_jobfile::write(&converted.job, *to).map_err(Failure::usage)?;
            if text.lines().flat_map(str::chars).any(swarm_protocol::text::is_hostile) {
                return Err(Failure::usage("it holds control characters that a terminal would obey")
                    .hint("remove them from what is converted"));
            }
            converted.notes.iter().for_each(|text| note(&format!("note: {}", sanitise(text, false))));
            print(&text)?;
        }
    }
    Ok(0)
}

fn convert(convert: &JobConvert) -> Done<(Converted, &Syntax)> {
    let told = |error: ConvertError| Failure::usage(sanitise(&error.problem, false)).hint(error.hint);
    match convert {
        JobConvert::DockerRun { line, to } => Ok((docker_run(&as_line(line)).map_err(told)?, to)),
        JobConvert::Compose { file, service, to } => {
            let (_, text) = read_text(file)?;
            Ok((compose(&text, service.as_deref()).map_err(told)?, to))
        }
        JobConvert::Crontab { line, image, zone, to } => Ok((crontab(line, image, zone.as_deref()).map_err(told)?, to)),
    }
}

/// One word is a line; several are what a shell has made of one.
fn as_line(words: &[String]) -> String {
    match words {
        [line] => line.clone(),
        words => swarm_jobfile::convert::line_of(words),
    }
}
