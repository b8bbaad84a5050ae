//! The one sanitiser: text from jobs, images and workers is hostile until it went through here.

use crate::Timestamp;

/// Makes `text` safe for a terminal or a log line: control characters (C0, DEL, C1 and with them every escape
/// sequence's introducer), bidirectional overrides and line separators become visible escapes. Tab and, if
/// `keep_newlines`, newline stay.
#[must_use]
pub fn sanitise(text: &str, keep_newlines: bool) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\t' => safe.push(c),
            '\n' if keep_newlines => safe.push(c),
            c if is_hostile(c) => safe.extend(c.escape_unicode()),
            c => safe.push(c),
        }
    }
    safe
}

/// As [`sanitise`] for bytes of unknown encoding; what is not UTF-8 becomes U+FFFD.
#[must_use]
pub fn sanitise_bytes(bytes: &[u8], keep_newlines: bool) -> String {
    sanitise(&String::from_utf8_lossy(bytes), keep_newlines)
}

/// Makes a JSON text safe for a terminal without changing what it means: what [`is_hostile`] and still there, as JSON
/// escapes C0 controls itself, can only be within a string and becomes `\uXXXX`.
#[must_use]
pub fn escape_json(json: &str) -> String {
    let mut safe = String::with_capacity(json.len());
    for c in json.chars() {
        if is_hostile(c) && !c.is_ascii_whitespace() {
            let mut units = [0; 2];
            safe.extend(c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")));
        } else {
            safe.push(c);
        }
    }
    safe
}

/// `3m`, `5h`, `2d`: how long ago `then` was, in one unit; 0 s for what lies ahead.
#[must_use]
pub fn age(then: Timestamp, now: Timestamp) -> String {
    match (now - then).num_seconds().max(0) {
        s @ 0..60 => format!("{s}s"),
        s @ 60..3600 => format!("{}m", s / 60),
        s @ 3600..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// Whether `c` acts on a terminal or reorders text instead of showing; newline and tab count as hostile here.
#[must_use]
pub fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{061C}' | '\u{200E}' | '\u{200F}' | '\u{2028}'..='\u{202E}' | '\u{2066}'..='\u{2069}' | '\u{FEFF}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_one_unit() {
        let now = Timestamp::from_timestamp(1_000_000, 0).unwrap();
        let seconds = [-5, 59, 60, 3_599, 3_600, 172_799, 172_800];
        let ages = seconds.map(|ago| age(now - chrono::Duration::seconds(ago), now));
        assert_eq!(ages, ["0s", "59s", "1m", "59m", "1h", "47h", "2d"]);
    }

    #[test]
    fn json_keeps_its_meaning() {
        assert_eq!(escape_json("{\"a\": \"\u{9b}é\u{202e}\u{7f}\"}\n"), "{\"a\": \"\\u009bé\\u202e\\u007f\"}\n");
    }

    #[test]
    fn escape_sequences_become_visible() {
        assert_eq!(sanitise("a\x1b]52;c;eA==\x07b", true), "a\\u{1b}]52;c;eA==\\u{7}b");
        assert_eq!(sanitise("\u{9b}31m", true), "\\u{9b}31m");
        assert_eq!(sanitise("x\r\ny", true), "x\\u{d}\ny");
        assert_eq!(sanitise("x\ny", false), "x\\u{a}y");
        assert_eq!(sanitise("\u{202e}evil", true), "\\u{202e}evil");
        assert_eq!(sanitise("naïve ✓\t", true), "naïve ✓\t");
    }
}
