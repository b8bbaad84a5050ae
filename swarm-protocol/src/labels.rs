//! Labels of workers: what a worker is known by beside its size, and what a job may require of it. A worker finds most of
//! them out itself; its operator adds others.

use std::collections::BTreeMap;

use crate::text::{is_hostile, sanitise};

/// Names and values.
pub type Labels = BTreeMap<String, String>;

/// Labels of one worker.
pub const LABELS_MAX: usize = 64;
/// Labels that one job may require.
pub const REQUIRE_MAX: usize = 16;
/// Bytes of a name.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of a value.
pub const VALUE_BYTES_MAX: usize = 256;

/// What to say to whoever gave a name that is none.
pub const NAME_HINT: &str = "names have 1 to 64 of a-z, 0-9, `.`, `_`, `/` and `-`";
/// What to say to whoever gave a value that is none.
pub const VALUE_HINT: &str =
    "values have at most 256 bytes, without control characters and those that turn the direction of text";

/// Whether a label may have this name.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._/-".contains(&b);
    !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.bytes().all(plain)
}

/// Whether a label may have this value; it may be empty.
#[must_use]
pub fn is_value(value: &str) -> bool {
    value.len() <= VALUE_BYTES_MAX && !value.chars().any(is_hostile)
}

/// Labels from a peer that nothing is known of: values made harmless and cut, what has no name a label may have is left
/// out, and so is what is beyond [`LABELS_MAX`].
#[must_use]
pub fn tidy(labels: Labels) -> Labels {
    let named = labels.into_iter().filter(|(name, _)| is_name(name)).take(LABELS_MAX);
    named.map(|(name, value)| (name, tidy_value(&value))).collect()
}

/// A text as a label's value.
#[must_use]
pub fn tidy_value(text: &str) -> String {
    let mut value = sanitise(&text.chars().take(VALUE_BYTES_MAX).collect::<String>(), false).replace('\t', " ");
    value.truncate(value.floor_char_boundary(VALUE_BYTES_MAX));
    value
}

/// Reads `KEY=VALUE`, as flags have it.
///
/// # Errors
/// What is wrong with it and what to write instead.
pub fn parse(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write KEY=VALUE, for instance zone=a")?;
    match (is_name(name), is_value(value)) {
        (true, true) => Ok((name.to_owned(), value.to_owned())),
        (false, _) => Err(format!("`{}` is not a label's name: {NAME_HINT}", sanitise(name, false))),
        (true, false) => Err(format!("that is not a label's value: {VALUE_HINT}")),
    }
}

/// Whether `labels` has all that is required.
#[must_use]
pub fn has_all(labels: &Labels, require: &Labels) -> bool {
    require.iter().all(|(name, value)| labels.get(name) == Some(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn names_and_values_keep_their_bounds() {
        for name in ["zone", "runtime.io.containerd.runc.v2", "example.org/rack-4", "memory_bytes", &"a".repeat(64)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "Zone", "a b", "a=b", "ä", "a\n", &"a".repeat(65)] {
            assert!(!is_name(name), "{name:?}");
        }
        assert!(is_value("") && is_value("Föhn 4 = b") && is_value(&"v".repeat(256)));
        for value in ["\u{1b}[31m", "a\nb", "\t", "\u{202e}x", &"v".repeat(257)] {
            assert!(!is_value(value), "{value:?}");
        }
        assert_eq!(parse("zone=a=b"), Ok(("zone".into(), "a=b".into())));
        assert!(parse("zone").unwrap_err().contains("KEY=VALUE"));
        assert!(parse("Zone=a").unwrap_err().contains("a-z"));
        assert!(parse("zone=\u{7}").unwrap_err().contains("control"));
    }

    #[test]
    fn every_pair_required_must_be_there() {
        let worker = labels(&[("zone", "a"), ("gpu", "nvidia")]);
        assert!(has_all(&worker, &labels(&[])));
        assert!(has_all(&worker, &labels(&[("zone", "a"), ("gpu", "nvidia")])));
        assert!(!has_all(&worker, &labels(&[("zone", "b")])));
        assert!(!has_all(&worker, &labels(&[("zone", "a"), ("rack", "1")])));
    }

    proptest! {
        #[test]
        fn what_a_hostile_peer_says_becomes_labels(pairs in prop::collection::btree_map(".{0,80}|[a-z.]{0,70}", ".{0,400}", 0..100)) {
            let tidied = tidy(pairs.clone());
            prop_assert!(tidied.len() <= LABELS_MAX);
            prop_assert!(tidied.iter().all(|(name, value)| is_name(name) && is_value(value)));
            prop_assert_eq!(tidy(tidied.clone()), tidied.clone(), "what is tidy stays");
            let good = |(name, value): &(&String, &String)| is_name(name) && is_value(value);
            if pairs.len() <= LABELS_MAX {
                prop_assert!(pairs.iter().filter(good).all(|(name, value)| tidied.get(name) == Some(value)));
            }
        }
    }
}
