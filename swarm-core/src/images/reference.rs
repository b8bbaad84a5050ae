//! Names of images in our own store: `name[:tag]` or `sha256:<config digest>`.
//! Grammar of names and tags: OCI distribution specification 1.1, "Pulling manifests".

use std::fmt;
use std::str::FromStr;

use swarm_protocol::ids::Digest;

use super::error::shown;

const DEFAULT_TAG: &str = "latest";
const REFERENCE_BYTES_MAX: usize = 255;
const TAG_BYTES_MAX: usize = 128;

/// How a consumer names an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ImageRef {
    /// By name and tag.
    Tagged {
        /// Lower-case components joined by `/`.
        name: String,
        /// `latest` where none was given.
        tag: String,
    },
    /// By the digest of its config.
    Config(Digest),
}

/// A text that names no image; says which part is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("image reference `{text}`: {problem}")]
pub struct ImageRefError {
    text: String,
    problem: String,
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tagged { name, tag } => write!(f, "{name}:{tag}"),
            Self::Config(digest) => digest.fmt(f),
        }
    }
}

impl FromStr for ImageRef {
    type Err = ImageRefError;

    fn from_str(text: &str) -> Result<Self, ImageRefError> {
        parse(text).map_err(|problem| ImageRefError { text: shown(text), problem })
    }
}

fn parse(text: &str) -> Result<ImageRef, String> {
    if text.is_empty() {
        return Err("is empty; give `name:tag`, such as `tools/encoder:1.2`".to_owned());
    }
    if text.starts_with("sha256:") {
        let digest = text.parse();
        return digest.map(ImageRef::Config).map_err(|_| {
            "after `sha256:` come exactly 64 lower-case hex digits, the image's config digest".to_owned()
        });
    }
    if text.contains('@') {
        return Err(
            "`@` is not supported here; give `name:tag`, or `sha256:<config digest>` (`docker image inspect -f {{.Id}}`)"
                .to_owned(),
        );
    }
    // A colon before the last slash belongs to a registry's port, which no name in our store has.
    let (name, tag) = match text.rsplit_once(':') {
        Some((_, rest)) if rest.contains('/') => {
            return Err("names a registry with a port; images are named without a registry here".to_owned());
        }
        Some((name, tag)) => (name, tag),
        None => (text, DEFAULT_TAG),
    };
    if name.len() + 1 + tag.len() > REFERENCE_BYTES_MAX {
        return Err(format!("is longer than {REFERENCE_BYTES_MAX} characters; shorten it"));
    }
    check_name(name)?;
    check_tag(tag)?;
    Ok(ImageRef::Tagged { name: name.to_owned(), tag: tag.to_owned() })
}

fn check_name(name: &str) -> Result<(), String> {
    if name.contains(':') {
        return Err("has more than one `:`; give `name:tag`".to_owned());
    }
    if let Some(upper) = name.chars().find(char::is_ascii_uppercase) {
        return Err(format!("the name has the upper-case letter `{upper}`; write it in lower case"));
    }
    for component in name.split('/') {
        if component.is_empty() {
            return Err("the name has an empty part beside a `/`; remove it".to_owned());
        }
        if !is_component(component) {
            return Err(format!(
                "`{}` in the name is not made of a-z and 0-9, joined by `.`, `_`, `__` or `-`",
                shown(component)
            ));
        }
    }
    Ok(())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends = bytes.first().is_some_and(plain) && bytes.last().is_some_and(plain);
    let separators = bytes.split(plain).filter(|separator| !separator.is_empty());
    let mut allowed = separators.map(|it| matches!(it, b"." | b"_" | b"__") || it.iter().all(|byte| *byte == b'-'));
    ends && allowed.all(|allowed| allowed)
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
fn check_tag(tag: &str) -> Result<(), String> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let Some(first) = tag.bytes().next() else {
        return Err("the tag after `:` is empty; leave the `:` out for `latest`".to_owned());
    };
    if tag.len() > TAG_BYTES_MAX {
        return Err(format!("the tag is longer than {TAG_BYTES_MAX} characters; shorten it"));
    }
    if !word(first) || !tag.bytes().all(|byte| word(byte) || matches!(byte, b'.' | b'-')) {
        return Err(
            "the tag may only have letters, digits, `_`, `.` and `-`, and begin with none of the last two".to_owned()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_to_a_tag() {
        for (text, shown) in [
            ("busybox", "busybox:latest"),
            ("busybox:1.36", "busybox:1.36"),
            ("docker.io/library/a-b__c_d.e--f:V1_x.y-z", "docker.io/library/a-b__c_d.e--f:V1_x.y-z"),
            ("0:_", "0:_"),
        ] {
            let parsed: ImageRef = text.parse().unwrap();
            assert_eq!(parsed.to_string(), shown);
            assert_eq!(parsed.to_string().parse(), Ok(parsed));
        }
        let digest = Digest::of(b"config");
        assert_eq!(digest.to_string().parse(), Ok(ImageRef::Config(digest)));
    }

    #[test]
    fn each_refusal_names_its_problem() {
        let (long_name, long_tag) = ("a".repeat(250), format!("a:{}", "t".repeat(129)));
        for (text, problem) in [
            ("", "empty"),
            ("Busybox", "upper-case letter `B`"),
            ("a//b", "empty part"),
            ("/a", "empty part"),
            ("a/", "empty part"),
            ("a:", "tag after `:` is empty"),
            ("a:b:c", "more than one `:`"),
            ("a:-x", "begin with none"),
            ("a:ü", "the tag may only"),
            ("a..b", "`a..b` in the name"),
            ("a___b", "`a___b` in the name"),
            ("-a", "`-a` in the name"),
            ("a b", "`a b` in the name"),
            ("a\u{1b}[2j", "`a\\u{1b}[2j` in the name"),
            ("localhost:5000/a", "registry with a port"),
            ("a@sha256:00", "`@` is not supported"),
            ("sha256:00", "64 lower-case hex digits"),
            (&long_name, "longer than 255"),
            (&long_tag, "tag is longer than 128"),
        ] {
            let error = text.parse::<ImageRef>().unwrap_err().to_string();
            assert!(error.contains(problem), "{text:?}: {error}");
            assert!(!error.contains('\u{1b}'), "{error:?}");
        }
        "a".repeat(248).parse::<ImageRef>().unwrap();
        "a".repeat(249).parse::<ImageRef>().unwrap_err();
    }
}
