//! Which parts of a run are asked for: `STAGE`, or `STAGE=FILTER` for a part of one.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, Command, Error, ValueEnum};

use crate::stage::Stage;

/// One `--only`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Only {
    pub(crate) stage: Stage,
    /// A part of the names of tests, or a range of seeds; everything without one.
    pub(crate) filter: Option<String>,
}

/// What of `stage` is asked for: nothing stands for all of it.
pub(crate) fn filters(only: &[Only], stage: Stage) -> Vec<&str> {
    let filters: Option<Vec<&str>> =
        only.iter().filter(|only| only.stage == stage).map(|only| only.filter.as_deref()).collect();
    filters.unwrap_or_default()
}

/// Reads the word on the command line, and lists the stages in the help.
#[derive(Debug, Clone)]
pub(crate) struct OnlyParser;

impl TypedValueParser for OnlyParser {
    type Value = Only;

    fn parse_ref(&self, _: &Command, _: Option<&Arg>, value: &OsStr) -> Result<Only, Error> {
        value.to_str().ok_or_else(|| "not text".to_owned()).and_then(parse).map_err(|problem| {
            let value = value.to_string_lossy();
            Error::raw(ErrorKind::InvalidValue, format!("invalid value '{value}' for --only: {problem}\n"))
        })
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(Stage::ALL.iter().filter_map(Stage::to_possible_value)))
    }
}

fn parse(text: &str) -> Result<Only, String> {
    let (word, filter) = match text.split_once('=') {
        Some((word, filter)) => (word, Some(filter)),
        None => (text, None),
    };
    let Some(stage) = Stage::ALL.into_iter().find(|stage| stage.as_str() == word) else {
        let stages: Vec<&str> = Stage::ALL.into_iter().map(Stage::as_str).collect();
        return Err(format!("there is no stage {word}; name one of {}", stages.join(", ")));
    };
    match filter {
        Some("") => Err(format!("the filter is empty; leave the = away to run all of {word}")),
        Some(seeds) if stage == Stage::Simulation && !is_range(seeds) => {
            Err(format!("{seeds} is no range of seeds; write for instance 0..500"))
        }
        Some(_) if !stage.has_parts() => Err(format!("{word} is run whole; unit, simulation and swarm have parts")),
        filter => Ok(Only { stage, filter: filter.map(str::to_owned) }),
    }
}

/// Whether this is FIRST..LAST with something in between.
fn is_range(text: &str) -> bool {
    let number = |word: &str| word.parse::<u64>().ok();
    text.split_once("..").and_then(|(first, last)| number(first).zip(number(last))).is_some_and(|(f, l)| f < l)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_may_have_a_filter() {
        let only = |stage, filter: Option<&str>| Ok(Only { stage, filter: filter.map(str::to_owned) });
        assert_eq!(parse("swarm"), only(Stage::Swarm, None));
        assert_eq!(parse("swarm=faults::cycles"), only(Stage::Swarm, Some("faults::cycles")));
        assert_eq!(parse("simulation=7..9"), only(Stage::Simulation, Some("7..9")));
        let problem = |text| parse(text).unwrap_err();
        assert!(problem("swarn").contains("no stage swarn; name one of services, fmt,"));
        assert!(problem("swarm=").contains("leave the = away"));
        assert!(problem("fmt=xtask").contains("fmt is run whole"));
        for none in ["7", "9..7", "7..7", "a..b"] {
            let text = format!("simulation={none}");
            assert!(parse(&text).unwrap_err().contains("0..500"), "{none}");
        }
    }

    #[test]
    fn a_stage_that_is_named_without_a_filter_is_run_whole() {
        let only = ["swarm=a", "unit=b", "swarm=c", "unit"].map(|text| parse(text).unwrap());
        assert_eq!(filters(&only, Stage::Swarm), ["a", "c"]);
        assert!(filters(&only, Stage::Unit).is_empty() && filters(&only, Stage::Demo).is_empty());
    }
}
