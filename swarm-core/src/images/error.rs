use std::io;

use swarm_protocol::ids::Digest;

use crate::blobs::BlobError;

/// Why an image was refused. Texts from the archive are shortened and escaped; each message says what to try.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The bytes are no archive at all.
    #[error("this is not an image archive: {what}; make one with `docker save IMAGE` and upload that")]
    NotAnArchive {
        /// What was found instead.
        what: &'static str,
    },
    /// The stream ended early.
    #[error("the archive ends in the middle of {place}; the upload was cut short, send it again")]
    Truncated {
        /// Where it ended.
        place: String,
    },
    /// The source of the bytes failed.
    #[error("reading the archive failed; send it again")]
    Read(#[source] io::Error),
    /// A bound was passed.
    #[error("{what} exceeds the limit of {max} {unit}; use a smaller image or ask an admin to raise the limit")]
    TooLarge {
        /// What is too large, with the member's name.
        what: String,
        /// The limit.
        max: u64,
        /// What the limit counts.
        unit: &'static str,
    },
    /// A member that no honest tool writes.
    #[error("archive member `{member}` {problem}; make the archive anew with `docker save IMAGE`")]
    Member {
        /// The member's name.
        member: String,
        /// What is wrong with it, as a clause.
        problem: String,
    },
    /// Something the image needs is not there.
    #[error("the archive lacks `{member}`, which {needed_by} refers to; make it anew with `docker save IMAGE`")]
    Missing {
        /// The missing member.
        member: String,
        /// Who refers to it.
        needed_by: String,
    },
    /// No image in it.
    #[error(
        "the archive holds neither manifest.json nor index.json, so it is no image; `docker save IMAGE` makes one \
         (`docker export` does not)"
    )]
    NoImage,
    /// More images than one.
    #[error("the archive holds {count} images ({names}); pass one: {hint}")]
    SeveralImages {
        /// How many.
        count: usize,
        /// Their names, shortened.
        names: String,
        /// How to pick one.
        hint: &'static str,
    },
    /// A manifest, an index or a config does not parse.
    #[error("`{document}` is not a valid {expected}; make the archive anew with `docker save IMAGE`")]
    Document {
        /// The member or digest.
        document: String,
        /// What it should have been.
        expected: &'static str,
        /// What the parser met.
        source: serde_json::Error,
    },
    /// A manifest, an index or a config says something that cannot be accepted.
    #[error("`{document}` {problem}")]
    Content {
        /// The member or digest.
        document: String,
        /// What is wrong with it and what to try, as a clause.
        problem: String,
    },
    /// Bytes that are not what their digest says.
    #[error("`{document}` has the digest {actual}, but {expected} was announced; the file is damaged, make it anew")]
    WrongDigest {
        /// The member or digest.
        document: String,
        /// What was announced.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// A layer whose content is not the one the config lists.
    #[error("layer `{layer}` unpacks to {actual}, but the config lists {expected}; rebuild or save the image anew")]
    WrongDiffId {
        /// The layer's member name or digest.
        layer: String,
        /// From `rootfs.diff_ids`.
        expected: Digest,
        /// What it unpacks to.
        actual: Digest,
    },
    /// A compression that is not read here.
    #[error(
        "`{what}` is compressed with {format}, which is not supported; `docker save IMAGE` writes everything plain"
    )]
    Compression {
        /// The member or digest.
        what: String,
        /// The compression.
        format: &'static str,
    },
    /// The blob store failed.
    #[error("storing the image failed")]
    Store(#[from] BlobError),
    /// A member could not be written to the store.
    #[error("storing archive member `{member}` failed")]
    StoreMember {
        /// The member's name.
        member: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Reading back what was stored failed.
    #[error("reading back `{what}` from the store failed")]
    ReadBack {
        /// The member or digest.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
}

/// Shows a text from outside: escaped, and shortened to 120 characters.
pub(super) fn shown(text: &str) -> String {
    let mut shown: String = text.escape_debug().take(120).collect();
    if text.chars().nth(120).is_some() {
        shown.push('…');
    }
    shown
}

/// Several texts from outside in one, at most ten of them.
pub(super) fn shown_list<T: AsRef<str>>(texts: &[T]) -> String {
    let mut list: Vec<_> = texts.iter().take(10).map(|text| shown(text.as_ref())).collect();
    if texts.len() > list.len() {
        list.push("…".to_owned());
    }
    list.join(", ")
}
