//! From a job file to the spec that the core takes.

use std::collections::BTreeMap;
use std::path::Path;

use chrono::{DateTime, SubsecRound as _, Utc};
use swarm_protocol::spec::{JobSpec, Limits, Output};

use crate::model::JobFile;
use crate::values::Variable;

/// Each of these as `over` has it, else as `base` does.
macro_rules! either {
    ($base:ident, $over:ident: $($key:ident),+) => {
        $($base.$key = $over.$key.or($base.$key);)+
    };
}

/// What both have, `over` last.
macro_rules! both {
    ($base:ident, $over:ident: $($key:ident),+) => {
        $($base.$key.extend($over.$key);)+
    };
}

impl JobFile {
    /// This job, but for what `over` says. Lists become longer; a command and a start time are replaced.
    #[must_use]
    pub fn overlaid(self, over: Self) -> Self {
        let mut base = self;
        if over.at.is_some() || over.delay.is_some() {
            (base.at, base.delay) = (None, None);
        }
        if !over.command.is_empty() {
            base.command = over.command;
        }
        either!(base, over: image, name, array, cpus, memory, pids_limit, open_files, disk, max_log, retries, retries_lost);
        either!(base, over: timeout, lease, priority, user, workdir, entrypoint, delay, at, schedule);
        both!(base, over: require, tmpfs, env, env_file, input, out);
        base.read_only |= over.read_only;
        base.at_most_once |= over.at_most_once;
        base.eager |= over.eager;
        base
    }

    /// Files that it names are meant from `dir` on, where the job file lies.
    #[must_use]
    pub fn from_dir(mut self, dir: &Path) -> Self {
        let from_dir = |name: &str| dir.join(name).to_string_lossy().into_owned();
        self.input.iter_mut().for_each(|input| *input = from_dir(input));
        self.env_file.iter_mut().for_each(|file| *file = dir.join(&*file));
        self
    }

    /// The spec without inputs, whose digests are known only once they are uploaded. Nothing is checked. `ours` tells the
    /// variables of whoever submits.
    ///
    /// # Errors
    /// The name of a variable that is to be passed on and does not exist.
    pub fn spec(&self, now: DateTime<Utc>, ours: &dyn Fn(&str) -> Option<String>) -> Result<JobSpec, String> {
        let mut spec = JobSpec::new(self.image.clone().unwrap_or_default());
        spec.command = Some(self.command.clone()).filter(|words| !words.is_empty());
        spec.entrypoint = self.entrypoint.clone().map(|program| program.0);
        (spec.name, spec.user, spec.workdir) = (self.name.clone(), self.user.clone(), self.workdir.clone());
        // The last one wins, before it is asked for what nobody needs.
        let last: BTreeMap<_, _> = self.env.iter().map(|Variable { name, value }| (name, value)).collect();
        for (name, value) in last {
            let value = value.clone().or_else(|| ours(name)).ok_or_else(|| name.clone())?;
            spec.env.insert(name.clone(), value);
        }
        spec.require = self.require.iter().cloned().collect();
        spec.array = self.array.map(|indices| indices.0);
        let (resources, retries) = (&mut spec.resources, &mut spec.retries);
        resources.cpu_millis = self.cpus.map_or(resources.cpu_millis, |cores| cores.0);
        resources.memory_bytes = self.memory.map_or(resources.memory_bytes, |size| size.0);
        retries.failed = self.retries.unwrap_or(retries.failed);
        retries.lost = self.retries_lost.unwrap_or(retries.lost);
        spec.limits = self.limits(&spec.limits);
        spec.outputs = self.out.iter().map(|path| Output { path: path.clone() }).collect();
        spec.timeout_s = self.timeout.map(crate::Span::whole_seconds);
        spec.lease_s = self.lease.map_or(spec.lease_s, crate::Span::whole_seconds);
        spec.priority = self.priority.unwrap_or(spec.priority);
        (spec.at_most_once, spec.eager) = (self.at_most_once, self.eager);
        let later = |span: crate::Span| now.checked_add_signed(chrono::Duration::from_std(span.0).ok()?);
        spec.start_at = self.at.or(self.delay.and_then(later)).map(|at| at.trunc_subsecs(6));
        Ok(spec)
    }

    fn limits(&self, usual: &Limits) -> Limits {
        Limits {
            pids: self.pids_limit.unwrap_or(usual.pids),
            open_files: self.open_files.unwrap_or(usual.open_files),
            disk_bytes: self.disk.map_or(usual.disk_bytes, |size| size.0),
            log_bytes: self.max_log.map(|size| size.0),
            tmpfs: self.tmpfs.iter().map(|mount| mount.0.clone()).collect(),
            read_only_root: self.read_only,
        }
    }
}

/// The key of a job file that sets a field of the spec.
#[must_use]
pub fn key_of(field: &str) -> Option<&'static str> {
    Some(match field.split(['[', ' ']).next().unwrap_or(field) {
        "resources.cpu_millis" => "cpus",
        "resources.memory_bytes" => "memory",
        "retries.failed" => "retries",
        "retries.lost" => "retries_lost",
        "limits.pids" => "pids_limit",
        "limits.open_files" => "open_files",
        "limits.disk_bytes" => "disk",
        "limits.log_bytes" => "max_log",
        "limits.tmpfs" => "tmpfs",
        "limits.read_only_root" => "read_only",
        "timeout_s" => "timeout",
        "lease_s" => "lease",
        "start_at" => "at",
        "outputs" => "out",
        "inputs" => "input",
        "array" => "array",
        "priority" => "priority",
        "name" => "name",
        "image" => "image",
        "command" => "command",
        "user" => "user",
        "workdir" => "workdir",
        "entrypoint" => "entrypoint",
        "eager" => "eager",
        "at_most_once" => "at_most_once",
        other if other == "require" || other.starts_with("require.") => "require",
        other if other == "env" || other.starts_with("env.") => "env",
        _ => return None,
    })
}

/// The flag that sets a field of the spec; none for what stands on the command line by itself.
#[must_use]
pub fn flag_of(field: &str) -> Option<String> {
    match key_of(field)? {
        "image" | "command" => None,
        "at" => Some("--at, --in".to_owned()),
        key => Some(format!("--{}", key.replace('_', "-"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, read};

    fn now() -> DateTime<Utc> {
        "2030-01-31T08:00:00Z".parse().unwrap()
    }

    fn job(text: &str) -> JobFile {
        read(text, Format::Yaml).unwrap()
    }

    #[test]
    fn an_image_alone_is_the_default_spec() {
        assert_eq!(job("image: a").spec(now(), &|_| None), Ok(JobSpec::new("a")));
    }

    #[test]
    fn what_lies_over_a_job_wins() {
        let base =
            job("{image: a, command: [x], at: '2040-01-01T00:00:00Z', priority: 3, env: {A: 1, B: 1}, out: [/o/1]}");
        let over = job("{command: [y, 5], in: 10m, env: {A: 2}, out: [/o/2], eager: true}");
        let spec = base.overlaid(over).spec(now(), &|_| None).unwrap();
        assert_eq!(spec.command, Some(vec!["y".to_owned(), "5".to_owned()]));
        assert_eq!(spec.start_at, Some(now() + chrono::Duration::minutes(10)));
        assert_eq!((spec.priority, spec.env["A"].as_str(), spec.env["B"].as_str(), spec.eager), (3, "2", "1", true));
        assert_eq!(spec.outputs.iter().map(|output| output.path.as_str()).collect::<Vec<_>>(), ["/o/1", "/o/2"]);
    }

    #[test]
    fn variables_are_passed_on_or_named() {
        let job = job("{image: a, env: [HOME, A=1=2]}");
        let spec = job.spec(now(), &|name| (name == "HOME").then(|| "/h".to_owned())).unwrap();
        assert_eq!((spec.env["HOME"].as_str(), spec.env["A"].as_str()), ("/h", "1=2"));
        assert_eq!(job.spec(now(), &|_| None), Err("HOME".to_owned()));
        let over = self::job("{env: [HOME=/x]}");
        assert_eq!(
            job.overlaid(over).spec(now(), &|_| None).unwrap().env["HOME"],
            "/x",
            "a value wins over passing on"
        );
    }

    #[test]
    fn files_are_meant_from_where_the_job_file_lies() {
        let job = job("{image: a, input: ['data:/in/data', /abs], env_file: [vars]}").from_dir(Path::new("/jobs"));
        assert_eq!(job.input, ["/jobs/data:/in/data", "/abs"]);
        assert_eq!(job.env_file, [Path::new("/jobs/vars")]);
    }

    #[test]
    fn every_field_of_a_spec_has_its_key_and_every_key_its_field() {
        let spec = serde_json::to_value(JobSpec::new("a")).unwrap();
        let mut fields: Vec<String> = ["resources", "limits", "retries"]
            .iter()
            .flat_map(|table| spec[table].as_object().unwrap().keys().map(move |key| format!("{table}.{key}")))
            .collect();
        fields.extend(
            ["image", "name", "command", "start_at", "inputs[0].path", "env.A", "require.zone"].map(str::to_owned),
        );
        for field in fields {
            let key = key_of(&field).unwrap_or_else(|| panic!("{field} has no key"));
            assert!(crate::schema()["properties"].get(key).is_some(), "{field}: {key}");
        }
        assert_eq!(flag_of("limits.tmpfs[0].path").as_deref(), Some("--tmpfs"));
        assert_eq!((flag_of("image"), flag_of("nothing")), (None, None));
    }
}
