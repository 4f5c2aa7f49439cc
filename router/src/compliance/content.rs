//! What a text is made of, and whether it may be sent as it stands. Pure; the same for a single message, a batch and a
//! template.

use std::fmt::Write as _;

use icu_normalizer::DecomposingNormalizerBorrowed;
use protocol::api::{ContentReport, Encoding};

/// Characters of the GSM 7-bit default alphabet (3GPP TS 23.038, 6.2.1) beside ASCII letters and digits.
const GSM_OTHERS: &str = "@£$¥èéùìòÇ\nØø\rÅåΔ_ΦΓΛΩΠΨΣΘΞÆæßÉ !\"#¤%&'()*+,-./:;<=>?¡ÄÖÑÜ§¿äöñüà";
/// Characters of its extension table: two septets each.
const GSM_EXTENDED: &str = "^{}\\[~]|€\u{c}";

/// Septets, and UTF-16 units, that one SMS holds alone and as part of several (the rest is the concatenation header).
const GSM_ALONE: usize = 160;
const GSM_EACH: usize = 153;
const UCS2_ALONE: usize = 70;
const UCS2_EACH: usize = 67;

/// What may not be in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules<'a> {
    /// Words and phrases of the tenant.
    pub blocked: &'a [String],
    /// Words and phrases of the operator, for everybody.
    pub blocked_for_all: &'a [String],
    /// Whether the first message to somebody may carry a link.
    pub first_message_links: bool,
    /// SMS segments at most.
    pub segments_max: Option<u32>,
}

/// Why a text may not be sent. The words are for people; the text itself is never repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objection {
    /// It has a word that the tenant has blocked.
    Blocked,
    /// It has a word that the operator has blocked.
    BlockedForAll,
    /// It has a link and is the first message to its recipient.
    LinkInFirstMessage,
    /// It would be more SMS segments than allowed.
    TooManySegments,
}

impl Objection {
    /// The stable detail of the reason `content`.
    pub const fn detail(self) -> &'static str {
        match self {
            Self::Blocked => "blocked_words",
            Self::BlockedForAll => "blocked_words_for_all",
            Self::LinkInFirstMessage => "link_in_first_message",
            Self::TooManySegments => "too_many_segments",
        }
    }
}

/// How the text would travel as SMS.
pub fn report(text: &str) -> ContentReport {
    let (encoding, segments) = travels(text);
    ContentReport {
        characters: u32::try_from(text.chars().count()).unwrap_or(u32::MAX),
        encoding,
        segments,
        links: has_link(text),
    }
}

/// How many segments the text would have as SMS.
pub fn segments(text: &str) -> u32 {
    travels(text).1
}

fn travels(text: &str) -> (Encoding, u32) {
    let mut septets = Some(0_usize);
    for c in text.chars() {
        let more = if c.is_ascii_alphanumeric() || GSM_OTHERS.contains(c) {
            Some(1)
        } else if GSM_EXTENDED.contains(c) {
            Some(2)
        } else {
            None
        };
        septets = septets.zip(more).map(|(all, more)| all + more);
    }
    let (encoding, units, alone, each) = match septets {
        Some(septets) => (Encoding::Gsm7, septets, GSM_ALONE, GSM_EACH),
        None => (Encoding::Ucs2, text.encode_utf16().count(), UCS2_ALONE, UCS2_EACH),
    };
    let segments = if units <= alone { 1 } else { units.div_ceil(each) };
    (encoding, u32::try_from(segments).unwrap_or(u32::MAX))
}

/// The first rule that the text breaks.
pub fn objection(text: &str, rules: &Rules<'_>, first_message: bool) -> Option<Objection> {
    let folded = folded(text);
    if has_any(&folded, rules.blocked_for_all) {
        return Some(Objection::BlockedForAll);
    }
    if has_any(&folded, rules.blocked) {
        return Some(Objection::Blocked);
    }
    if first_message && !rules.first_message_links && has_link(text) {
        return Some(Objection::LinkInFirstMessage);
    }
    let too_long = |max| report(text).segments > max;
    rules.segments_max.is_some_and(too_long).then_some(Objection::TooManySegments)
}

fn has_any(folded: &str, words: &[String]) -> bool {
    words.iter().any(|word| {
        let word = self::folded(word);
        // Both are whole words between single spaces.
        word.len() > 2 && folded.contains(&word)
    })
}

/// The words of a text in small letters without accents, each with one space before and after it.
fn folded(text: &str) -> String {
    let mut folded = String::with_capacity(text.len() + 2);
    folded.push(' ');
    for c in DecomposingNormalizerBorrowed::new_nfkd().normalize_iter(text.chars()) {
        if c.is_alphanumeric() {
            folded.extend(c.to_lowercase());
        } else if !super::opt_out::is_invisible(c) && !folded.ends_with(' ') {
            folded.push(' ');
        }
    }
    if !folded.ends_with(' ') {
        folded.push(' ');
    }
    folded
}

/// Whether a text has something that a phone would show as a link: a scheme, `www.`, or a host name with a well-known
/// ending.
pub fn has_link(text: &str) -> bool {
    const ENDINGS: [&str; 26] = [
        "com", "net", "org", "info", "biz", "io", "co", "me", "ly", "us", "uk", "ca", "de", "fr",
        "eu", "app", "dev", "shop", "store", "link", "xyz", "site", "online", "gg", "to", "ai",
    ];
    text.split_whitespace().any(|word| {
        let word = word.trim_matches(|c: char| !c.is_alphanumeric()).to_ascii_lowercase();
        if word.contains("://") || word.starts_with("www.") {
            return true;
        }
        // An address of mail is no link.
        let host = word.split(['/', '?', '#', ':']).next().unwrap_or_default();
        if host.contains('@') {
            return false;
        }
        host.rsplit_once('.').is_some_and(|(name, ending)| {
            ENDINGS.contains(&ending)
                && name.split('.').all(|label| {
                    !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || c == '-')
                })
                && name.chars().any(char::is_alphabetic)
        })
    })
}

/// The SHA-256 of a text, as the ledger keeps it: proof of what was judged without keeping it twice.
pub fn hash(text: &str) -> Vec<u8> {
    aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref().to_vec()
}

/// What an objection says for people, with the numbers that help them.
pub fn explain(objection: Objection, text: &str, rules: &Rules<'_>) -> String {
    let mut words = match objection {
        Objection::Blocked => "It has words that are blocked for this tenant.".to_owned(),
        Objection::BlockedForAll => "It has words that the operator has blocked.".to_owned(),
        Objection::LinkInFirstMessage => {
            "It has a link, and is the first message to this recipient.".to_owned()
        }
        Objection::TooManySegments => "It has too many SMS segments.".to_owned(),
    };
    if objection == Objection::TooManySegments
        && let Some(max) = rules.segments_max
    {
        let _infallible = write!(words, " {} of at most {max}.", report(text).segments);
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FREE: Rules<'_> =
        Rules { blocked: &[], blocked_for_all: &[], first_message_links: true, segments_max: None };

    #[test]
    fn segments_are_counted_as_networks_count_them() {
        let text = |c: &str, times: usize| c.repeat(times);
        for (text, encoding, segments) in [
            (String::new(), Encoding::Gsm7, 1),
            (text("a", 160), Encoding::Gsm7, 1),
            (text("a", 161), Encoding::Gsm7, 2),
            (text("a", 306), Encoding::Gsm7, 2),
            (text("a", 307), Encoding::Gsm7, 3),
            (text("€", 80), Encoding::Gsm7, 1),
            (text("€", 81), Encoding::Gsm7, 2),
            (text("é", 160), Encoding::Gsm7, 1),
            (text("ê", 70), Encoding::Ucs2, 1),
            (text("ê", 71), Encoding::Ucs2, 2),
            (text("😀", 35), Encoding::Ucs2, 1),
            (text("😀", 36), Encoding::Ucs2, 2),
            ("It’s".to_owned(), Encoding::Ucs2, 1),
        ] {
            let report = report(&text);
            assert_eq!((report.encoding, report.segments), (encoding, segments), "{text:.20}");
        }
    }

    #[test]
    fn links_are_what_a_phone_would_underline() {
        for link in [
            "https://a.example",
            "see www.example",
            "go to example.com/x?y",
            "Bit.ly/abc.",
            "(example.co)",
            "sub.example.org:8080",
        ] {
            assert!(has_link(link), "{link}");
        }
        for none in [
            "",
            "hello.",
            "anna@example.com",
            "at 5.30",
            "3.com",
            "end.of sentence",
            "v1.2.3",
            "a..com",
        ] {
            assert!(!has_link(none), "{none}");
        }
    }

    #[test]
    fn blocked_words_are_found_whole_whatever_their_dress() {
        let words = ["viagra".to_owned(), "free money".to_owned(), "  ".to_owned(), "a".to_owned()];
        let rules = Rules { blocked: &words, ..FREE };
        for bad in [
            "VIAGRA now",
            "buy vi\u{200b}agra",
            "ＶＩＡＧＲＡ",
            "Free   money!",
            "free-money",
            "víagra",
        ] {
            assert_eq!(objection(bad, &rules, false), Some(Objection::Blocked), "{bad}");
        }
        for good in ["viagrapher", "free the money", "carefree money", ""] {
            assert_eq!(objection(good, &rules, false), None, "{good}");
        }
        let all = Rules { blocked: &[], blocked_for_all: &words, ..FREE };
        assert_eq!(objection("viagra", &all, false), Some(Objection::BlockedForAll));
    }

    #[test]
    fn first_messages_and_long_ones_are_held_to_their_rules() {
        let rules = Rules { first_message_links: false, segments_max: Some(1), ..FREE };
        assert_eq!(
            objection("https://x.example", &rules, true),
            Some(Objection::LinkInFirstMessage)
        );
        assert_eq!(objection("https://x.example", &rules, false), None);
        assert_eq!(objection(&"a".repeat(161), &rules, false), Some(Objection::TooManySegments));
        assert!(
            explain(Objection::TooManySegments, &"a".repeat(161), &rules)
                .contains("2 of at most 1")
        );
    }

    proptest! {
        #[test]
        fn no_text_panics_and_a_stricter_rule_never_allows_more(text in "\\PC{0,300}", max in 1_u32..5, first: bool) {
            let strict = Rules { first_message_links: false, segments_max: Some(max), ..FREE };
            let looser = Rules { segments_max: Some(max + 1), ..FREE };
            if objection(&text, &strict, first).is_none() {
                prop_assert_eq!(objection(&text, &looser, first), None);
            }
        }
    }
}
