//! Licences, sources and banned crates of everything in `Cargo.lock` that is built here.
//!
//! `cargo deny` does this more thoroughly and is used when it is installed. The check here always runs, needs no
//! database from the network, and reads the same `deny.toml`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// What `deny.toml` says.
#[derive(Debug)]
pub(crate) struct Rules {
    licences: BTreeSet<String>,
    banned: BTreeSet<String>,
    sources: BTreeSet<String>,
}

impl Rules {
    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Self::parse(&text).with_context(|| path.display().to_string())
    }

    fn parse(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse().context("not TOML")?;
        let entries = |section: &str, key: &str| {
            let list = table.get(section).and_then(|section| section.get(key)).and_then(toml::Value::as_array);
            list.with_context(|| format!("`{section}.{key}` is missing or no list"))
        };
        let words = |list: &[toml::Value]| list.iter().filter_map(toml::Value::as_str).map(str::to_owned).collect();
        let crates = |list: &[toml::Value]| {
            list.iter().filter_map(|entry| entry.get("crate")?.as_str()).map(str::to_owned).collect()
        };
        Ok(Self {
            licences: words(entries("licenses", "allow")?),
            banned: crates(entries("bans", "deny")?),
            sources: words(entries("sources", "allow-registry")?),
        })
    }

    /// Judges the answer of `cargo metadata`; gives one line for each fault.
    pub(crate) fn judge(&self, metadata: &str) -> Result<Vec<String>> {
        let metadata: Value = serde_json::from_str(metadata).context("reading what cargo metadata printed")?;
        let built: BTreeSet<&str> = metadata["resolve"]["nodes"]
            .as_array()
            .context("cargo metadata gave no resolve.nodes")?
            .iter()
            .filter_map(|node| node["id"].as_str())
            .collect();
        let packages = metadata["packages"].as_array().context("cargo metadata gave no packages")?;
        let is_built = |package: &&Value| package["id"].as_str().is_some_and(|id| built.contains(id));
        Ok(packages.iter().filter(is_built).flat_map(|package| self.faults(package)).collect())
    }

    fn faults(&self, package: &Value) -> Vec<String> {
        let text = |key: &str| package[key].as_str();
        let name = text("name").unwrap_or("?");
        let title = format!("{name} {}", text("version").unwrap_or("?"));
        let mut faults = Vec::new();
        if self.banned.contains(name) {
            faults.push(format!("{title}: banned by deny.toml"));
        }
        match text("license") {
            None => faults.push(format!("{title}: no licence expression")),
            Some(licence) if !self.allows(licence) => {
                faults.push(format!("{title}: licence `{licence}` is not allowed"));
            }
            Some(_) => {}
        }
        // Without a source it is a member of this workspace.
        if let Some(source) = text("source")
            && !self.sources.contains(source.strip_prefix("registry+").unwrap_or(source))
        {
            faults.push(format!("{title}: comes from {source}"));
        }
        faults
    }

    /// Whether an SPDX expression can be met with the allowed licences. The old `/` means OR; AND binds closer.
    fn allows(&self, expression: &str) -> bool {
        let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let mut words = spaced.split_whitespace().peekable();
        let verdict = self.any_of(&mut words);
        verdict && words.next().is_none()
    }

    fn any_of<'a>(&self, words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> bool {
        let mut verdict = self.all_of(words);
        while words.next_if_eq(&"OR").is_some() {
            verdict |= self.all_of(words);
        }
        verdict
    }

    fn all_of<'a>(&self, words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> bool {
        let mut verdict = self.one(words);
        while words.next_if_eq(&"AND").is_some() {
            verdict &= self.one(words);
        }
        verdict
    }

    fn one<'a>(&self, words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> bool {
        match words.next() {
            Some("(") => {
                let verdict = self.any_of(words);
                words.next_if_eq(&")").is_some() && verdict
            }
            Some(licence) if words.next_if_eq(&"WITH").is_some() => {
                let exception = words.next().unwrap_or_default();
                self.licences.contains(&format!("{licence} WITH {exception}"))
            }
            Some(licence) => self.licences.contains(licence),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = r#"
        [licenses]
        allow = ["MIT", "Apache-2.0", "Unicode-3.0", "Apache-2.0 WITH LLVM-exception"]
        [bans]
        deny = [{ crate = "openssl", reason = "one provider" }]
        [sources]
        allow-registry = ["https://github.com/rust-lang/crates.io-index"]
    "#;

    #[test]
    fn expressions_mean_what_spdx_says() {
        let rules = Rules::parse(RULES).unwrap();
        for good in [
            "MIT",
            "MIT/Apache-2.0",
            "GPL-3.0 OR MIT",
            "(GPL-3.0 OR MIT) AND Unicode-3.0",
            "GPL-3.0 AND ISC OR MIT",
            "Apache-2.0 WITH LLVM-exception",
        ] {
            assert!(rules.allows(good), "{good}");
        }
        for bad in ["GPL-3.0", "MIT AND GPL-3.0", "MIT WITH x", "(MIT", "MIT)", "", "MIT MIT", "OR MIT"] {
            assert!(!rules.allows(bad), "{bad}");
        }
    }

    #[test]
    fn faults_are_named_and_unbuilt_crates_are_not_judged() {
        let package = |id: &str, licence: &str, source: &str| serde_json::json!({"id": id, "name": id, "version": "1.0.0", "license": licence, "source": source});
        let home = "registry+https://github.com/rust-lang/crates.io-index";
        let metadata = serde_json::json!({
            "packages": [
                package("good", "MIT", home),
                package("openssl", "MIT", home),
                package("viral", "GPL-3.0", home),
                package("fork", "MIT", "git+https://example.com/fork"),
                package("elsewhere", "GPL-3.0", home),
            ],
            "resolve": {"nodes": [{"id": "good"}, {"id": "openssl"}, {"id": "viral"}, {"id": "fork"}]},
        });
        let faults = Rules::parse(RULES).unwrap().judge(&metadata.to_string()).unwrap();
        assert_eq!(
            faults,
            [
                "openssl 1.0.0: banned by deny.toml",
                "viral 1.0.0: licence `GPL-3.0` is not allowed",
                "fork 1.0.0: comes from git+https://example.com/fork",
            ]
        );
    }

    #[test]
    fn a_missing_list_is_an_error() {
        let error = Rules::parse("[licenses]\nallow = []\n[bans]\n").unwrap_err();
        assert!(error.to_string().contains("bans.deny"), "{error}");
    }
}
