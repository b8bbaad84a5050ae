//! The one sanitiser: text from jobs, images and workers is hostile until it went through here.

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
    fn escape_sequences_become_visible() {
        assert_eq!(sanitise("a\x1b]52;c;eA==\x07b", true), "a\\u{1b}]52;c;eA==\\u{7}b");
        assert_eq!(sanitise("\u{9b}31m", true), "\\u{9b}31m");
        assert_eq!(sanitise("x\r\ny", true), "x\\u{d}\ny");
        assert_eq!(sanitise("x\ny", false), "x\\u{a}y");
        assert_eq!(sanitise("\u{202e}evil", true), "\\u{202e}evil");
        assert_eq!(sanitise("naïve ✓\t", true), "naïve ✓\t");
    }
}
