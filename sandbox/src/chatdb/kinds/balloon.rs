//! Messages of apps: a bundle id, and a payload that only the app understands. A link's preview is
//! one of them, in a row of its own.

use super::Row;
use crate::bplist::Plist;
use crate::typedstream::{self, APP_CHAR, AttributedText, PART, Value};

/// An app whose message the sandbox can write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum App {
    /// Previews of links.
    UrlPreview,
    /// Drawings, heartbeats and taps.
    DigitalTouch,
    /// Handwriting.
    Handwriting,
    /// Money.
    ApplePay,
    /// Where somebody is.
    FindMy,
    /// Polls.
    Polls,
    /// A game of somebody else.
    GamePigeon,
}

/// What the public samples hold.
const DIGITAL_TOUCH: &[u8] = include_bytes!("../../../testdata/digital-touch-payload.bin");
const HANDWRITING: &[u8] = include_bytes!("../../../testdata/handwriting-payload.bin");

impl App {
    /// All but the previews, which need a link.
    pub const ALL: [Self; 6] = [
        Self::DigitalTouch,
        Self::Handwriting,
        Self::ApplePay,
        Self::FindMy,
        Self::Polls,
        Self::GamePigeon,
    ];

    /// What stands in `balloon_bundle_id`. The first three are publicly known; of the extensions
    /// the form is, while no public row confirms the ids themselves.
    pub const fn bundle(self) -> &'static str {
        match self {
            Self::UrlPreview => "com.apple.messages.URLBalloonProvider",
            Self::DigitalTouch => "com.apple.DigitalTouchBalloonProvider",
            Self::Handwriting => "com.apple.Handwriting.HandwritingProvider",
            Self::ApplePay => {
                "com.apple.messages.MSMessageExtensionBalloonPlugin:0000000000:\
                 com.apple.PassbookUIService.PeerPaymentMessagesExtension"
            }
            Self::FindMy => {
                "com.apple.messages.MSMessageExtensionBalloonPlugin:0000000000:\
                 com.apple.findmy.FindMyMessagesApp"
            }
            Self::Polls => {
                "com.apple.messages.MSMessageExtensionBalloonPlugin:0000000000:\
                 com.apple.messages.Polls"
            }
            Self::GamePigeon => {
                "com.apple.messages.MSMessageExtensionBalloonPlugin:EWFNLB79LQ:\
                 com.gamerdelights.gamepigeon.ext"
            }
        }
    }

    /// A payload: the public sample, or an archive of our own with the caption that every
    /// extension's message has.
    fn payload(self) -> Vec<u8> {
        match self {
            Self::DigitalTouch => DIGITAL_TOUCH.to_vec(),
            Self::Handwriting => HANDWRITING.to_vec(),
            Self::ApplePay => extension("Apple Pay", "$12.50"),
            Self::FindMy => extension("Find My", "Started sharing location"),
            Self::Polls => extension("Polls", "Where shall we eat?"),
            Self::GamePigeon => extension("GamePigeon", "8 Ball"),
            Self::UrlPreview => link("https://example.test/", Some("Example")),
        }
    }
}

/// A keyed archive of these objects.
pub(super) fn archive(top: Plist, objects: Vec<Plist>) -> Vec<u8> {
    Plist::map([
        ("$version", Plist::Int(100_000)),
        ("$archiver", Plist::text("NSKeyedArchiver")),
        ("$top", top),
        ("$objects", Plist::Array(objects)),
    ])
    .encode()
}

fn class(names: &[&str]) -> Plist {
    let classes: Vec<_> = names.iter().copied().map(Plist::text).collect();
    let name = Plist::text(names.first().copied().unwrap_or("NSObject"));
    Plist::map([("$classname", name), ("$classes", Plist::Array(classes))])
}

/// What `MSMessageExtensionBalloonPlugin` keeps: the app's name and a caption.
fn extension(app: &str, caption: &str) -> Vec<u8> {
    let objects = vec![
        Plist::text("$null"),
        Plist::map([
            ("NS.keys", Plist::Array([2, 3, 4].map(Plist::Uid).to_vec())),
            ("NS.objects", Plist::Array([5, 6, 7].map(Plist::Uid).to_vec())),
            ("$class", Plist::Uid(9)),
        ]),
        Plist::text("an"),
        Plist::text("ldtext"),
        Plist::text("userInfo"),
        Plist::text(app),
        Plist::text(caption),
        Plist::map([
            ("NS.keys", Plist::Array(vec![Plist::Uid(8)])),
            ("NS.objects", Plist::Array(vec![Plist::Uid(6)])),
            ("$class", Plist::Uid(9)),
        ]),
        Plist::text("caption"),
        class(&["NSDictionary", "NSObject"]),
    ];
    archive(Plist::map([("root", Plist::Uid(1))]), objects)
}

/// What a link's preview keeps. Without a title it is a placeholder: nothing has been loaded yet.
fn link(url: &str, title: Option<&str>) -> Vec<u8> {
    let nsurl = |text| {
        let none = Plist::Uid(0);
        Plist::map([("NS.base", none), ("NS.relative", text), ("$class", Plist::Uid(6))])
    };
    let objects = vec![
        Plist::text("$null"),
        Plist::map([
            ("richLinkIsPlaceholder", Plist::Bool(title.is_none())),
            ("richLinkMetadata", Plist::Uid(2)),
            ("$class", Plist::Uid(8)),
        ]),
        Plist::map([
            ("originalURL", Plist::Uid(3)),
            ("URL", Plist::Uid(3)),
            ("title", Plist::Uid(5)),
            ("version", Plist::Int(1)),
            ("$class", Plist::Uid(7)),
        ]),
        nsurl(Plist::Uid(4)),
        Plist::text(url),
        Plist::text(title.unwrap_or_default()),
        class(&["NSURL", "NSObject"]),
        class(&["LPLinkMetadata", "NSObject"]),
        class(&["RichLink", "NSObject"]),
    ];
    archive(Plist::map([("root", Plist::Uid(1))]), objects)
}

impl Row {
    /// The same as a message of an app.
    #[must_use]
    pub fn app(self, app: App) -> Self {
        let part = vec![(PART.to_owned(), Value::Number(0))];
        let text = AttributedText::from_runs(&[(APP_CHAR.to_string().as_str(), part)]);
        self.body(text)
            .with("balloon_bundle_id", app.bundle().to_owned())
            .with("payload_data", app.payload())
    }

    /// The same while nothing of the link has been loaded.
    #[must_use]
    pub fn placeholder(self, url: &str) -> Self {
        self.with("payload_data", link(url, None))
    }

    /// The same before Messages has written the app's content: the payload follows with
    /// [`super::super::ChatDb::fill_payload`].
    #[must_use]
    pub fn without_payload(mut self) -> Self {
        self.columns.remove("payload_data");
        self
    }

    /// The same as the preview of a link: the row that follows its text within two seconds.
    #[must_use]
    pub fn url_preview(self, url: &str, title: &str) -> Self {
        let attributes = vec![
            (PART.to_owned(), Value::Number(0)),
            (typedstream::LINK.to_owned(), Value::Url(url.to_owned())),
        ];
        self.body(AttributedText::from_runs(&[(url, attributes)]).mutable())
            .with("balloon_bundle_id", App::UrlPreview.bundle().to_owned())
            .with("payload_data", link(url, Some(title)))
            .with("has_dd_results", 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_name_their_objects() {
        let archive =
            Plist::decode(&link("https://example.test/a", Some("A title"))).expect("a list");
        assert_eq!(archive.get("$archiver"), Some(&Plist::text("NSKeyedArchiver")));
        let Some(Plist::Array(objects)) = archive.get("$objects") else { panic!("no objects") };
        let metadata = &objects[2];
        let Some(Plist::Uid(title)) = metadata.get("title") else { panic!("no title") };
        assert_eq!(objects[usize::from(*title)], Plist::text("A title"));
        let Some(Plist::Uid(url)) = metadata.get("URL") else { panic!("no URL") };
        let Some(Plist::Uid(url)) = objects[usize::from(*url)].get("NS.relative") else {
            panic!("no text")
        };
        assert_eq!(objects[usize::from(*url)], Plist::text("https://example.test/a"));
    }

    #[test]
    fn bundles_are_one_word() {
        for app in App::ALL {
            assert!(!app.bundle().contains(char::is_whitespace), "{app:?}");
            assert!(!app.payload().is_empty(), "{app:?}");
        }
    }
}
