//! Does an inbound text ask to be left alone, or to be written to again? Pure.
//!
//! Only whole messages count: "stop by at 5" is no opt-out, and a tapback on "Reply STOP to opt out" is none
//! either. The words are the union of those in 47 CFR 64.1200(a)(10), the CTIA handbook and what the large
//! providers honour, because a keyword too many costs a message and one too few costs a law suit.

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

/// No keyword is longer, spaces and decoration included; longer texts are not even folded.
const KEYWORD_CHARS_MAX: usize = 64;

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
    /// To be left alone.
    Stop,
    /// To be written to again.
    Start,
}

/// What `text` asks for, if anything.
pub fn asks(text: &str) -> Option<Asks> {
    // Invisible characters are dropped before measuring: they must not hide a keyword.
    if text.chars().filter(|c| !is_invisible(*c) && !c.is_whitespace()).count() > KEYWORD_CHARS_MAX
    {
        return None;
    }
    let folded = fold(text);
    if is_tapback(&folded) {
        return None;
    }
    let joined: String = folded.chars().filter(|c| !matches!(c, ' ' | '-' | '_' | '.')).collect();
    if STOP.contains(&joined.as_str()) {
        Some(Asks::Stop)
    } else if START.contains(&joined.as_str()) {
        Some(Asks::Start)
    } else {
        None
    }
}

/// A reaction that arrived as text: an opening word and a quoted text.
fn is_tapback(folded: &str) -> bool {
    TAPBACK_OPENINGS.iter().any(|opening| folded.starts_with(opening))
        && folded.contains(['“', '”', '"', '«', '»'])
}

/// Lower case, full-width forms narrowed, diacritics and invisible characters dropped, punctuation, quotes
/// and symbols stripped from both ends, white space collapsed.
fn fold(text: &str) -> String {
    let mut folded = String::with_capacity(text.len());
    let mut gap = false;
    for c in text.chars().filter(|c| !is_invisible(*c)) {
        let c = narrow(c);
        if c.is_whitespace() {
            gap = true;
            continue;
        }
        if gap && !folded.is_empty() {
            folded.push(' ');
        }
        gap = false;
        folded.extend(c.to_lowercase().filter(|c| !is_invisible(*c)).map(strip_diacritic));
    }
    folded.trim_matches(|c: char| !c.is_alphanumeric()).to_owned()
}

/// Full-width forms and the styled "mathematical" letters are what NFKC would fold onto ASCII.
fn narrow(c: char) -> char {
    let code = u32::from(c);
    let narrowed = match code {
        0xFF01..=0xFF5E => code - 0xFEE0,
        0x3000 => 0x20,
        // Thirteen styles of 26 capitals followed by 26 small letters.
        0x1D400..=0x1D6A3 => {
            let letter = (code - 0x1D400) % 52;
            if letter < 26 { 0x41 + letter } else { 0x61 + (letter - 26) }
        }
        0x24B6..=0x24CF => code - 0x24B6 + 0x41,
        0x24D0..=0x24E9 => code - 0x24D0 + 0x61,
        _ => code,
    };
    char::from_u32(narrowed).unwrap_or(c)
}

/// Characters that are not seen: zero-width, directional and other controls, variation selectors, and the
/// combining marks that a decomposed letter carries.
fn is_invisible(c: char) -> bool {
    (c.is_control() && !c.is_whitespace())
        || matches!(u32::from(c),
            0x00AD | 0x034F | 0x061C | 0x115F..=0x1160 | 0x17B4..=0x17B5 | 0x180B..=0x180F
            | 0x200B..=0x200F | 0x202A..=0x202E | 0x2060..=0x206F | 0x3164 | 0xFE00..=0xFE0F
            | 0xFEFF | 0xFFA0 | 0xFFFC | 0x0300..=0x036F | 0xE0000..=0xE0FFF)
}

/// The letter under the accent, for the precomposed letters of western European languages.
fn strip_diacritic(c: char) -> char {
    match c {
        'à' | 'á' | 'â' | 'ã' | 'ä' | 'å' | 'ā' => 'a',
        'ç' | 'ć' | 'č' => 'c',
        'è' | 'é' | 'ê' | 'ë' | 'ē' | 'ė' | 'ę' => 'e',
        'ì' | 'í' | 'î' | 'ï' | 'ī' => 'i',
        'ñ' | 'ń' => 'n',
        'ò' | 'ó' | 'ô' | 'õ' | 'ö' | 'ō' => 'o',
        'ù' | 'ú' | 'û' | 'ü' | 'ū' => 'u',
        'ý' | 'ÿ' => 'y',
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

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
            assert_eq!(asks(text), Some(Asks::Stop), "{text:?}");
        }
    }

    #[test]
    fn whole_messages_that_are_a_keyword_opt_in() {
        for text in ["START", "start.", "Unstop", "un-stop", "opt in", "subscribe"] {
            assert_eq!(asks(text), Some(Asks::Start), "{text:?}");
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
            "stop by at 5",
            "cancel my appt",
            "got to STOP this bill",
            "STOP 12345",
            "the end",
            "can't stop laughing",
            "yes",
            "stopp",
            "started",
            "don't stop",
        ] {
            assert_eq!(asks(text), None, "{text:?}");
        }
    }

    #[test]
    fn invisible_padding_does_not_hide_a_keyword() {
        let padded = format!("{0}stop{0}", "\u{200B}".repeat(5_000));
        assert_eq!(asks(&padded), Some(Asks::Stop));
    }

    #[test]
    fn a_long_text_is_not_a_keyword() {
        assert_eq!(asks(&"stop ".repeat(4_000)), None);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,200}") {
            let _verdict = asks(&text);
        }

        #[test]
        fn case_and_decoration_do_not_matter(
            word in prop::sample::select(STOP.to_vec()), upper: bool,
            before in "[ \u{200B}\"“(!.]{0,5}", after in "[ \u{FE0F}\"”)!.,]{0,5}",
        ) {
            let word = if upper { word.to_uppercase() } else { word.to_owned() };
            prop_assert_eq!(asks(&format!("{before}{word}{after}")), Some(Asks::Stop));
        }

        #[test]
        fn another_word_beside_the_keyword_makes_it_a_sentence(
            word in prop::sample::select(STOP.to_vec()), other in "[b-df-hj-m]{3,8}",
        ) {
            let left = format!("{word} {other}");
            let right = format!("{other} {word}");
            prop_assert_eq!(asks(&left), None);
            prop_assert_eq!(asks(&right), None);
        }
    }
}
