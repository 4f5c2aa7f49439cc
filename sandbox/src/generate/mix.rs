//! A realistic mix of kinds. Percentages are of messages (a link's preview counts with its link);
//! they are a guess at a private person's file, whose exact shares nobody publishes.

use crate::chance::Chance;
use crate::chatdb::kinds::attachment::{Attachment, Parts};
use crate::chatdb::kinds::balloon::App;
use crate::chatdb::kinds::flag::{Filter, poll_vote, to_self, unknown_item};
use crate::chatdb::kinds::group::{GroupChange, group_event};
use crate::chatdb::kinds::reaction::{Reaction, Target, reaction};
use crate::chatdb::kinds::summary::{Content, Summary};
use crate::chatdb::kinds::text::{Animation, Mark, marked};
use crate::chatdb::kinds::{Author, Effect, Row, RowService};
use crate::chatdb::{Conversation, MacOs};
use crate::clock::AppleNs;
use crate::typedstream::AttributedText;

/// What a row is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    MarkedText,
    Link,
    Files,
    Reaction,
    Edited,
    UnsentWhole,
    UnsentPart,
    Reply,
    Effect,
    App,
    Audio,
    GroupEvent,
    Sms,
    Rcs,
    Satellite,
    Downgraded,
    SendLater,
    Filtered,
    Failed,
    Sticker,
    Deleted,
    ToSelf,
    CodeWithoutChat,
    PollVote,
    Unknown,
}

/// How many of ten thousand rows are of each kind, and the kind's name in the documentation.
pub(crate) const MIX: [(Kind, u64, &str); 26] = [
    (Kind::Text, 5_330, "plain text"),
    (Kind::MarkedText, 400, "mention, code, date, money, style or animation"),
    (Kind::Link, 300, "link with its preview"),
    (Kind::Files, 900, "one to three attachments"),
    (Kind::Reaction, 1_400, "reaction, one in ten removed"),
    (Kind::Edited, 150, "edited once to three times"),
    (Kind::UnsentWhole, 40, "unsent whole"),
    (Kind::UnsentPart, 20, "unsent in part"),
    (Kind::Reply, 400, "answer to an earlier message"),
    (Kind::Effect, 60, "effect"),
    (Kind::App, 100, "app"),
    (Kind::Audio, 60, "audio message with transcription"),
    (Kind::GroupEvent, 70, "group event"),
    (Kind::Sms, 400, "SMS"),
    (Kind::Rcs, 150, "RCS, one in ten in lower case"),
    (Kind::Satellite, 10, "satellite"),
    (Kind::Downgraded, 30, "downgraded to SMS"),
    (Kind::SendLater, 10, "Send Later, pending"),
    (Kind::Filtered, 40, "spam or filtered"),
    (Kind::Failed, 30, "failed"),
    (Kind::Sticker, 20, "sticker"),
    (Kind::Deleted, 30, "recently deleted"),
    (Kind::ToSelf, 20, "to oneself"),
    (Kind::CodeWithoutChat, 20, "one-time code without a chat"),
    (Kind::PollVote, 5, "vote in a poll"),
    (Kind::Unknown, 5, "kind that nobody knows"),
];

/// How many earlier messages can be reacted to or answered.
const RECENT: usize = 64;

#[derive(Debug, Clone)]
struct Earlier {
    guid: String,
    conversation: Conversation,
    text: String,
}

/// What to do with a row of the mix.
#[derive(Debug)]
pub(crate) enum Made {
    /// Into its chat, if it has one.
    Row(Box<Row>),
    /// Into Recently Deleted.
    Deleted(Box<Row>),
}

/// Makes rows.
#[derive(Debug)]
pub(crate) struct Mixer {
    chance: Chance,
    owner: String,
    macos: MacOs,
    chats: u64,
    recent: Vec<Earlier>,
    made: u64,
}

impl Mixer {
    pub(crate) fn new(seed: u64, owner: &str, macos: MacOs, chats: u64) -> Self {
        let recent = Vec::with_capacity(RECENT);
        let (chance, owner) = (Chance::new(seed), owner.to_owned());
        Self { chance, owner, macos, chats, recent, made: 0 }
    }

    /// The next row, or the two of a link.
    pub(crate) fn next(&mut self, date: AppleNs, text: &str) -> Vec<Made> {
        let mut pick = self.chance.below(10_000);
        let mut kind = Kind::Text;
        for (candidate, share, _) in MIX {
            kind = candidate;
            if pick < share {
                break;
            }
            pick -= share;
        }
        self.made += 1;
        self.rows(kind, date, text)
    }

    /// One chat in five is a group.
    fn conversation(&mut self) -> Conversation {
        let n = self.chance.below(self.chats);
        if n % 5 == 4 {
            let members = (0..4).map(|m| super::address(n.wrapping_add(m * 7))).collect();
            Conversation::Group { id: format!("chat{:08}", n + 1), members }
        } else {
            Conversation::Direct(super::address(n))
        }
    }

    fn author(&mut self, conversation: &Conversation) -> Author {
        if self.chance.below(3) == 0 {
            return Author::Me;
        }
        match conversation {
            Conversation::Direct(address) => Author::Other(address.clone()),
            Conversation::Group { members, .. } => {
                Author::Other(self.chance.one(members).cloned().unwrap_or_default())
            }
        }
    }

    /// A row of nobody in particular.
    fn row(&mut self, date: AppleNs) -> Row {
        let conversation = self.conversation();
        let author = self.author(&conversation);
        let read = i64::from(author != Author::Me);
        Row::new(author, conversation, date).guid(self.chance.guid()).with("is_read", read)
    }

    /// A text between two.
    fn direct(&mut self, date: AppleNs, text: &str) -> Row {
        let conversation = Conversation::Direct(super::address(self.chance.below(self.chats)));
        let author = self.author(&conversation);
        Row::text(author, conversation, date, text).guid(self.chance.guid())
    }

    /// An own text.
    fn own(&mut self, date: AppleNs, text: &str) -> Row {
        let conversation = Conversation::Direct(super::address(self.chance.below(self.chats)));
        Row::text(Author::Me, conversation, date, text).guid(self.chance.guid())
    }

    fn file(&mut self, name: &str) -> Attachment {
        let folder = format!("{:02x}/{:02}", self.chance.below(256), self.chance.below(16));
        let guid = self.chance.guid();
        let path = format!("~/Library/Messages/Attachments/{folder}/{guid}/{name}");
        let file = Attachment::new(path, 1_000 + self.chance.below(4_000_000));
        // One in twelve is not downloaded.
        if self.chance.below(12) == 0 { file.waiting() } else { file }
    }

    fn earlier(&mut self) -> Option<Earlier> {
        self.chance.one(&self.recent).cloned()
    }

    fn remember(&mut self, row: &Row, text: &str) {
        let Some(conversation) = row.conversation.clone() else { return };
        let earlier = Earlier { guid: row.guid.clone(), conversation, text: text.to_owned() };
        if self.recent.len() < RECENT {
            self.recent.push(earlier);
        } else {
            let place = usize::try_from(self.made).unwrap_or_default() % RECENT;
            if let Some(old) = self.recent.get_mut(place) {
                *old = earlier;
            }
        }
    }

    fn rows(&mut self, kind: Kind, date: AppleNs, text: &str) -> Vec<Made> {
        let row = match kind {
            Kind::Text => {
                let row = self.row(date).body(AttributedText::with_links(text));
                self.remember(&row, text);
                row
            }
            Kind::MarkedText => self.marked(date, text),
            Kind::Link => {
                let url = format!("https://example.test/{}", self.made);
                let row = self.row(date).body(AttributedText::with_links(&url));
                let preview = Row { date: date.minus_ms(-800), ..row.clone() }
                    .guid(self.chance.guid())
                    .url_preview(&url, text);
                return vec![Made::Row(Box::new(row)), Made::Row(Box::new(preview))];
            }
            Kind::Files => {
                let row = self.row(date);
                let mut parts = Parts::of(&row.guid);
                if self.chance.below(3) == 0 {
                    parts = parts.text(text);
                }
                for n in 0..=self.chance.below(3) {
                    let names = ["IMG.heic", "photo.jpeg", "clip.mov", "paper.pdf", "odd.xyz"];
                    let name = self.chance.one(&names).copied().unwrap_or("a.png");
                    let file = self.file(&format!("{n}-{name}"));
                    parts = parts.file(file);
                }
                row.parts(parts)
            }
            Kind::Reaction => return self.reaction(date, text),
            Kind::Edited | Kind::UnsentWhole | Kind::UnsentPart => self.changed(kind, date, text),
            Kind::Reply => {
                let row = match self.earlier() {
                    Some(to) => {
                        let author = self.author(&to.conversation);
                        let len = to.text.encode_utf16().count();
                        Row::new(author, to.conversation, date)
                            .guid(self.chance.guid())
                            .replying_to(&to.guid, 0, 0, len)
                    }
                    None => self.row(date),
                };
                row.body(AttributedText::plain(text))
            }
            Kind::Effect => {
                let effect = self.chance.one(&Effect::ALL).copied().unwrap_or(Effect::Slam);
                self.row(date).body(AttributedText::plain(text)).with_effect(effect)
            }
            Kind::App => {
                let app = self.chance.one(&App::ALL).copied().unwrap_or(App::Handwriting);
                self.row(date).app(app)
            }
            Kind::Audio => {
                let (row, file) = (self.row(date), self.file("Audio Message.caf"));
                row.audio(file, text)
            }
            Kind::GroupEvent => self.group_event(date, text),
            Kind::Sms => self.direct(date, text).over(RowService::Sms),
            Kind::Rcs if self.chance.below(10) == 0 => {
                self.direct(date, text).over(RowService::RcsLower)
            }
            Kind::Rcs => self.direct(date, text).over(RowService::Rcs),
            Kind::Satellite => self.direct(date, text).by_satellite(),
            Kind::Downgraded => self.own(date, text).downgraded(),
            Kind::SendLater => self.own(date, text).scheduled(date),
            Kind::Failed => {
                let row = self.own(date, text);
                row.with("is_sent", 0).with("is_delivered", 0).with("error", 22)
            }
            Kind::Filtered => {
                let filters =
                    [Filter::Spam, Filter::Junk, Filter::Promotion(1), Filter::Transaction(2)];
                let filter = self.chance.one(&filters).copied().unwrap_or(Filter::Spam);
                let from = super::address(self.chance.below(self.chats));
                Row::text(Author::Other(from.clone()), Conversation::Direct(from), date, text)
                    .guid(self.chance.guid())
                    .filtered(filter)
            }
            Kind::Sticker => {
                let (row, sticker) = (self.row(date), self.file("sticker.heic"));
                match self.earlier() {
                    Some(on) => {
                        let row = Row { conversation: Some(on.conversation), ..row };
                        row.sticker_on(&Target::Part(0, on.guid), sticker)
                    }
                    None => row.body(AttributedText::plain(text)),
                }
            }
            Kind::Deleted => {
                let row = self.row(date).body(AttributedText::plain(text));
                return vec![Made::Deleted(Box::new(row))];
            }
            Kind::ToSelf => {
                let own = self.chance.below(2) == 0;
                to_self(&self.owner, date, text, own).guid(self.chance.guid())
            }
            Kind::CodeWithoutChat => {
                let code = format!("{:06}", self.chance.below(1_000_000));
                let body = marked(&format!("Your code is {code}"), &[(&code, Mark::OneTimeCode)]);
                let from = Conversation::Direct("262966".to_owned());
                Row::new(Author::Other("262966".to_owned()), from, date)
                    .guid(self.chance.guid())
                    .body(body)
                    .over(RowService::Sms)
                    .without_chat()
            }
            Kind::PollVote => {
                let conversation = self.conversation();
                let author = self.author(&conversation);
                let poll = self.chance.guid();
                poll_vote(author, conversation, date, &poll).guid(self.chance.guid())
            }
            Kind::Unknown => {
                let conversation = self.conversation();
                let author = self.author(&conversation);
                unknown_item(author, conversation, date).guid(self.chance.guid())
            }
        };
        vec![Made::Row(Box::new(row))]
    }

    fn marked(&mut self, date: AppleNs, text: &str) -> Row {
        let code = format!("{:06}", self.chance.below(1_000_000));
        let text = format!("{text} {code}");
        let word = text.split_whitespace().next().unwrap_or_default().to_owned();
        let mention = Mark::Mention(super::address(self.chance.below(self.chats)));
        let animation = self.chance.one(&Animation::ALL).copied().unwrap_or(Animation::Big);
        let marks = [
            (word.as_str(), mention),
            (code.as_str(), Mark::OneTimeCode),
            (code.as_str(), Mark::Detected),
            (code.as_str(), Mark::CalendarEvent),
            (code.as_str(), Mark::Money),
            (word.as_str(), Mark::Address),
            (word.as_str(), Mark::Bold),
            (word.as_str(), Mark::Italic),
            (word.as_str(), Mark::Underline),
            (word.as_str(), Mark::Strikethrough),
            (word.as_str(), Mark::Animated(animation)),
        ];
        let mark = self.chance.one(&marks).cloned();
        self.row(date).body(marked(&text, mark.as_slice()))
    }

    fn reaction(&mut self, date: AppleNs, text: &str) -> Vec<Made> {
        let Some(to) = self.earlier() else { return self.rows(Kind::Text, date, text) };
        let kind = match self.chance.below(10) {
            0 => Reaction::Emoji("🦀".to_owned()),
            1 => Reaction::Sticker(self.file("sticker.png")),
            _ => self.chance.one(&Reaction::CLASSIC).cloned().unwrap_or(Reaction::Love),
        };
        let author = self.author(&to.conversation);
        let target = Target::Part(0, to.guid);
        let added = self.chance.below(10) != 0;
        let sticker = match &kind {
            Reaction::Sticker(sticker) if added => Some(sticker.clone().sticker()),
            Reaction::Sticker(_)
            | Reaction::Love
            | Reaction::Like
            | Reaction::Dislike
            | Reaction::Laugh
            | Reaction::Emphasise
            | Reaction::Question
            | Reaction::Emoji(_) => None,
        };
        let row = reaction((author, to.conversation, date), &kind, &target, &to.text, added);
        let row = row.guid(self.chance.guid());
        let row = match sticker {
            // The attachment's guid comes from that of its message.
            Some(sticker) => {
                let parts = Parts::of(&row.guid).file(sticker);
                row.parts(parts)
            }
            None => row,
        };
        vec![Made::Row(Box::new(row))]
    }

    fn changed(&mut self, kind: Kind, date: AppleNs, text: &str) -> Row {
        let row = self.row(date);
        let mut parts = Parts::of(&row.guid).text(text);
        if kind == Kind::UnsentPart {
            parts = parts.file(self.file("IMG.heic"));
        }
        let (attributed, attachments) = parts.finish();
        let mut content = Content { text: attributed, summary: Summary::default() };
        let later = |n: u64| date.minus_ms(-20_000 - 20_000 * i64::try_from(n).unwrap_or(0));
        let result = if kind == Kind::UnsentWhole {
            content.unsent_whole()
        } else if kind == Kind::UnsentPart {
            content.unsent(1)
        } else {
            let times = 1 + self.chance.below(3);
            (0..times).try_fold(content.clone(), |content, n| {
                content.edited(0, &format!("{text} ({n})"), (date, later(n)))
            })
        };
        // Each of these changes a part that was put there above.
        if let Ok(changed) = result {
            content = changed;
        }
        let empty = content.text.text().is_empty();
        let summary = content.summary.encode();
        let mut row = row.body(content.text).with("message_summary_info", summary);
        row.attachments = attachments;
        if empty {
            row = row.bare_text("").with("part_count", 0);
            if self.macos >= MacOs::Tahoe {
                row = row.with("is_empty", 1);
            }
        }
        if self.macos == MacOs::V27 { row } else { row.with("date_edited", later(0).0) }
    }

    fn group_event(&mut self, date: AppleNs, text: &str) -> Row {
        let n = self.chance.below(self.chats) / 5 * 5 + 4;
        let members: Vec<_> = (0..4).map(|m| super::address(n.wrapping_add(m * 7))).collect();
        let conversation = Conversation::Group { id: format!("chat{:08}", n + 1), members };
        let author = self.author(&conversation);
        let who = super::address(self.chance.below(self.chats));
        let changes = [
            GroupChange::Joined(who.clone()),
            GroupChange::Removed(who),
            GroupChange::Left,
            GroupChange::Renamed(text.to_owned()),
            GroupChange::PhotoSet,
            GroupChange::PhotoRemoved,
            GroupChange::BackgroundSet,
            GroupChange::BackgroundRemoved,
            GroupChange::NumberChanged,
        ];
        let change = self.chance.one(&changes).cloned().unwrap_or(GroupChange::Left);
        group_event(author, conversation, date, &change).guid(self.chance.guid())
    }
}
