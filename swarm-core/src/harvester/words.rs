//! What workers say in words is stored, or logged, and only its beginning is: a message of the link may hold 4 MiB of it.

use swarm_protocol::Outcome;

/// Of a text this many bytes are kept; honest workers write far less.
pub(super) const TEXT_BYTES_MAX: usize = 16 << 10;

/// The beginning of a text.
pub(super) fn cut(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        text.shrink_to_fit();
    }
    text
}

/// An outcome with the beginning of its text.
pub(super) fn cut_outcome(outcome: Outcome) -> Outcome {
    match outcome.detail() {
        Some(text) if text.len() > TEXT_BYTES_MAX => {
            Outcome::from_parts(outcome.kind(), outcome.exit_code(), Some(cut(text)))
        }
        _ => outcome,
    }
}

#[cfg(test)]
mod tests {
    use swarm_protocol::LossReason;

    use super::*;

    #[test]
    fn a_novel_is_cut_and_a_word_is_not() {
        let lost = |detail: String| Outcome::Lost { reason: LossReason::Engine, detail };
        let Outcome::Lost { reason: LossReason::Engine, detail } = cut_outcome(lost("ü€".repeat(1 << 20))) else {
            panic!("it stays what it was")
        };
        assert!((TEXT_BYTES_MAX - 16..=TEXT_BYTES_MAX).contains(&detail.len()), "{}", detail.len());
        assert_eq!(cut_outcome(lost("gone".to_owned())), lost("gone".to_owned()));
    }
}
