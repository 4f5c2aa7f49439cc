//! What does an inbound text ask for: to be left alone, to be written to again, for help? Pure.
//!
//! Two tiers. A whole message that is a keyword is one beyond doubt. A short message with a phrase that a reasonable
//! person reads as a revocation (47 CFR 64.1200(a)(10)) counts as well and is flagged, so that a person may look at it.
//! "stop by at 5" is no opt-out, and a tapback on "Reply STOP to opt out" is none either. The words are the union of
//! those in the rule, the CTIA handbook and what the large providers honour, because a keyword too many costs a message
//! and one too few costs a law suit.

use icu_normalizer::DecomposingNormalizerBorrowed;

/// Words that end all writing, in folded form without spaces.
const STOP: [&str; 11] = [
    "stop",
    "stopall",
    "quit",
    "end",
    "revoke",
    "optout",
    "cancel",
    "unsubscribe",
    "remove",
    "arret",
    "td",
];

/// Words that lift an earlier opt-out. "yes" is deliberately absent: it is an answer to too many questions.
const START: [&str; 4] = ["start", "unstop", "optin", "subscribe"];

/// Words that ask who writes.
const HELP: [&str; 2] = ["help", "info"];

/// No keyword is longer, spaces and decoration included; longer texts are not even folded.
const KEYWORD_CHARS_MAX: usize = 64;

/// Phrases count in short messages alone: in a long one they are part of a story.
const PHRASE_WORDS_MAX: usize = 12;
/// The longest text whose words are counted, in characters.
const PHRASE_CHARS_MAX: usize = 400;

/// Words of courtesy and impatience around a keyword: with them it is as clear as without.
const AROUND: [&str; 12] = [
    "please", "pls", "plz", "kindly", "thanks", "thx", "thank", "you", "now", "ok", "okay", "just",
];

/// What may follow "stop" at the beginning for it to be a wish.
const AFTER_STOP: [&str; 10] =
    ["it", "now", "please", "pls", "texting", "messaging", "sending", "contacting", "all", "this"];

/// Phrases that are a revocation wherever they stand in a short message. A later word of "*" is any of the words in
/// [`WRITING`].
const PHRASES: [&[&str]; 19] = [
    &["stop", "*"],
    &["quit", "*"],
    &["unsubscribe", "me"],
    &["remove", "me"],
    &["take", "me", "off"],
    &["do", "not", "text"],
    &["do", "not", "message"],
    &["do", "not", "contact"],
    &["dont", "text"],
    &["dont", "message"],
    &["dont", "contact"],
    &["no", "more", "texts"],
    &["no", "more", "messages"],
    &["opt", "me", "out"],
    &["i", "opt", "out"],
    &["lose", "my", "number"],
    &["leave", "me", "alone"],
    &["i", "revoke", "consent"],
    &["i", "revoke", "my", "consent"],
];
const WRITING: [&str; 4] = ["texting", "messaging", "sending", "contacting"];

/// The phrases above that begin with one of these are turned round by a negation before them; the others are said about
/// what the sender wants, whatever stands before: "if you do not leave me alone".
const TURNED_ROUND: [&str; 2] = ["stop", "quit"];

/// Words of a condition or a reproach. A negation behind one turns nothing round: "if you don't stop texting me".
const CONDITIONS: [&str; 4] = ["if", "unless", "why", "until"];

/// Before "stop" and "quit" these turn the phrase round: "don't stop texting me".
const NEGATIONS: [&str; 9] =
    ["dont", "not", "never", "cant", "cannot", "wont", "didnt", "couldnt", "without"];

/// How Messages.app words a reaction when it has to send it as text.
const TAPBACK_OPENINGS: [&str; 8] = [
    "liked ",
    "loved ",
    "disliked ",
    "laughed at ",
    "emphasized ",
    "questioned ",
    "reacted ",
    "removed a",
];

/// What an inbound text asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// To be left alone, by a keyword.
    Stop,
    /// To be left alone, in words that leave some doubt: honoured, and looked at by a person.
    StopInferred,
    /// To be written to again.
    Start,
    /// Who writes, and how to be left alone.
    Help,
    /// Perhaps to be left alone, but not clearly so: nothing follows but that a person may look at it.
    PerhapsStop,
}

impl Asks {
    /// Whether nothing may be sent from now on.
    pub const fn is_stop(self) -> bool {
        matches!(self, Self::Stop | Self::StopInferred)
    }
}

/// Words that a tenant adds to ours.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Words<'a> {
    /// That end all writing.
    pub stop: &'a [String],
    /// That lift an opt-out.
    pub start: &'a [String],
}

/// What `text` asks for, if anything.
pub fn asks(text: &str, words: Words<'_>) -> Option<Asks> {
    // Invisible characters are dropped before measuring: they must not hide a keyword.
    let seen = text.chars().filter(|c| !is_invisible(*c)).count();
    if text.chars().filter(|c| !is_invisible(*c) && !c.is_whitespace()).count() <= KEYWORD_CHARS_MAX
    {
        let folded = fold(text);
        if is_tapback(&folded) {
            return None;
        }
        let joined = joined(&folded);
        let own = |words: &[String]| {
            !joined.is_empty() && words.iter().any(|word| self::joined(&fold(word)) == joined)
        };
        if STOP.contains(&joined.as_str()) || own(words.stop) {
            return Some(Asks::Stop);
        }
        if START.contains(&joined.as_str()) || own(words.start) {
            return Some(Asks::Start);
        }
        if HELP.contains(&joined.as_str()) {
            return Some(Asks::Help);
        }
    }
    if seen > PHRASE_CHARS_MAX {
        return None;
    }
    let folded = fold(text);
    if is_tapback(&folded) { None } else { phrase(&folded) }
}

/// Tier 2: what a short sentence asks for.
fn phrase(folded: &str) -> Option<Asks> {
    let words = words(folded);
    if words.is_empty() || words.len() > PHRASE_WORDS_MAX {
        return None;
    }
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // An exclamation mark ends the wish, whatever is said behind it.
    let exclaimed =
        folded.strip_prefix("stop").is_some_and(|rest| rest.trim_start().starts_with('!'));
    let wish = exclaimed
        || words.first() == Some(&"stop")
            && words.get(1).is_some_and(|second| AFTER_STOP.contains(second));
    let has = |phrase: &[&str]| {
        words.windows(phrase.len()).enumerate().any(|(at, window)| {
            let same = window
                .iter()
                .zip(phrase)
                .all(|(word, wanted)| word == wanted || (*wanted == "*" && WRITING.contains(word)));
            same && !(phrase.first().is_some_and(|first| TURNED_ROUND.contains(first))
                && negated(words.get(..at).unwrap_or_default()))
        })
    };
    if wish || is_wrapped(&words) || PHRASES.iter().any(|phrase| has(phrase)) {
        return Some(Asks::StopInferred);
    }
    let starts = words.first().is_some_and(|first| STOP.contains(first)) && words.len() > 1;
    let mentions = words.contains(&"unsubscribe") || has(&["opt", "out"]);
    // Digits behind STOP are a code of somebody's own.
    let code = words.get(1).is_some_and(|second| second.bytes().all(|b| b.is_ascii_digit()));
    ((starts && !code) || mentions).then_some(Asks::PerhapsStop)
}

/// A keyword with courtesy around it, or said again and again.
fn is_wrapped(words: &[&str]) -> bool {
    let around = |word: &&&str| AROUND.contains(*word);
    let before = words.iter().take_while(around).count();
    let behind = words.iter().rev().take_while(around).count();
    let core = words.get(before..words.len().saturating_sub(behind)).unwrap_or_default();
    core.first().is_some_and(|first| {
        STOP.contains(&core.concat().as_str())
            || (STOP.contains(first) && core.iter().all(|word| word == first))
    })
}

/// Whether the words before "stop" turn it round.
fn negated(before: &[&str]) -> bool {
    before.last().is_some_and(|word| NEGATIONS.contains(word))
        && !before.iter().any(|word| CONDITIONS.contains(word))
}

/// The words of a folded text. An apostrophe is no gap: "don't" is one word.
fn words(folded: &str) -> Vec<String> {
    folded
        .split(|c: char| !c.is_alphanumeric() && !matches!(c, '\'' | '’' | 'ʼ' | '`'))
        .map(|word| word.chars().filter(|c| c.is_alphanumeric()).collect::<String>())
        .filter(|word| !word.is_empty())
        .collect()
}

fn joined(folded: &str) -> String {
    folded.chars().filter(|c| !matches!(c, ' ' | '-' | '_' | '.')).collect()
}

/// A reaction that arrived as text: an opening word and a quoted text.
fn is_tapback(folded: &str) -> bool {
    TAPBACK_OPENINGS.iter().any(|opening| folded.starts_with(opening))
        && folded.contains(['“', '”', '"', '«', '»'])
}

/// Compatibility forms (full-width, styled, circled letters) as plain ones, lower case, diacritics and invisible
/// characters dropped, punctuation, quotes and symbols stripped from both ends, white space collapsed.
fn fold(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    let mut gap = false;
    for c in DecomposingNormalizerBorrowed::new_nfkd().normalize_iter(text.chars()) {
        if is_invisible(c) {
            continue;
        }
        if c.is_whitespace() {
            gap = true;
            continue;
        }
        if gap && !folded.is_empty() {
            folded.push(' ');
        }
        gap = false;
        folded.extend(c.to_lowercase().filter(|c| !is_invisible(*c)));
    }
    // A tapback begins with its word and ends with a quote, which must not be stripped before it was seen.
    let trimmed = folded.trim_start_matches(|c: char| !c.is_alphanumeric());
    if is_tapback(trimmed) {
        return trimmed.to_owned();
    }
    trimmed.trim_end_matches(|c: char| !c.is_alphanumeric()).to_owned()
}

/// Characters that are not seen: zero-width, directional and other controls, variation selectors, and the
/// combining marks that a decomposed letter carries.
pub(super) fn is_invisible(c: char) -> bool {
    (c.is_control() && !c.is_whitespace())
        || matches!(u32::from(c),
            0x00AD | 0x034F | 0x061C | 0x115F..=0x1160 | 0x17B4..=0x17B5 | 0x180B..=0x180F
            | 0x1AB0..=0x1AFF | 0x1DC0..=0x1DFF | 0x200B..=0x200F | 0x202A..=0x202E | 0x2060..=0x206F
            | 0x20D0..=0x20FF | 0x3164 | 0xFE00..=0xFE0F | 0xFE20..=0xFE2F | 0xFEFF | 0xFFA0 | 0xFFFC
            | 0x0300..=0x036F | 0xE0000..=0xE0FFF)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OURS: Words<'static> = Words { stop: &[], start: &[] };

    #[test]
    fn whole_messages_that_are_a_keyword_opt_out() {
        for text in [
            "Stop",
            "STOP.",
            " stop ",
            "“STOP”",
            "S\u{200B}TOP",
            "ＳＴＯＰ",
            "Opt-Out",
            "opt out",
            "Arrêt",
            "Arre\u{302}t",
            "unsubscribe 🙏",
            "stop!!!",
            "STOP ALL",
            "STOPALL",
            "\"stop\"",
            "s.t.o.p",
            "cancel",
            "End",
            "quit",
            "revoke",
            "remove",
            "TD",
            "Stop ❤️",
            "\u{202E}stop\u{202C}",
            "𝐒𝐓𝐎𝐏",
            "\n\tstop\r\n",
            "(stop)",
            "stop\u{FE0F}",
            "Ⓢⓣⓞⓟ",
        ] {
            assert_eq!(asks(text, OURS), Some(Asks::Stop), "{text:?}");
        }
    }

    #[test]
    fn whole_messages_that_are_a_keyword_opt_in() {
        for text in ["START", "start.", "Unstop", "un-stop", "opt in", "subscribe"] {
            assert_eq!(asks(text, OURS), Some(Asks::Start), "{text:?}");
        }
    }

    #[test]
    fn short_wishes_opt_out_and_are_flagged() {
        for text in [
            "please stop texting me",
            "Stop texting me!!",
            "STOP IT",
            "stop please",
            "Stop now.",
            "quit messaging this number",
            "remove me from your list",
            "Remove me",
            "take me off your list please",
            "unsubscribe me",
            "Don't text me again",
            "don’t message me",
            "do not contact me",
            "dont text",
            "No more texts",
            "opt me out",
            "I opt out",
            "lose my number",
            "LEAVE ME ALONE",
            "I revoke my consent",
            "i revoke consent",
            "I asked you to stop contacting me",
            "Ｓｔｏｐ texting me",
            "stop sending these, thanks",
            "Please stop",
            "pls stop!",
            "ok stop",
            "just STOP",
            "stop thanks",
            "Stop, thank you.",
            "STOP STOP STOP",
            "Stop. Stop.",
            "please unsubscribe",
            "Unsubscribe please",
            "opt out please",
            "please opt-out",
            "Please, remove. Thanks!",
            "STOP! I don't want these",
            "Stop ! no",
            "stop!!! who is this",
            "ＳＴＯＰ！ enough",
            "If you do not remove me from your list I report you",
            "if you do not leave me alone",
            "why not take me off your list",
            "I will not ask again, do not text",
            "If you don't stop texting me I will sue",
            "why not stop messaging me",
            // Said without exception: who is doubted is asked by a person, not written to meanwhile.
            "please don't remove me",
            "never leave me alone",
        ] {
            assert_eq!(asks(text, OURS), Some(Asks::StopInferred), "{text:?}");
        }
    }

    #[test]
    fn what_only_sounds_like_it_is_shown_to_a_person() {
        for text in [
            "cancel my appointment",
            "cancel my appt",
            "stop by at 5",
            "Quit smoking today?",
            "opt out of the tour, anyone?",
            "how do I unsubscribe",
            "I did not opt out",
        ] {
            assert_eq!(asks(text, OURS), Some(Asks::PerhapsStop), "{text:?}");
        }
    }

    #[test]
    fn sentences_and_tapbacks_ask_for_nothing() {
        for text in [
            "",
            " ",
            "🙏",
            "Liked “Reply STOP to opt out”",
            "Loved “stop”",
            "Liked \"stop\"",
            "Removed a heart from “stop”",
            "Reacted 🛑 to “STOP”",
            "Liked “please stop texting me”",
            "got to STOP this bill",
            "STOP 12345",
            "the end",
            "can't stop laughing",
            "don't stop texting me",
            "I can’t stop texting you",
            "don't quit sending these",
            "yes",
            "stopp",
            "stopping by! 5 ok",
            "started",
            "don't stop",
            "please don't stop",
            "don't stop now please",
            "thank you",
            "ok thanks",
            "please start",
            "I told him that he should stop texting me and then we went out for dinner",
        ] {
            assert_eq!(asks(text, OURS), None, "{text:?}");
        }
    }

    #[test]
    fn whoever_asks_for_help_is_heard() {
        for text in ["HELP", "info", "Help!", " help? "] {
            assert_eq!(asks(text, OURS), Some(Asks::Help), "{text:?}");
        }
        for text in ["help me move", "information"] {
            assert_eq!(asks(text, OURS), None, "{text:?}");
        }
    }

    #[test]
    fn a_tenant_adds_words_and_takes_none_away() {
        let (stop, start) = (["Alto".to_owned(), "no más".to_owned()], ["yes".to_owned()]);
        let words = Words { stop: &stop, start: &start };
        for text in ["ALTO", "alto!", "No Mas", "no-más", "stop"] {
            assert_eq!(asks(text, words), Some(Asks::Stop), "{text:?}");
        }
        assert_eq!(asks("Yes.", words), Some(Asks::Start));
        assert_eq!(asks("alto there", words), None);
        // A word of nothing but punctuation matches nothing.
        let empty = [" . ".to_owned()];
        assert_eq!(asks("🙏", Words { stop: &empty, start: &[] }), None);
    }

    #[test]
    fn invisible_padding_does_not_hide_a_keyword() {
        let padded = format!("{0}stop{0}", "\u{200B}".repeat(5_000));
        assert_eq!(asks(&padded, OURS), Some(Asks::Stop));
    }

    #[test]
    fn a_long_text_is_not_a_keyword() {
        assert_eq!(asks(&"stop ".repeat(4_000), OURS), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _verdict = asks(&text, OURS);
        }

        #[test]
        fn case_and_decoration_do_not_matter(
            word in prop::sample::select(STOP.to_vec()), upper: bool,
            before in "[ \u{200B}\"“(!.]{0,5}", after in "[ \u{FE0F}\"”)!.,]{0,5}",
        ) {
            let word = if upper { word.to_uppercase() } else { word.to_owned() };
            prop_assert_eq!(asks(&format!("{before}{word}{after}"), OURS), Some(Asks::Stop));
        }

        #[test]
        fn another_word_beside_the_keyword_makes_it_a_sentence(
            word in prop::sample::select(STOP.to_vec()), other in "[b-df-hj-m]{3,8}",
        ) {
            let left = format!("{word} {other}");
            let right = format!("{other} {word}");
            prop_assert!(asks(&left, OURS) != Some(Asks::Stop));
            prop_assert!(asks(&right, OURS) != Some(Asks::Stop));
        }
    }
}
