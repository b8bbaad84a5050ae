//! Job files: TOML, YAML and JSON in and out, and the JSON schema of all three.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::Deserializer;

use crate::model::JobFile;

/// The syntax of a job file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// <https://toml.io>
    Toml,
    /// <https://yaml.org>
    Yaml,
    /// RFC 8259
    Json,
}

impl Format {
    /// By the end of a file's name.
    #[must_use]
    pub fn of_path(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "toml" => Some(Self::Toml),
            "yaml" | "yml" => Some(Self::Yaml),
            "json" => Some(Self::Json),
            _ => None,
        }
    }

    /// By the first line that says something.
    #[must_use]
    pub fn of_text(text: &str) -> Self {
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let first = lines.next().unwrap_or_default();
        let key = first.find(['=', ':']).map(|at| &first[at..]);
        if first.starts_with('{') {
            Self::Json
        } else if first.starts_with('[') || key.is_some_and(|rest| rest.starts_with('=')) {
            Self::Toml
        } else {
            Self::Yaml
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Toml => "TOML",
            Self::Yaml => "YAML",
            Self::Json => "JSON",
        })
    }
}

/// Why a text is no job file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{problem}", .field.as_ref().map(|field| format!("{field}: ")).unwrap_or_default())]
pub struct ReadError {
    /// Which key is wrong, as far as that is known.
    pub field: Option<String>,
    /// What is wrong, with the place in the text where the syntax knows it.
    pub problem: String,
}

/// Reads a job file. Keys that do not exist are refused; values are checked only for being what they claim to be.
///
/// # Errors
/// [`ReadError`], the first one.
pub fn read(text: &str, format: Format) -> Result<JobFile, ReadError> {
    match format {
        Format::Json => keyed(&mut serde_json::Deserializer::from_str(text)),
        Format::Toml => {
            let parsed = toml::Deserializer::parse(text);
            keyed(parsed.map_err(|error| ReadError { field: None, problem: plain(&error) })?)
        }
        Format::Yaml => keyed(yaml(text).map_err(|problem| ReadError { field: None, problem })?),
    }
}

/// What a YAML text holds, by the rules of YAML 1.2: `y` and `no` are words, not booleans.
pub(crate) fn yaml(text: &str) -> Result<serde_json::Value, String> {
    let options = serde_saphyr::options! { strict_booleans: true };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| plain(&error))
}

fn keyed<'de, D: Deserializer<'de>>(deserializer: D) -> Result<JobFile, ReadError>
where
    D::Error: fmt::Display,
{
    let job: JobFile = serde_path_to_error::deserialize(deserializer).map_err(|error| {
        let field = error.path().to_string();
        let problem = plain(error.inner());
        ReadError { field: (field != "." && !problem.starts_with("unknown field")).then_some(field), problem }
    })?;
    let wrong = |problem: String| ReadError { field: Some("in".to_owned()), problem };
    match job.delay {
        Some(_) if job.at.is_some() => Err(wrong("is there beside `at`; give one of them".to_owned())),
        Some(delay) => crate::model::delay(&delay.to_string()).map(|_| job).map_err(wrong),
        None => Ok(job),
    }
}

/// On one line: parsers draw pictures of the text.
fn plain(error: &impl fmt::Display) -> String {
    let text = error.to_string();
    let lines = text.lines().map(str::trim).filter(|line| {
        let is_picture = line.starts_with('|') || line.contains(" | ") || line.starts_with("-->");
        !line.is_empty() && !is_picture
    });
    lines.collect::<Vec<_>>().join("; ")
}

/// Writes a job file.
///
/// # Errors
/// As the syntax's writer; a job file has nothing that it could not write.
pub fn write(job: &JobFile, format: Format) -> Result<String, String> {
    match format {
        Format::Toml => toml::to_string(job).map_err(|error| error.to_string()),
        Format::Yaml => serde_saphyr::to_string(job).map_err(|error| error.to_string()),
        Format::Json => serde_json::to_string_pretty(job).map(|text| text + "\n").map_err(|error| error.to_string()),
    }
}

/// The JSON schema of job files (draft 2020-12), for editors.
#[must_use]
pub fn schema() -> serde_json::Value {
    schemars::schema_for!(JobFile).to_value()
}

impl FromStr for JobFile {
    type Err = ReadError;

    /// In the syntax that it looks like.
    fn from_str(text: &str) -> Result<Self, ReadError> {
        read(text, Format::of_text(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOML: &str = r#"
# a sweep
image = "tool:1"
command = ["sh", "-c", "echo $SWARM_TASK_INDEX"]
name = "sweep"
array = "0-99"
cpus = 0.5
memory = "512MiB"
tmpfs = ["/tmp:64MiB"]
read_only = true
retries = 1
timeout = "10m"
entrypoint = "sh"
input = ["data.csv:/in/data.csv"]
out = ["/out/*.csv"]
at = 2030-01-31T09:00:00+01:00

[require]
zone = "a"

[env]
LEVEL = 3
NAME = "x=y"

[schedule]
cron = "30 2 * * *"
zone = "Europe/Berlin"
"#;

    const YAML: &str = r#"
image: tool:1
command: [sh, -c, "echo $SWARM_TASK_INDEX"]
name: sweep
array: 0-99
cpus: 0.5
memory: 512MiB
tmpfs:
  - /tmp:64MiB
read_only: true
retries: 1
timeout: 10m
entrypoint: [sh]
input: ["data.csv:/in/data.csv"]
out: ["/out/*.csv"]
at: 2030-01-31T09:00:00+01:00
require: { zone: a }
env:
  - LEVEL=3
  - NAME=x=y
schedule:
  cron: 30 2 * * *
  zone: Europe/Berlin
"#;

    #[test]
    fn the_three_syntaxes_say_the_same_and_read_what_they_write() {
        let job: JobFile = TOML.parse().unwrap();
        assert_eq!(YAML.parse(), Ok(job.clone()));
        for format in [Format::Toml, Format::Yaml, Format::Json] {
            let text = write(&job, format).unwrap();
            assert_eq!(read(&text, format), Ok(job.clone()), "{text}");
            assert_eq!(text.parse(), Ok(job.clone()), "{format} is recognised: {text}");
        }
        insta::assert_snapshot!(write(&job, Format::Json).unwrap());
    }

    #[test]
    fn a_syntax_is_known_by_the_file_s_name_or_its_first_line() {
        let of = |name: &str| Format::of_path(Path::new(name));
        assert_eq!(
            [of("a.toml"), of("b.YML"), of("c.json"), of("job")],
            [Some(Format::Toml), Some(Format::Yaml), Some(Format::Json), None]
        );
        assert_eq!(Format::of_text("# c\n\nimage = 'a:1'"), Format::Toml);
        assert_eq!(Format::of_text("[env]\nA = 1"), Format::Toml);
        assert_eq!(Format::of_text("image: 'a=1'"), Format::Yaml);
        assert_eq!(Format::of_text(" {\"image\": \"a\"}"), Format::Json);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let told = |text: &str| text.parse::<JobFile>().unwrap_err().to_string();
        let all = [
            r#"{"image": "a", "privileged": true}"#,
            "image = 'a'\nmemory = 'much'",
            "image: a\ntimeout: soon",
            "image = 'a'\ntimeout = 3\n",
            "image = 'a'\ncommand = 'echo hello'",
            "image: a\narray: 9-1",
            "image: a\nschedule: {zone: UTC}",
            "image = 'a",
            "image: [a",
            "image: a\nenv: 3",
            "image: a\nin: 300000years",
            "image: a\nin: 10m\nat: 2030-01-31T08:00:00Z",
        ];
        insta::assert_snapshot!(all.map(told).join("\n"));
    }

    #[test]
    fn the_schema_describes_every_key_as_the_command_line_does() {
        let schema = schema();
        let properties = schema["properties"].as_object().unwrap();
        let job = serde_json::to_value(TOML.parse::<JobFile>().unwrap()).unwrap();
        for key in job.as_object().unwrap().keys() {
            assert!(properties.contains_key(key), "{key}");
        }
        for (key, property) in properties {
            assert!(property["description"].is_string(), "{key}: {property}");
        }
        assert_eq!(schema["additionalProperties"], false);
    }
}
