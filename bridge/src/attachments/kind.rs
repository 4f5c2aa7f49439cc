//! What kind of file it is, and whether that may be sent. Pure.
//!
//! Messages goes by the ending of the name (macOS makes the uti from it), a server says a media type. Both
//! must agree as far as they say anything: a web page that calls itself `photo.jpg` is an error page that
//! nobody wants to pay for.

/// Endings that phones know, with their media types. A file with another ending needs a server that says what
/// it is.
const ENDINGS: &[(&str, &str)] = &[
    ("jpg", "image/jpeg"),
    ("jpeg", "image/jpeg"),
    ("png", "image/png"),
    ("gif", "image/gif"),
    ("heic", "image/heic"),
    ("heif", "image/heif"),
    ("webp", "image/webp"),
    ("tiff", "image/tiff"),
    ("tif", "image/tiff"),
    ("bmp", "image/bmp"),
    ("mp4", "video/mp4"),
    ("m4v", "video/x-m4v"),
    ("mov", "video/quicktime"),
    ("3gp", "video/3gpp"),
    ("mp3", "audio/mpeg"),
    ("m4a", "audio/mp4"),
    ("aac", "audio/aac"),
    ("caf", "audio/x-caf"),
    ("amr", "audio/amr"),
    ("wav", "audio/wav"),
    ("aiff", "audio/aiff"),
    ("pdf", "application/pdf"),
    ("pkpass", "application/vnd.apple.pkpass"),
    ("vcf", "text/vcard"),
    ("ics", "text/calendar"),
    ("txt", "text/plain"),
    ("csv", "text/csv"),
    ("rtf", "application/rtf"),
    ("doc", "application/msword"),
    ("docx", "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    ("xls", "application/vnd.ms-excel"),
    ("xlsx", "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"),
    ("ppt", "application/vnd.ms-powerpoint"),
    ("pptx", "application/vnd.openxmlformats-officedocument.presentationml.presentation"),
    ("zip", "application/zip"),
    ("html", "text/html"),
    ("htm", "text/html"),
    ("svg", "image/svg+xml"),
];

/// What is wrong with the kind of a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadKind {
    #[error("neither its name nor its server says what kind of file it is")]
    Unknown,
    #[error("{0} may not be sent by this bridge")]
    NotAllowed(String),
    #[error("it is called .{ending}, and its server says {said}")]
    Contradiction { ending: String, said: String },
}

/// The name under which it is staged: an ending is added where there is none that phones know.
pub(crate) fn settle(
    name: &str,
    said: Option<&str>,
    allowed: &[String],
) -> Result<String, BadKind> {
    let said = said.and_then(media_type);
    let ending = name.rsplit_once('.').map(|(_, ending)| ending.to_ascii_lowercase());
    let by_name = ending.as_deref().and_then(|ending| {
        ENDINGS.iter().find(|(known, _)| *known == ending).map(|(_, kind)| *kind)
    });
    let kind = match (by_name, said.as_deref()) {
        (None, None) => return Err(BadKind::Unknown),
        (Some(by_name), None) => by_name,
        (None, Some(said)) => said,
        (Some(by_name), Some(said)) => {
            if !agree(by_name, said) {
                return Err(BadKind::Contradiction {
                    ending: ending.unwrap_or_default(),
                    said: said.to_owned(),
                });
            }
            by_name
        }
    };
    if !allowed.iter().any(|allowed| covers(allowed, kind)) {
        return Err(BadKind::NotAllowed(kind.to_owned()));
    }
    if by_name.is_some() {
        return Ok(name.to_owned());
    }
    match ENDINGS.iter().find(|(_, known)| *known == kind) {
        Some((ending, _)) => Ok(format!("{name}.{ending}")),
        // Allowed by name, and the ending is one that the operator knows.
        None => Ok(name.to_owned()),
    }
}

/// `image/` covers every image.
fn covers(allowed: &str, kind: &str) -> bool {
    if allowed.ends_with('/') { kind.starts_with(allowed) } else { kind == allowed }
}

/// Whether both mean the same kind of thing. Servers are exact about the first half of a type and careless
/// about the second; texts and documents are told apart by nobody but their endings.
fn agree(by_name: &str, said: &str) -> bool {
    let (left, right) = (half(by_name), half(said));
    let is_page = |kind: &str| kind == "text/html" || kind == "application/xhtml+xml";
    let is_loose = |half: &str| half == "text" || half == "application";
    is_page(by_name) == is_page(said) && (left == right || (is_loose(left) && is_loose(right)))
}

fn half(kind: &str) -> &str {
    kind.split_once('/').map_or(kind, |(half, _)| half)
}

/// The type of a `Content-Type`, without its parameters; nothing where it says nothing.
fn media_type(header: &str) -> Option<String> {
    let kind = header.split(';').next()?.trim().to_ascii_lowercase();
    let says_nothing = matches!(
        kind.as_str(),
        "application/octet-stream" | "binary/octet-stream" | "application/x-download"
    );
    let plain = |c: char| c.is_ascii_graphic();
    (kind.contains('/') && !says_nothing && kind.chars().all(plain)).then_some(kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_server_together_tell_the_kind() {
        let allowed = ["image/", "application/pdf", "text/plain", "model/vnd.usdz+zip"];
        let allowed: Vec<String> = allowed.map(str::to_owned).to_vec();
        let settle = |name: &str, said: Option<&str>| {
            settle(name, said, &allowed).map_err(|bad| bad.to_string())
        };
        for (name, said, expected) in [
            ("a.JPG", None, "a.JPG"),
            ("a.jpg", Some("image/png"), "a.jpg"),
            ("a.jpg", Some("application/octet-stream"), "a.jpg"),
            ("photo", Some("image/jpeg; charset=binary"), "photo.jpg"),
            ("menu.v2", Some("application/pdf"), "menu.v2.pdf"),
            ("notes.txt", Some("application/json"), "notes.txt"),
            ("chair.usdz", Some("model/vnd.usdz+zip"), "chair.usdz"),
        ] {
            assert_eq!(settle(name, said).as_deref(), Ok(expected), "{name} {said:?}");
        }
        for (name, said, expected) in [
            ("blob", None, "neither its name nor its server says"),
            ("blob", Some("application/octet-stream"), "neither its name nor its server says"),
            ("blob", Some("nonsense"), "neither its name nor its server says"),
            ("a.jpg", Some("text/html"), "it is called .jpg, and its server says text/html"),
            ("a.txt", Some("text/html"), "it is called .txt, and its server says text/html"),
            ("a.pdf", Some("image/png"), "it is called .pdf"),
            ("a.zip", None, "application/zip may not be sent"),
            ("run", Some("application/x-sh"), "application/x-sh may not be sent"),
            ("a.png.zip", Some("application/zip"), "application/zip may not be sent"),
        ] {
            let error = settle(name, said).unwrap_err();
            assert!(error.contains(expected), "{name} {said:?}: {error}");
        }
    }

    #[test]
    fn every_ending_is_said_once() {
        for (index, (ending, kind)) in ENDINGS.iter().enumerate() {
            assert!(ENDINGS.iter().skip(index + 1).all(|(other, _)| other != ending), "{ending}");
            assert!(media_type(kind).as_deref() == Some(*kind), "{kind}");
        }
    }
}
