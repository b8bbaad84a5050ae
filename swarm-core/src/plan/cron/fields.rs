//! The five fields of a cron text: strict parsing into sets of numbers, with errors that say what to write instead.

use super::CronError;

/// What one field may hold.
pub(super) struct FieldKind {
    /// As people call it; also the name used in errors.
    pub(super) name: &'static str,
    min: u32,
    max: u32,
    /// Three-letter names; the first stands for `min`.
    names: &'static [&'static str],
}

const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

pub(super) const MINUTE: FieldKind = FieldKind { name: "minute", min: 0, max: 59, names: &[] };
pub(super) const HOUR: FieldKind = FieldKind { name: "hour", min: 0, max: 23, names: &[] };
pub(super) const DAY_OF_MONTH: FieldKind = FieldKind { name: "day-of-month", min: 1, max: 31, names: &[] };
pub(super) const MONTH: FieldKind = FieldKind { name: "month", min: 1, max: 12, names: &MONTHS };
/// 0 and 7 are both Sunday while parsing; afterwards only 0 is.
pub(super) const DAY_OF_WEEK: FieldKind = FieldKind { name: "day-of-week", min: 0, max: 7, names: &DAYS };

/// A parsed field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    /// Bit n is set when the value n matches.
    bits: u64,
    /// Written with `*` or a `/step`: the author meant "every so often" and not "at this time".
    pub(super) interval: bool,
}

impl Field {
    /// Whether `value` matches.
    pub(super) fn contains(self, value: u32) -> bool {
        value < 64 && self.bits & (1 << value) != 0
    }

    /// Whether every value of `kind` matches, so that the field restricts nothing.
    pub(super) fn is_full(self, kind: &FieldKind) -> bool {
        (kind.min..=kind.top()).all(|value| self.contains(value))
    }

    /// The matching values in ascending order.
    pub(super) fn values(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |&value| self.contains(value))
    }
}

impl FieldKind {
    /// The largest value after parsing: day-of-week 7 has become 0.
    fn top(&self) -> u32 {
        self.max.min(if self.is_day_of_week() { 6 } else { 63 })
    }

    fn is_day_of_week(&self) -> bool {
        self.name == DAY_OF_WEEK.name
    }

    fn is_day(&self) -> bool {
        self.is_day_of_week() || self.name == DAY_OF_MONTH.name
    }

    fn error(&self, problem: String, hint: impl Into<String>) -> CronError {
        CronError { field: self.name, problem, hint: hint.into() }
    }

    fn allowed(&self) -> String {
        match self.names {
            [] => format!("use {} to {}", self.min, self.max),
            [first, .., last] => format!("use {} to {} or {first} to {last}", self.min, self.max),
            [only] => format!("use {} or {only}", self.min),
        }
    }

    /// Parses one field: items separated by commas, each `*`, `a`, `a-b`, or one of these with `/step`.
    pub(super) fn parse(&self, text: &str) -> Result<Field, CronError> {
        let mut field = Field { bits: 0, interval: false };
        for item in text.split(',') {
            self.parse_item(item, &mut field)?;
        }
        Ok(field)
    }

    fn parse_item(&self, item: &str, field: &mut Field) -> Result<(), CronError> {
        let (range, step) = match item.split_once('/') {
            Some((range, step)) => (range, Some(self.step(item, step)?)),
            None => (item, None),
        };
        let star = range == "*" || (range == "?" && self.is_day());
        let (low, high) = if star { (self.min, self.top()) } else { self.range(range, step.is_some())? };
        field.interval |= star || step.is_some();
        for value in (low..=high).step_by(step.unwrap_or(1)) {
            field.bits |= 1 << if self.is_day_of_week() { value % 7 } else { value };
        }
        Ok(())
    }

    fn step(&self, item: &str, step: &str) -> Result<usize, CronError> {
        match digits(step) {
            Some(step) if step >= 1 && step <= self.max => Ok(step as usize),
            _ => Err(self.error(
                format!("{item:?} has no usable step"),
                format!("write a whole number from 1 to {} after the slash, such as */5", self.max),
            )),
        }
    }

    /// `a`, `a-b`, or `a/step`, which runs on to the largest value.
    fn range(&self, range: &str, stepped: bool) -> Result<(u32, u32), CronError> {
        let Some((low, high)) = range.split_once('-') else {
            let value = self.value(range)?;
            return Ok((value, if stepped { self.top().max(value) } else { value }));
        };
        let (low, mut high) = (self.value(low)?, self.value(high)?);
        if self.is_day_of_week() && high == 0 && low > 0 {
            high = 7; // fri-sun: the week ends on Sunday here
        }
        if low > high {
            return Err(self.error(
                format!("the range {range:?} runs backwards"),
                "split it in two with a comma, such as 22-23,0-5 in the hour field",
            ));
        }
        Ok((low, high))
    }

    fn value(&self, text: &str) -> Result<u32, CronError> {
        if let Some(value) = digits(text) {
            if (self.min..=self.max).contains(&value) {
                return Ok(value);
            }
            return Err(self.error(format!("{value} is outside {} to {}", self.min, self.max), self.allowed()));
        }
        let lower = text.to_ascii_lowercase();
        if let Some(index) = self.names.iter().position(|name| *name == lower) {
            return Ok(self.min + u32::try_from(index).unwrap_or_default());
        }
        if text.is_empty() {
            return Err(self.error("a value is missing".to_owned(), self.allowed()));
        }
        if self.is_day() && text.contains(['L', 'l', 'W', 'w', '#']) {
            return Err(self.error(
                format!("{text:?} is not supported"),
                "L, W and # do not exist here; name the days, such as 1 or mon",
            ));
        }
        Err(self.error(format!("{text:?} is not a value"), self.allowed()))
    }
}

/// A plain number of at most four digits: no sign, no blanks.
fn digits(text: &str) -> Option<u32> {
    let plain = (1..=4).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}
