//! `payload_data` of an app's message → what stands on its balloon.
//!
//! The column is an `NSKeyedArchiver` archive: a property list with a table `$objects`, whose
//! members refer to one another by number (the number is a UID), and `$top`, where it begins. Link
//! previews keep an `LPLinkMetadata` there, extensions a dictionary with the keys `an` (the app's
//! name), `ldtext` (what a device without the app shows), `userInfo` and `URL`. Other apps (drawings,
//! handwriting) keep formats of their own; of those nothing is said but their bundle id.

use protocol::pipe::{App, LinkPreview};

use crate::bplist::{Bplist, Node};

/// Balloon of link previews.
pub const LINK_BALLOON: &str = "com.apple.messages.URLBalloonProvider";
/// Longest text taken out of a payload, in bytes; titles and captions are a line or two.
pub const TEXT_BYTES_MAX: usize = 4 * 1024;
/// Most keys of a dictionary that are looked at.
const KEYS_MAX: usize = 256;

/// The objects of a keyed archive.
#[derive(Clone, Copy)]
struct Archive<'p, 'b> {
    objects: Node<'p, 'b>,
}

impl<'p, 'b> Archive<'p, 'b> {
    fn root(plist: &'p Bplist<'b>) -> Option<(Self, Node<'p, 'b>)> {
        let top = plist.root()?;
        let archive = Self { objects: top.get("$objects")? };
        let (_, root) = top.get("$top")?.entries().next()?;
        Some((archive, archive.follow(root)?))
    }

    /// The object that a reference names; anything else stands for itself.
    fn follow(self, node: Node<'p, 'b>) -> Option<Node<'p, 'b>> {
        match node.uid() {
            Some(0) => None,
            Some(number) => self.objects.item(number),
            None => Some(node),
        }
    }

    /// A member of an object, or a key of an archived dictionary.
    fn get(self, object: Node<'p, 'b>, key: &str) -> Option<Node<'p, 'b>> {
        if let Some(member) = object.get(key) {
            return self.follow(member);
        }
        let keys = object.get("NS.keys")?;
        let at = keys
            .items()
            .take(KEYS_MAX)
            .position(|name| self.follow(name).is_some_and(|name| name.is_text(key)))?;
        self.follow(object.get("NS.objects")?.item(at)?)
    }

    /// A text: a string, an archived string, or an URL.
    fn text(self, object: Node<'p, 'b>, key: &str) -> Option<String> {
        let member = self.get(object, key)?;
        let text = member
            .text()
            .or_else(|| self.get(member, "NS.string")?.text())
            .or_else(|| self.url(member))?;
        let text = text.trim();
        (!text.is_empty()).then(|| cut(text))
    }

    /// An `NSURL`: a relative part, and sometimes what it is relative to.
    fn url(self, url: Node<'p, 'b>) -> Option<String> {
        let relative = self.get(url, "NS.relative")?.text()?;
        let base = self.get(url, "NS.base").and_then(|base| self.get(base, "NS.relative")?.text());
        Some(match base {
            Some(base) if !relative.contains("://") => format!("{base}{relative}"),
            Some(_) | None => relative,
        })
    }
}

fn cut(text: &str) -> String {
    text.get(..text.floor_char_boundary(TEXT_BYTES_MAX)).unwrap_or_default().to_owned()
}

/// What a link's preview shows; none while it is a placeholder, or where nothing is said.
pub fn link_preview(blob: &[u8]) -> Option<LinkPreview> {
    let plist = Bplist::parse(blob).ok()?;
    let (archive, root) = Archive::root(&plist)?;
    let metadata = archive.get(root, "richLinkMetadata").unwrap_or(root);
    let text = |key| archive.text(metadata, key);
    let url = text("originalURL").or_else(|| text("URL"))?;
    let title = text("title");
    // Messages writes the row before it has loaded the page, and updates it then.
    let placeholder = archive.get(root, "richLinkIsPlaceholder").and_then(|flag| flag.boolean());
    if placeholder == Some(true) && title.is_none() {
        return None;
    }
    Some(LinkPreview { url, title, summary: text("summary"), site: text("siteName") })
}

/// What an app's message says. `id` is its bundle id.
pub fn app(id: &str, blob: &[u8]) -> App {
    let mut app = App { id: id.to_owned(), ..App::default() };
    let Ok(plist) = Bplist::parse(blob) else { return app };
    let Some((archive, root)) = Archive::root(&plist) else { return app };
    app.name = archive.text(root, "an");
    app.url = archive.text(root, "URL");
    app.caption = archive
        .get(root, "userInfo")
        .and_then(|info| archive.text(info, "caption"))
        .or_else(|| archive.text(root, "ldtext"));
    app
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rusqlite::types::Value as Sql;
    use sandbox::chatdb::Conversation;
    use sandbox::chatdb::kinds::balloon::App as Written;
    use sandbox::chatdb::kinds::{Author, Row};
    use sandbox::clock::AppleNs;

    fn payload(row: &Row) -> Vec<u8> {
        match row.columns().get("payload_data") {
            Some(Sql::Blob(blob)) => blob.clone(),
            other => panic!("no payload: {other:?}"),
        }
    }

    fn row() -> Row {
        let conversation = Conversation::Direct("+12025550101".to_owned());
        Row::new(Author::Me, conversation, AppleNs(1))
    }

    #[test]
    fn a_link_has_its_address_and_title() {
        let row = row().url_preview("https://example.test/a", "A title");
        let preview = link_preview(&payload(&row)).unwrap();
        assert_eq!(preview.url, "https://example.test/a");
        assert_eq!(preview.title.as_deref(), Some("A title"));
        assert_eq!(preview.summary, None);
        let placeholder = row.placeholder("https://example.test/a");
        assert_eq!(link_preview(&payload(&placeholder)), None, "nothing was loaded yet");
    }

    #[test]
    fn an_extension_has_its_name_and_caption() {
        let said = app("x", &payload(&row().app(Written::ApplePay)));
        assert_eq!(said.name.as_deref(), Some("Apple Pay"));
        assert_eq!(said.caption.as_deref(), Some("$12.50"));
    }

    #[test]
    fn apps_with_formats_of_their_own_are_named_only() {
        for written in [Written::DigitalTouch, Written::Handwriting] {
            let blob = payload(&row().app(written));
            let said = app(written.bundle(), &blob);
            assert_eq!(said, App { id: written.bundle().to_owned(), ..App::default() });
            assert_eq!(link_preview(&blob), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            drop((app("x", &bytes), link_preview(&bytes)));
        }

        #[test]
        fn no_damaged_archive_makes_it_panic(at in any::<prop::sample::Index>(), byte: u8) {
            let mut blob = payload(&row().url_preview("https://example.test/a", "A title"));
            let at = at.index(blob.len());
            blob[at] = byte;
            drop((app("x", &blob), link_preview(&blob)));
        }
    }
}
