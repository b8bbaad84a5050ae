//! Faults put into chosen calls, and the record of all calls.

use std::collections::HashMap;
use std::time::Duration;

use crate::runtime::RuntimeError;

/// A kind of call, one for each method of the trait.
#[expect(missing_docs, reason = "each is named after the method it stands for")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Call {
    Facts,
    Ping,
    ImageExists,
    KnownLayers,
    LoadImage,
    TagImage,
    RemoveImage,
    OurImages,
    DiskFree,
    Create,
    PutArchive,
    GetArchive,
    Start,
    Logs,
    Wait,
    Kill,
    Remove,
    Inspect,
    ListOurs,
    Reading,
    StartSibling,
    DiskUsage,
    CreateVolume,
    RemoveVolume,
    ListOurVolumes,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Effect {
    /// Nothing is done, and the error is answered.
    Fail(RuntimeError),
    /// It is done, but the error is answered: the caller cannot know.
    DoneButFail(RuntimeError),
    /// Nothing is done and nothing ever answered; the caller needs a deadline of its own.
    Hang,
    /// It is done, this much later.
    Delay(Duration),
    /// Nothing is done, and the error is answered this much later, as at the end of a call's deadline.
    FailLate(Duration, RuntimeError),
}

/// Decides about each call.
type Chooser = Box<dyn FnMut(Call) -> Option<Effect> + Send>;

/// Which calls go wrong, and how.
#[derive(Default)]
pub struct FaultPlan {
    faults: HashMap<(Call, u32), Effect>,
    counts: HashMap<Call, u32>,
    chooser: Option<Chooser>,
}

impl FaultPlan {
    /// Nothing goes wrong.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The `nth` call of this kind, counted from 1 from when the plan is put in place, goes wrong.
    #[must_use]
    pub fn on(mut self, call: Call, nth: u32, effect: Effect) -> Self {
        self.faults.insert((call, nth), effect);
        self
    }

    /// Where nothing else was planned, `choose` is asked at each call whether it goes wrong.
    #[must_use]
    pub fn choosing(choose: impl FnMut(Call) -> Option<Effect> + Send + 'static) -> Self {
        Self { chooser: Some(Box::new(choose)), ..Self::default() }
    }

    pub(super) fn next(&mut self, call: Call) -> Option<Effect> {
        let count = self.counts.entry(call).or_default();
        *count += 1;
        self.faults.remove(&(call, *count)).or_else(|| self.chooser.as_mut().and_then(|choose| choose(call)))
    }
}

/// One call that was made, failed ones included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallRecord {
    /// Its kind.
    pub call: Call,
    /// What it was about: a container's name, a volume, a digest; empty for calls about the engine.
    pub subject: String,
    /// When, Unix time in microseconds on the fake's clock.
    pub at_us: u64,
}
