//! A message's parts: the runs that carry the same part number.

use super::{AttributedText, PART, Value};

/// One part of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Its number. Numbers stay when other parts are unsent.
    pub number: u32,
    /// Where it starts, in UTF-16 units.
    pub start: usize,
    /// How long it is, in UTF-16 units.
    pub len: usize,
    /// Its characters.
    pub text: String,
}

impl AttributedText {
    /// The parts, in order. Runs without a number belong to part 0.
    pub fn parts(&self) -> Vec<Part> {
        let units: Vec<u16> = self.text.encode_utf16().collect();
        let mut parts: Vec<Part> = Vec::new();
        let mut at = 0;
        for (len, attributes) in &self.runs {
            let number = part_number(attributes);
            let text = slice(&units, at, *len);
            match parts.last_mut().filter(|last| last.number == number) {
                Some(last) => {
                    last.len += len;
                    last.text.push_str(&text);
                }
                None => parts.push(Part { number, start: at, len: *len, text }),
            }
            at += len;
        }
        parts
    }

    /// The same without one part; the others keep their numbers.
    #[must_use]
    pub fn without_part(&self, number: u32) -> Self {
        self.replaced(number, None)
    }

    /// The same with another text in one part, which loses its attributes as in an edit.
    #[must_use]
    pub fn with_part(&self, number: u32, text: &str) -> Self {
        self.replaced(number, Some(text))
    }

    fn replaced(&self, number: u32, mut by: Option<&str>) -> Self {
        let units: Vec<u16> = self.text.encode_utf16().collect();
        let mut replaced =
            Self { text: String::new(), mutable: self.mutable, runs: Vec::with_capacity(8) };
        let mut at = 0;
        for (len, attributes) in &self.runs {
            if part_number(attributes) != number {
                replaced.text.push_str(&slice(&units, at, *len));
                replaced.runs.push((*len, attributes.clone()));
            } else if let Some(text) = by.take() {
                let value = Value::Number(i32::try_from(number).unwrap_or(i32::MAX));
                replaced.text.push_str(text);
                replaced.runs.push((text.encode_utf16().count(), vec![(PART.to_owned(), value)]));
            }
            at += len;
        }
        replaced.runs.retain(|(len, _)| *len > 0);
        replaced
    }
}

fn part_number(attributes: &[(String, Value)]) -> u32 {
    let number = attributes.iter().find(|(key, _)| key == PART).map(|(_, value)| value);
    match number {
        Some(Value::Number(number) | Value::Quad(number)) => u32::try_from(*number).unwrap_or(0),
        _ => 0,
    }
}

fn slice(units: &[u16], start: usize, len: usize) -> String {
    String::from_utf16_lossy(units.get(start..start + len).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> AttributedText {
        let part = |n| vec![(PART.to_owned(), Value::Number(n))];
        AttributedText::from_runs(&[("é😃", part(0)), ("\u{fffc}", part(1)), ("end", part(2))])
    }

    #[test]
    fn parts_are_counted_in_utf_16_units() {
        let parts = three().parts();
        let seen: Vec<_> =
            parts.iter().map(|p| (p.number, p.start, p.len, p.text.as_str())).collect();
        assert_eq!(seen, [(0, 0, 3, "é😃"), (1, 3, 1, "\u{fffc}"), (2, 4, 3, "end")]);
    }

    #[test]
    fn a_part_can_go_or_change_and_the_others_keep_their_numbers() {
        let without = three().without_part(1);
        assert_eq!(without.text(), "é😃end");
        assert_eq!(without.parts().iter().map(|p| p.number).collect::<Vec<_>>(), [0, 2]);
        let with = three().with_part(0, "new");
        assert_eq!(with.text(), "new\u{fffc}end");
        assert_eq!(with.parts().len(), 3);
        assert_eq!(three().without_part(7), three());
    }
}
