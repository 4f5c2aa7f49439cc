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

/// Endings of host names that are no country's and are in use where links are. Countries' have two letters: all of them count,
/// so that a sentence whose next begins without a space may be taken for a link; a phone underlines it, too.
const ENDINGS: &[&str] = &[
    "academy",
    "agency",
    "app",
    "art",
    "autos",
    "bank",
    "bar",
    "beauty",
    "best",
    "bet",
    "bid",
    "biz",
    "blog",
    "bond",
    "boutique",
    "business",
    "buzz",
    "cam",
    "care",
    "cash",
    "casino",
    "center",
    "cfd",
    "chat",
    "church",
    "city",
    "click",
    "clinic",
    "cloud",
    "club",
    "codes",
    "coffee",
    "com",
    "community",
    "company",
    "cool",
    "coupons",
    "credit",
    "cyou",
    "date",
    "deals",
    "delivery",
    "dental",
    "design",
    "dev",
    "digital",
    "direct",
    "directory",
    "doctor",
    "domains",
    "download",
    "edu",
    "education",
    "email",
    "energy",
    "events",
    "expert",
    "express",
    "family",
    "fans",
    "farm",
    "finance",
    "financial",
    "fit",
    "fitness",
    "fun",
    "fund",
    "games",
    "garden",
    "gift",
    "gifts",
    "gives",
    "global",
    "gold",
    "gov",
    "group",
    "guide",
    "guru",
    "health",
    "help",
    "homes",
    "host",
    "house",
    "icu",
    "inc",
    "info",
    "ink",
    "institute",
    "int",
    "jobs",
    "land",
    "law",
    "legal",
    "life",
    "link",
    "live",
    "llc",
    "loan",
    "loans",
    "lol",
    "love",
    "ltd",
    "market",
    "marketing",
    "media",
    "menu",
    "mil",
    "mobi",
    "moda",
    "moe",
    "mom",
    "money",
    "monster",
    "mortgage",
    "name",
    "net",
    "network",
    "news",
    "ngo",
    "ninja",
    "one",
    "online",
    "org",
    "page",
    "partners",
    "parts",
    "party",
    "pet",
    "photo",
    "photos",
    "pics",
    "pink",
    "pizza",
    "plus",
    "poker",
    "press",
    "pro",
    "promo",
    "pub",
    "quest",
    "realty",
    "recipes",
    "red",
    "rent",
    "rentals",
    "repair",
    "report",
    "rest",
    "review",
    "reviews",
    "rocks",
    "run",
    "sale",
    "salon",
    "sbs",
    "school",
    "science",
    "services",
    "sexy",
    "shop",
    "shopping",
    "show",
    "site",
    "skin",
    "social",
    "software",
    "solar",
    "solutions",
    "space",
    "store",
    "stream",
    "studio",
    "style",
    "support",
    "surf",
    "systems",
    "taxi",
    "team",
    "tech",
    "tel",
    "tennis",
    "tickets",
    "tips",
    "tires",
    "today",
    "tools",
    "top",
    "tours",
    "town",
    "toys",
    "trade",
    "training",
    "travel",
    "university",
    "uno",
    "vegas",
    "ventures",
    "vet",
    "video",
    "vip",
    "vision",
    "vote",
    "watch",
    "webcam",
    "website",
    "wedding",
    "wiki",
    "win",
    "wine",
    "work",
    "works",
    "world",
    "wtf",
    "xyz",
    "yoga",
    "zip",
    "zone",
];

/// The endings of countries (ISO 3166-1 and what registries have beside it), two letters each.
const COUNTRIES: &str = "acadaeafagaialamaoaqarasatauawaxazbabbbdbebfbgbhbibjbmbnbobrbsbtbwbybzcacccdcfcgchcickclcmcncocrcucvcwcxcyczdedjdkdm\
     dodzeceeegereseteufifjfkfmfofrgagdgegfggghgiglgmgngpgqgrgsgtgugwgyhkhmhnhrhthuidieiliminioiqirisitjejmjojpkekgkhkikm\
     knkpkrkwkykzlalblclilklrlsltlulvlymamcmdmemgmhmkmlmmmnmompmqmrmsmtmumvmwmxmymznancnenfngninlnonpnrnunzompapepfpgphpk\
     plpmpnprpsptpwpyqarerorsrurwsasbscsdsesgshsiskslsmsnsosrssstsusvsxsysztctdtftgthtjtktltmtntotrtttvtwtzuaugukusuyuzva\
     vcvevgvivnvuwfwsyeytzazmzw";

fn is_ending(ending: &str) -> bool {
    let is_country = || {
        ending.len() == 2
            && COUNTRIES.as_bytes().chunks_exact(2).any(|country| country == ending.as_bytes())
    };
    ENDINGS.binary_search(&ending).is_ok() || is_country()
}

/// Whether a text has something that a phone would show as a link: a scheme, `www.`, a host name with an ending in use, or one
/// with any ending before a path. A label of another script makes it none the less a link.
pub fn has_link(text: &str) -> bool {
    // The full stops of other scripts are as good as ours in a name.
    let text = text
        .chars()
        .filter(|c| !super::opt_out::is_invisible(*c))
        .map(|c| if matches!(c, '\u{3002}' | '\u{ff0e}' | '\u{ff61}') { '.' } else { c })
        .collect::<String>()
        .to_lowercase();
    text.split_whitespace().any(|word| {
        word.contains("://")
            || word
                .split(|c: char| {
                    !(c.is_alphanumeric() || matches!(c, '.' | '-' | '@' | '/' | '_' | '+'))
                })
                .any(is_link)
    })
}

fn is_link(word: &str) -> bool {
    let word = word.trim_matches(|c: char| !c.is_alphanumeric() && c != '/');
    let (host, path) = word.split_once('/').map_or((word, None), |(host, path)| (host, Some(path)));
    // An address of mail is no link.
    if host.contains('@') {
        return false;
    }
    let Some((name, ending)) = host.rsplit_once('.') else { return false };
    let is_name = name.split('.').all(|label| {
        !label.is_empty() && label.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_')
    });
    let has_path = path.is_some_and(|path| !path.is_empty());
    let letters = ending.chars().count() >= 2 && ending.chars().all(char::is_alphabetic);
    is_name
        && name.chars().any(char::is_alphabetic)
        && (name.starts_with("www.")
            || name == "www"
            || is_ending(ending)
            || (has_path && letters)
            || ending.starts_with("xn--"))
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
            "goo.gl/x",
            "x.click",
            "see:example.com",
            "(see example.com)",
            "a.museum/free",
            "pay-now.example.top!",
            "bücher.example.de",
            "example。com",
            "exa\u{200b}mple.com",
            "EXAMPLE.COM",
            "example.com/",
            "who?example.com,now",
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
            "write to anna@example.com:thanks",
            "and/or",
            "at 5.30/6.30",
            "e.g. this",
            "Mr.Smith",
        ] {
            assert!(!has_link(none), "{none}");
        }
        assert!(ENDINGS.is_sorted(), "they are searched by halves");
        assert_eq!(COUNTRIES.len() % 2, 0);
        for country in ["us", "uk", "de", "gl", "ly", "zw", "ac", "io", "gg"] {
            assert!(is_ending(country), "{country}");
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
