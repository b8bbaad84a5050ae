//! The `tracing` layer: asks the filter, gathers fields, makes entries.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use chrono::Utc;
use serde_json::Value;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::{LookupSpan, Scope};

use super::Shared;
use super::entry::{Entry, FIELDS_MAX, Level, MESSAGE_BYTES_MAX, SafeText, VALUE_BYTES_MAX};

/// Set by the macros of this module.
const LEVEL_FIELD: &str = "swarm.level";
/// Replaces the tag derived from the target.
const TAG_FIELD: &str = "swarm.tag";

/// Turns events into entries.
pub(super) struct LogLayer {
    shared: Arc<Shared>,
    settling: Arc<AtomicBool>,
}

/// Ends the phase in which the layer claims to want every level.
pub(super) struct Settling(Arc<AtomicBool>);

impl Settling {
    pub(super) fn settle(&self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl LogLayer {
    pub(super) fn new(shared: Arc<Shared>, settling: bool) -> (Self, Settling) {
        let settling = Arc::new(AtomicBool::new(settling));
        (Self { shared, settling: Arc::clone(&settling) }, Settling(settling))
    }

    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        // The level or tag of these is known only once their values are: `on_event` decides.
        decides_late(metadata)
            || self.shared.filter().lets(level_of(metadata, metadata.target()), metadata.target(), tail(metadata))
    }
}

/// Rocket reports as errors and warnings what single requests are, and strangers may send as many as they like: that is
/// worth no more than debug. What fails in the core itself is logged by the core. Rocket's macros speak as the module
/// that they are used in, with `_` behind it.
fn level_of(metadata: &Metadata<'_>, target: &str) -> Level {
    let level = (*metadata.level()).into();
    let of_rocket = target.split("::").next() == Some("rocket") || target.ends_with("::_");
    if of_rocket { Level::Debug.min(level) } else { level }
}

fn decides_late(metadata: &Metadata<'_>) -> bool {
    metadata.fields().iter().any(|field| matches!(field.name(), LEVEL_FIELD | TAG_FIELD))
}

fn tail<'a>(metadata: &Metadata<'a>) -> Option<&'a str> {
    metadata.target().rsplit("::").next()
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogLayer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _context: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        if self.settling.load(Ordering::Relaxed) {
            return Some(LevelFilter::TRACE);
        }
        // Notices and audits travel as info events, so info must always come through to here.
        Some(match self.shared.filter().lowest() {
            Some(Level::Trace) => LevelFilter::TRACE,
            Some(Level::Debug) => LevelFilter::DEBUG,
            _ => LevelFilter::INFO,
        })
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut seen = Seen::default();
            attributes.record(&mut seen);
            span.extensions_mut().insert(SpanFields(seen.fields));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id) {
            let mut seen = Seen::default();
            values.record(&mut seen);
            if let Some(known) = span.extensions_mut().get_mut::<SpanFields>() {
                merge(&mut known.0, seen.fields);
            }
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut seen = Seen::default();
        event.record(&mut seen);
        // Records of the `log` crate all share one target; the real one is in a field.
        let target = seen.log_target.take().unwrap_or_else(|| metadata.target().to_owned());
        let level = seen.level.unwrap_or_else(|| level_of(metadata, &target));
        let tag = seen.tag.take().unwrap_or_else(|| target.rsplit("::").next().unwrap_or_default().to_owned());
        if !self.shared.filter().lets(level, &target, Some(&tag)) {
            return;
        }
        let mut fields = BTreeMap::new();
        for span in context.event_scope(event).into_iter().flat_map(Scope::from_root) {
            if let Some(SpanFields(of_span)) = span.extensions().get::<SpanFields>() {
                merge(&mut fields, of_span.clone());
            }
        }
        merge(&mut fields, seen.fields);
        self.shared.accept(Entry { seq: 0, at: Utc::now(), level, tag, target, message: seen.message, fields });
    }
}

/// The fields a span was opened with, kept in the registry.
struct SpanFields(BTreeMap<String, Value>);

/// Adds `more` to `fields`; a name already there takes the new value.
fn merge(fields: &mut BTreeMap<String, Value>, more: BTreeMap<String, Value>) {
    for (name, value) in more {
        if fields.len() < FIELDS_MAX || fields.contains_key(&name) {
            fields.insert(name, value);
        }
    }
}

/// What an event or span carries.
#[derive(Default)]
struct Seen {
    message: String,
    level: Option<Level>,
    tag: Option<String>,
    log_target: Option<String>,
    fields: BTreeMap<String, Value>,
}

impl Seen {
    fn keep(&mut self, field: &Field, value: Value) {
        if !field.name().starts_with("log.") && self.fields.len() < FIELDS_MAX {
            self.fields.insert(field.name().to_owned(), value);
        }
    }
}

impl Visit for Seen {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => self.message = SafeText::of_str(MESSAGE_BYTES_MAX, value),
            LEVEL_FIELD => self.level = value.parse().ok(),
            TAG_FIELD => self.tag = Some(SafeText::of_str(128, value)),
            "log.target" => self.log_target = Some(SafeText::of_str(256, value)),
            _ => self.keep(field, SafeText::of_str(VALUE_BYTES_MAX, value).into()),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = SafeText::of(MESSAGE_BYTES_MAX, value),
            TAG_FIELD => self.tag = Some(SafeText::of(128, value)),
            _ => self.keep(field, SafeText::of(VALUE_BYTES_MAX, value).into()),
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.keep(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.keep(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.keep(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.keep(field, value.into());
    }
}
