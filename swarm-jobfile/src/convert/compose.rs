//! A service of a compose file (Compose Specification, <https://compose-spec.io>).

use serde_json::{Map, Value};

use super::docker_values::{cores, name, open_files, restarts, size, tmpfs, volume};
use super::{ConvertError, Converted};
use crate::model::JobFile;
use crate::values::{Program, Variable};

/// Keys of which nothing of a job depends.
const HARMLESS: [&str; 10] = [
    "container_name",
    "labels",
    "init",
    "tty",
    "stdin_open",
    "logging",
    "pull_policy",
    "profiles",
    "annotations",
    "attach",
];

/// Takes over one service of a compose file; `service` may be missing where there is only one.
///
/// # Errors
/// When it is no compose file, there is no such service, or it builds its image.
pub fn compose(text: &str, service: Option<&str>) -> Result<Converted, ConvertError> {
    let hint = "give a compose file with the table `services`";
    let file = crate::read::yaml(text).map_err(|problem| ConvertError::new(problem, hint))?;
    let services = file.get("services").and_then(Value::as_object);
    let services = services.ok_or_else(|| ConvertError::new("it has no `services`", hint))?;
    let names = services.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let (key, found) = match service {
        Some(word) => services.get_key_value(word),
        None if services.len() == 1 => services.iter().next(),
        None => None,
    }
    .ok_or_else(|| {
        let problem =
            service.map_or("it has several services".to_owned(), |word| format!("it has no service `{word}`"));
        ConvertError::new(problem, format!("name one of {names}"))
    })?;
    let fields = found.as_object().ok_or_else(|| ConvertError::new(format!("the service {key} is no table"), hint))?;
    if !fields.contains_key("image") {
        let hint = "build and push it first (`docker compose build`, `image push`), then name it as `image`";
        return Err(ConvertError::new(format!("the service {key} names no image"), hint));
    }
    Ok(Service { notes: Vec::new(), job: JobFile::default() }.take(key, fields))
}

struct Service {
    job: JobFile,
    notes: Vec<String>,
}

impl Service {
    fn take(mut self, key: &str, fields: &Map<String, Value>) -> Converted {
        self.job.name = name(key, &mut self.notes);
        for (key, value) in fields {
            if self.field(key, value).is_none() {
                self.notes.push(format!("`{key}` is left out: it cannot be read"));
            }
        }
        Converted { job: self.job, notes: self.notes }
    }

    /// `None` for a value of another kind than the specification has there.
    fn field(&mut self, key: &str, value: &Value) -> Option<()> {
        let (job, notes) = (&mut self.job, &mut self.notes);
        match key {
            "image" => job.image = Some(text(value)?),
            "command" => job.command = words(value)?,
            "entrypoint" => job.entrypoint = Some(Program(words(value)?)),
            "user" => job.user = Some(text(value)?),
            "working_dir" => job.workdir = Some(text(value)?),
            "environment" => job.env = variables(value)?,
            "env_file" => job.env_file = list(value)?.into_iter().map(Into::into).collect(),
            "mem_limit" => job.memory = Some(size(&text(value)?)?),
            "cpus" => job.cpus = Some(cores(&text(value)?)?),
            "pids_limit" => job.pids_limit = u32::try_from(value.as_i64()?).ok().filter(|limit| *limit > 0),
            "read_only" => job.read_only = value.as_bool()?,
            "tmpfs" => job.tmpfs = list(value)?.iter().map(|text| tmpfs(text, notes)).collect(),
            "volumes" => self.volumes(value.as_array()?),
            "restart" => job.retries = restarts(&text(value)?, notes),
            "ulimits" => self.ulimits(value.as_object()?),
            "deploy" => self.deploy(value.as_object()?)?,
            "network_mode" if value == "none" => {}
            harmless if HARMLESS.contains(&harmless) => {}
            "ports" | "expose" => notes.push(format!("`{key}` is left out: a job serves nothing")),
            "network_mode" | "networks" => notes.push(format!("`{key}` is left out: a job has no network")),
            "depends_on" => notes.push("`depends_on` is left out: submit the jobs one after the other".to_owned()),
            "privileged" | "cap_add" | "devices" => {
                notes.push(format!("`{key}` is left out: no job has rights on its machine"));
            }
            other => notes.push(format!("`{other}` is left out: a job has no word for it")),
        }
        Some(())
    }

    fn volumes(&mut self, volumes: &[Value]) {
        for one in volumes {
            let short = one.as_str().map(str::to_owned).or_else(|| {
                let part = |key| one.get(key).and_then(Value::as_str);
                let options = if one.get("read_only") == Some(&Value::Bool(true)) { ":ro" } else { "" };
                Some(format!("{}:{}{options}", part("source").unwrap_or("a nameless one"), part("target")?))
            });
            match short {
                Some(short) => self.job.input.extend(volume(&short, &mut self.notes)),
                None => self.notes.push("a volume without `target` is left out".to_owned()),
            }
        }
    }

    fn ulimits(&mut self, ulimits: &Map<String, Value>) {
        for (key, value) in ulimits {
            let soft = value.get("soft").unwrap_or(value);
            self.job.open_files = open_files(&format!("{key}={soft}"), &mut self.notes).or(self.job.open_files);
        }
    }

    fn deploy(&mut self, deploy: &Map<String, Value>) -> Option<()> {
        for (key, value) in deploy {
            let limits = value.get("limits").and_then(Value::as_object).filter(|_| key == "resources");
            for (key, value) in limits.into_iter().flatten() {
                match key.as_str() {
                    "cpus" => self.job.cpus = Some(cores(&text(value)?)?),
                    "memory" => self.job.memory = Some(size(&text(value)?)?),
                    "pids" => self.job.pids_limit = Some(u32::try_from(value.as_u64()?).ok()?),
                    other => self.notes.push(format!("`deploy.resources.limits.{other}` is left out")),
                }
            }
            if limits.is_none() {
                self.notes.push(format!("`deploy.{key}` is left out: a job has no word for it"));
            }
        }
        Some(())
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

/// One text or several; those of `env_file` may be tables with a `path`.
fn list(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(values) => values.iter().map(|one| text(one.get("path").unwrap_or(one))).collect(),
        one => Some(vec![text(one)?]),
    }
}

/// A list of words, or a line to be split as a shell would.
fn words(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(line) => shlex::split(line),
        _ => list(value),
    }
}

fn variables(value: &Value) -> Option<Vec<Variable>> {
    match value {
        Value::Object(table) => {
            Some(table.iter().map(|(name, value)| Variable { name: name.clone(), value: text(value) }).collect())
        }
        Value::Array(values) => values.iter().map(|one| one.as_str()?.parse().ok()).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, write};

    const FILE: &str = r#"
services:
  _report:
    image: tool:1
    command: sh -c "make report"
    entrypoint: [nice]
    environment: { LEVEL: 3, DEBUG: true, HOME: }
    env_file: [{ path: vars, required: false }]
    user: "1000"
    working_dir: /src
    volumes:
      - ./src:/src
      - { type: bind, source: /data, target: /data, read_only: true }
      - cache:/cache
    deploy:
      replicas: 2
      resources: { limits: { cpus: "0.5", memory: 512M, pids: 50 } }
    ulimits: { nofile: { soft: 2048, hard: 4096 }, nproc: 3 }
    tmpfs: /tmp:size=16m
    restart: on-failure
    ports: ["80:80"]
    depends_on: [db]
    healthcheck: { test: x }
    read_only: perhaps
  db:
    image: postgres:17
  app:
    build: .
"#;

    #[test]
    fn a_service_becomes_a_job_and_what_it_lacks_is_named() {
        let Converted { job, notes } = compose(FILE, Some("_report")).unwrap();
        insta::assert_snapshot!(format!("{}\n{}", notes.join("\n"), write(&job, Format::Yaml).unwrap()));
        let db = compose(FILE, Some("db")).unwrap();
        assert_eq!((db.job.image.as_deref(), db.notes), (Some("postgres:17"), Vec::new()));
    }

    #[test]
    fn what_is_no_service_is_refused_with_what_there_is() {
        let told = |text: &str, service| {
            let error = compose(text, service).unwrap_err();
            format!("{}: {}", error.problem, error.hint)
        };
        assert_eq!(told(FILE, None), "it has several services: name one of _report, app, db");
        assert!(told(FILE, Some("web")).starts_with("it has no service `web`: name one of"));
        assert!(told(FILE, Some("app")).contains("docker compose build"));
        assert!(told("image: a", None).contains("`services`"));
        assert!(!told("services: [", None).is_empty());
    }
}
