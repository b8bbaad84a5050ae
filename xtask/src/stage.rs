//! The stages, what they need, and how long they may take.

use std::time::Duration;

use clap::ValueEnum;

/// How much is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tier {
    /// Every scenario at least once, within 40 minutes on 2 cores.
    Quick,
    /// The counts that issues state.
    Full,
}

impl Tier {
    /// The value of `SWARM_TEST_TIER`.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Quick => "quick",
            Self::Full => "full",
        }
    }
}

/// How programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Cargo's own.
    Debug,
    /// Of the workspace's `Cargo.toml`.
    Checked,
}

impl Profile {
    /// Flags of cargo.
    pub(crate) const fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Debug => &[],
            Self::Checked => &["--profile", "checked"],
        }
    }

    /// Where cargo puts programs, below the target directory.
    pub(crate) const fn dir(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Checked => "checked",
        }
    }
}

/// One part of the run, in the order in which parts are run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Stage {
    /// Start a private Postgres, find or start a Docker engine, and find a Redis
    Services,
    /// Formatting
    Fmt,
    /// Licences, sources and banned crates
    Deny,
    /// Lints, with warnings denied
    Clippy,
    /// Documentation, with warnings denied
    Doc,
    /// Programs and tests: debug profile, and for the long stages of the full tier the profile `checked`
    Build,
    /// Tests beside the code
    Unit,
    /// Simulated swarms: real modules, simulated network, clocks and faults
    Simulation,
    /// Whole swarms: real binaries, real Docker
    Swarm,
    /// `swarm demo`
    Demo,
}

impl Stage {
    /// All of them, in order.
    pub(crate) const ALL: [Self; 10] = [
        Self::Services,
        Self::Fmt,
        Self::Deny,
        Self::Clippy,
        Self::Doc,
        Self::Build,
        Self::Unit,
        Self::Simulation,
        Self::Swarm,
        Self::Demo,
    ];

    /// The word on the command line and in the table.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Services => "services",
            Self::Fmt => "fmt",
            Self::Deny => "deny",
            Self::Clippy => "clippy",
            Self::Doc => "doc",
            Self::Build => "build",
            Self::Unit => "unit",
            Self::Simulation => "simulation",
            Self::Swarm => "swarm",
            Self::Demo => "demo",
        }
    }

    /// The minutes a stage may take. Minutes that earlier stages left unused are added, so the sum is the bound.
    pub(crate) fn budget(self, tier: Tier) -> Duration {
        let minutes = match (self, tier) {
            (Self::Swarm, Tier::Full) => 600,
            (Self::Simulation, Tier::Full) => 240,
            (Self::Unit, Tier::Full) => 60,
            (Self::Deny, Tier::Full) => 20,
            (Self::Build, Tier::Full) => 30,
            (Self::Fmt | Self::Deny, _) => 1,
            (Self::Demo | Self::Doc, _) => 2,
            (Self::Services | Self::Simulation, _) => 3,
            (Self::Unit, _) => 4,
            (Self::Clippy, _) => 5,
            (Self::Build, _) => 8,
            (Self::Swarm, _) => 11,
        };
        Duration::from_secs(minutes * 60)
    }

    /// Whether a part of it can be run alone.
    pub(crate) const fn has_parts(self) -> bool {
        matches!(self, Self::Unit | Self::Simulation | Self::Swarm)
    }

    /// The cargo profile of what it runs. What runs for hours is optimised, with all assertions in.
    pub(crate) const fn profile(self, tier: Tier) -> Profile {
        match (self, tier) {
            (Self::Simulation | Self::Swarm, Tier::Full) => Profile::Checked,
            _ => Profile::Debug,
        }
    }

    /// Stages without which this one cannot run.
    pub(crate) const fn needs(self) -> &'static [Self] {
        match self {
            Self::Unit | Self::Swarm | Self::Demo => &[Self::Services, Self::Build],
            Self::Simulation => &[Self::Build],
            _ => &[],
        }
    }

    /// What to run when `only` is asked for, in order: these and what they need; everything when nothing is named.
    pub(crate) fn closure(only: &[Self]) -> Vec<Self> {
        let wanted = |stage: &Self| {
            only.is_empty() || only.contains(stage) || only.iter().any(|asked| asked.needs().contains(stage))
        };
        Self::ALL.into_iter().filter(wanted).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_tier_fits_into_forty_minutes() {
        let sum: Duration = Stage::ALL.iter().map(|stage| stage.budget(Tier::Quick)).sum();
        assert!(sum <= Duration::from_secs(40 * 60), "{sum:?}");
    }

    #[test]
    fn stages_bring_what_they_need_and_in_order() {
        assert_eq!(Stage::closure(&[Stage::Fmt]), [Stage::Fmt]);
        assert_eq!(
            Stage::closure(&[Stage::Demo, Stage::Fmt]),
            [Stage::Services, Stage::Fmt, Stage::Build, Stage::Demo]
        );
        assert_eq!(Stage::closure(&[]), Stage::ALL);
    }

    #[test]
    fn needs_come_first_and_need_nothing_themselves() {
        for stage in Stage::ALL {
            for need in stage.needs() {
                assert!(*need < stage && need.needs().is_empty(), "{need:?} for {stage:?}");
            }
        }
    }
}
