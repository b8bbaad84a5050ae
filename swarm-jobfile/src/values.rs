//! Values as people write them, on the command line and in files alike.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use swarm_protocol::TaskRange;
use swarm_protocol::spec::Tmpfs;

/// What files may hold where the command line has a word.
#[derive(Deserialize)]
#[serde(untagged)]
enum Word {
    Whole(u64),
    Number(f64),
    Text(String),
}

impl fmt::Display for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(number) => number.fmt(f),
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// A value that files hold as the command line does: read by `FromStr`, written by `Display`.
macro_rules! as_text {
    ($type:ty, $expected:literal) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let word = Word::deserialize(deserializer)
                    .map_err(|_| serde::de::Error::custom(concat!("expected ", $expected)))?;
                word.to_string().parse().map_err(serde::de::Error::custom)
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

/// Cores, in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "f64")]
pub struct Cores(pub u32);

impl FromStr for Cores {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = || "write a number of cores, for instance 0.5 or 4".to_owned();
        let cores: f64 = text.parse().map_err(|_| hint())?;
        let millis = (cores * 1000.0).round();
        if (0.0..=f64::from(u32::MAX)).contains(&millis) { Ok(Self(millis as u32)) } else { Err(hint()) }
    }
}

impl<'de> Deserialize<'de> for Cores {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let word = Word::deserialize(deserializer)
            .map_err(|_| serde::de::Error::custom("expected a number of cores, for instance 0.5 or 4"))?;
        word.to_string().parse().map_err(serde::de::Error::custom)
    }
}

impl Serialize for Cores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.0.is_multiple_of(1000) {
            serializer.serialize_u32(self.0 / 1000)
        } else {
            serializer.serialize_f64(f64::from(self.0) / 1000.0)
        }
    }
}

/// A number of bytes, such as `512MiB`; a bare number is bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let size: ByteSize = text.parse().map_err(|_| format!("`{text}` is not a size such as 512MiB"))?;
        Ok(Self(size.0))
    }
}

impl fmt::Display for Size {
    /// Exact: the largest binary unit that divides it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(bits, _)| self.0 > 0 && self.0.trailing_zeros() >= *bits) {
            Some((bits, unit)) => write!(f, "{}{unit}", self.0 >> bits),
            None => write!(f, "{}B", self.0),
        }
    }
}
as_text!(Size, "a size such as 512MiB");

/// A length of time, such as `10m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct Span(pub Duration);

impl Span {
    /// Rounds up: a timeout of 500 ms must not become none.
    #[must_use]
    pub fn whole_seconds(self) -> u64 {
        self.0.as_secs() + u64::from(self.0.subsec_nanos() > 0)
    }
}

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map(Self).map_err(|error| format!("{error}; write it as 90s, 10m or 1h 30m"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}
as_text!(Span, "a length of time in quotes, such as \"10m\"");

/// Indices of an array's tasks, first and last, such as `0-99`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct Indices(pub TaskRange);

impl FromStr for Indices {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint = || "write FIRST-LAST, for instance 0-99".to_owned();
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |word: &str| word.parse::<u32>().map_err(|_| hint());
        TaskRange::new(number(first)?, number(last)?).map(Self).ok_or_else(hint)
    }
}

impl fmt::Display for Indices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.0.first, self.0.last)
    }
}
as_text!(Indices, "FIRST-LAST in quotes, such as \"0-99\"");

/// A scratch directory in memory, such as `/tmp:64MiB`.
#[derive(Debug, Clone, PartialEq, Eq, JsonSchema)]
#[schemars(with = "String")]
pub struct Mount(pub Tmpfs);

impl FromStr for Mount {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (path, size) = text.rsplit_once(':').ok_or("write PATH:SIZE, for instance /tmp:64MiB")?;
        let Size(bytes) = size.parse()?;
        Ok(Self(Tmpfs { path: path.to_owned(), bytes }))
    }
}

impl fmt::Display for Mount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0.path, Size(self.0.bytes))
    }
}
as_text!(Mount, "PATH:SIZE, such as \"/tmp:64MiB\"");

/// A variable and its value; without one it is that of whoever submits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// What it is called.
    pub name: String,
    /// What it is set to.
    pub value: Option<String>,
}

impl FromStr for Variable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value.to_owned())));
        Ok(Self { name: name.to_owned(), value })
    }
}

/// A program and what always follows it; on the command line the program alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(pub Vec<String>);

impl FromStr for Program {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(vec![text.to_owned()]))
    }
}

/// Words of a command line, which nothing splits: a list, in files too.
pub(crate) mod words {
    use super::{Deserialize, Deserializer, Word};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
        let words = Vec::<Word>::deserialize(deserializer).map_err(|_| {
            serde::de::Error::custom("expected a list of words, such as [\"sh\", \"-c\", \"echo hello\"]")
        })?;
        Ok(words.iter().map(Word::to_string).collect())
    }
}

/// A program, or a list that begins with it.
pub(crate) mod program {
    use super::{Deserialize, Deserializer, Program, Serialize, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Shape {
        One(String),
        Many(Vec<String>),
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Program>, D::Error> {
        match Shape::deserialize(deserializer) {
            Ok(Shape::One(program)) => Ok(Some(Program(vec![program]))),
            Ok(Shape::Many(words)) => Ok(Some(Program(words))),
            Err(_) => Err(serde::de::Error::custom("expected a program, or a list that begins with it")),
        }
    }

    pub(crate) fn serialize<S: Serializer>(program: &Option<Program>, serializer: S) -> Result<S::Ok, S::Error> {
        match program.as_ref().map(|Program(words)| words.as_slice()) {
            Some([one]) => one.serialize(serializer),
            words => words.serialize(serializer),
        }
    }
}

/// An instant, RFC 3339; TOML has a type of its own for them.
pub(crate) mod instant {
    use chrono::{DateTime, Utc};

    use super::{Deserialize, Deserializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Shape {
        Text(String),
        Toml(toml::value::Datetime),
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<DateTime<Utc>>, D::Error> {
        let text = match Shape::deserialize(deserializer) {
            Ok(Shape::Text(text)) => text,
            Ok(Shape::Toml(at)) => at.to_string(),
            Err(_) => return Err(serde::de::Error::custom("expected an instant such as 2030-01-31T08:00:00Z")),
        };
        parse(&text).map(Some).map_err(serde::de::Error::custom)
    }

    pub(crate) fn parse(text: &str) -> Result<DateTime<Utc>, String> {
        let parsed = DateTime::parse_from_rfc3339(text).map(|at| at.to_utc());
        parsed.map_err(|error| format!("{error}; write it as 2030-01-31T08:00:00Z or 2030-01-31T09:00:00+01:00"))
    }
}

/// Variables: a table in files, or a list of `K=V` and `K`.
pub(crate) mod variables {
    use std::collections::BTreeMap;

    use serde::ser::SerializeMap as _;

    use super::{Deserialize, Deserializer, Serializer, Variable};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Nothing(()),
        Flag(bool),
        Whole(i64),
        Number(f64),
        Text(String),
    }

    impl Value {
        fn text(self) -> Option<String> {
            match self {
                Self::Nothing(()) => None,
                Self::Flag(flag) => Some(flag.to_string()),
                Self::Whole(number) => Some(number.to_string()),
                Self::Number(number) => Some(number.to_string()),
                Self::Text(text) => Some(text),
            }
        }
    }

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Shape {
        Table(BTreeMap<String, Value>),
        List(Vec<String>),
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Variable>, D::Error> {
        match Shape::deserialize(deserializer) {
            Ok(Shape::Table(table)) => {
                Ok(table.into_iter().map(|(name, value)| Variable { name, value: value.text() }).collect())
            }
            Ok(Shape::List(list)) => list.iter().map(|text| text.parse().map_err(serde::de::Error::custom)).collect(),
            Err(_) => Err(serde::de::Error::custom("expected a table of names and values, or a list of \"K=V\"")),
        }
    }

    /// A table, unless a variable has no value: TOML knows no null.
    pub(crate) fn serialize<S: Serializer>(variables: &[Variable], serializer: S) -> Result<S::Ok, S::Error> {
        // The last of a name wins, and no table may hold one twice.
        let last: BTreeMap<_, _> = variables.iter().map(|Variable { name, value }| (name, value)).collect();
        if last.values().all(|value| value.is_some()) {
            let mut table = serializer.serialize_map(Some(last.len()))?;
            for (name, value) in last {
                table.serialize_entry(name, value)?;
            }
            return table.end();
        }
        serializer.collect_seq(last.into_iter().map(|(name, value)| match value {
            Some(value) => format!("{name}={value}"),
            None => name.clone(),
        }))
    }
}

/// Labels: a table in files.
pub(crate) mod labels {
    use std::collections::BTreeMap;

    use super::{Deserialize, Deserializer, Serializer};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
        let table = BTreeMap::<String, String>::deserialize(deserializer)?;
        Ok(table.into_iter().collect())
    }

    pub(crate) fn serialize<S: Serializer>(pairs: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(pairs.iter().map(|(key, value)| (key, value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_read_what_they_write() {
        for text in ["1GiB", "1536MiB", "3B", "0B", "4TiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert_eq!("512".parse(), Ok(Size(512)));
        for text in ["0-99", "7-7"] {
            assert_eq!(text.parse::<Indices>().unwrap().to_string(), text);
        }
        assert_eq!("7".parse::<Indices>().unwrap().to_string(), "7-7");
        assert_eq!("/tmp:64MiB".parse::<Mount>().unwrap().to_string(), "/tmp:64MiB");
        assert_eq!("90m".parse::<Span>().unwrap().to_string(), "1h 30m");
        assert_eq!("1500ms".parse::<Span>().unwrap().whole_seconds(), 2);
        assert_eq!(["0.5", "4"].map(|text| text.parse::<Cores>().unwrap().0), [500, 4000]);
    }

    #[test]
    fn what_is_no_value_is_told_with_an_example() {
        for text in ["/tmp", "/tmp:", "/tmp:much"] {
            text.parse::<Mount>().unwrap_err();
        }
        assert!("9-1".parse::<Indices>().unwrap_err().contains("0-99"));
        assert!("many".parse::<Cores>().unwrap_err().contains("0.5"));
        assert!("-1".parse::<Cores>().is_err() && "1e99".parse::<Cores>().is_err());
        assert!("soon".parse::<Span>().unwrap_err().contains("10m"));
        assert!("much".parse::<Size>().unwrap_err().contains("512MiB"));
        assert!(instant::parse("tomorrow").unwrap_err().contains("2030-01-31T08:00:00Z"));
    }
}
