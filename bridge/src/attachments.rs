//! Files that go with a message: what may be fetched, from where, and where their copies stand.
//!
//! A tenant names a URL; the bridge fetches it into a folder of its own for this one send, and Messages is
//! given the path. The folder is never used twice, so that the path alone tells which row of chat.db is
//! which send's ([`crate::chatdb::Sought::File`]), and it is kept for a week: Messages reads the file after
//! the script has returned (BlueBubbles found that it must not be deleted after the send), and for how long
//! is unverified.
//!
//! [`check`] and [`kind`] are pure; [`guard`] decides which addresses may be called; [`fetch`] does it;
//! [`staging`] owns the folders.

pub(crate) mod fetch;
mod guard;
pub(crate) mod kind;
pub(crate) mod staging;

use protocol::pipe::OutboundAttachment;
use url::Url;

/// What of the configuration matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// All files of one message together, in bytes.
    pub bytes_max: u64,
    /// One file may take so long.
    pub timeout: std::time::Duration,
    /// Before a file is asked for a second time; the third time waits four times as long.
    pub pause: std::time::Duration,
    /// Media types that may be sent: `image/png`, or `image/` for all of a kind.
    pub types: Vec<String>,
    /// Whether plain HTTP and private addresses may be called: for tests and a desk.
    pub allow_private: bool,
}

/// Longest name of a file, in bytes: file systems end at 255, and an ending may be added.
const NAME_BYTES_MAX: usize = protocol::limits::MEDIA_NAME_BYTES_MAX;

/// What is wrong with a wanted file, by the field. Never a word of the URL: it may carry a secret.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadFile {
    #[error("url: {0}")]
    Url(guard::Refused),
    #[error("name: has a slash or a control character in it")]
    Name,
    #[error("name: is empty or longer than {NAME_BYTES_MAX} bytes")]
    NameLength,
    #[error("sha256: is not 64 hexadecimal digits in lower case")]
    Sha256,
}

/// Checks all that can be checked before anything is fetched.
pub(crate) fn check(file: &OutboundAttachment, allow_private: bool) -> Result<Url, BadFile> {
    if let Some(name) = &file.name {
        if name.trim().is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(BadFile::NameLength);
        }
        if name.contains('/') || name.chars().any(char::is_control) {
            return Err(BadFile::Name);
        }
    }
    if let Some(sha256) = &file.sha256 {
        let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if sha256.len() != 64 || !sha256.bytes().all(digit) {
            return Err(BadFile::Sha256);
        }
    }
    guard::check_url(&file.url, allow_private).map_err(BadFile::Url)
}

/// The name under which the recipient sees a file: the one asked for, else the last step of the URL's path,
/// else `file`. It is one step of a path, and no hidden one.
pub(crate) fn name(file: &OutboundAttachment, url: &Url) -> String {
    let last = || {
        let step = url.path_segments()?.next_back()?;
        let bytes = percent_decoded(step);
        Some(String::from_utf8_lossy(&bytes).into_owned())
    };
    let wished = file.name.clone().or_else(last).unwrap_or_default();
    // A colon is a slash to parts of macOS.
    let kept: String = wished
        .chars()
        .map(|c| if matches!(c, '/' | ':' | '\\') { '_' } else { c })
        .filter(|c| !c.is_control())
        .collect();
    let kept = kept.trim().trim_start_matches('.');
    let name = shortened(kept);
    if name.is_empty() { "file".to_owned() } else { name }
}

/// Cut to what a file system takes, with its ending kept.
fn shortened(name: &str) -> String {
    if name.len() <= NAME_BYTES_MAX {
        return name.to_owned();
    }
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    let ending = if ending.len() <= 10 { ending } else { "" };
    let mut room = NAME_BYTES_MAX.saturating_sub(ending.len().saturating_add(1));
    while !name.is_char_boundary(room) {
        room = room.saturating_sub(1);
    }
    let start = name.get(..room).unwrap_or_default();
    if ending.is_empty() { start.to_owned() } else { format!("{start}.{ending}") }
}

fn percent_decoded(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let escaped = (*first == b'%')
            .then(|| tail.get(..2))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { tail.get(2..).unwrap_or_default() } else { tail };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::path::Path;

    use super::*;

    fn file(url: &str) -> OutboundAttachment {
        OutboundAttachment { url: url.to_owned(), name: None, sha256: None }
    }

    #[test]
    fn what_cannot_be_fetched_is_refused_by_field() {
        let good = "https://example.com/a.png";
        let named = |name: &str| OutboundAttachment { name: Some(name.to_owned()), ..file(good) };
        let summed = |sum: String| OutboundAttachment { sha256: Some(sum), ..file(good) };
        for (wanted, expected) in [
            (file("http://example.com/a.png"), "url: not https"),
            (file("https://10.0.0.1/a.png"), "url: its address is not public"),
            (file("file:///etc/passwd"), "url: not an https URL with a host"),
            (file("https://user:secret@example.com/"), "url: has a user or a password in it"),
            (named("a/b.png"), "name: has a slash or a control character in it"),
            (named("a\0.png"), "name: has a slash or a control character in it"),
            (named("  "), "name: is empty or longer than 200 bytes"),
            (named(&"x".repeat(201)), "name: is empty or longer than 200 bytes"),
            (summed("ab".to_owned()), "sha256: is not 64 hexadecimal digits in lower case"),
            (summed("A".repeat(64)), "sha256: is not 64 hexadecimal digits in lower case"),
        ] {
            assert_eq!(check(&wanted, false).unwrap_err().to_string(), expected, "{wanted:?}");
        }
        assert!(check(&file(good), false).is_ok());
        assert!(check(&named("Grüße 1.png"), false).is_ok());
        assert!(check(&summed("0f".repeat(32)), false).is_ok());
        assert!(check(&file("http://127.0.0.1:1/x"), true).is_ok());
    }

    #[test]
    fn a_name_is_one_step_of_a_path_and_not_hidden() {
        for (url, wished, expected) in [
            ("https://example.com/p/Menu%20card.pdf?x=1", None, "Menu card.pdf"),
            ("https://example.com/", None, "file"),
            ("https://example.com/..%2f..%2fetc%2fpasswd", None, "_.._etc_passwd"),
            ("https://example.com/.hidden", None, "hidden"),
            ("https://example.com/a", Some("12:30.txt"), "12_30.txt"),
            ("https://example.com/%ff%00.png", None, "\u{fffd}.png"),
            ("https://example.com/100%.png", None, "100%.png"),
        ] {
            let wanted = OutboundAttachment { name: wished.map(str::to_owned), ..file(url) };
            assert_eq!(name(&wanted, &Url::parse(url).unwrap()), expected, "{url}");
        }
        let long = format!("https://example.com/{}.jpeg", "ä".repeat(150));
        let cut = name(&file(&long), &Url::parse(&long).unwrap());
        assert!(
            cut.len() <= NAME_BYTES_MAX && Path::new(&cut).extension() == Some(OsStr::new("jpeg")),
            "{cut}"
        );
    }
}
