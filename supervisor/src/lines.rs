//! Bounded line reading: a peer that never ends its line costs one buffer, not the machine's memory.

use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// What was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A whole line without its newline (and without a carriage return before it).
    Whole(String),
    /// A line longer than the limit; all of it up to the next newline was thrown away.
    TooLong {
        /// How many bytes it had.
        bytes: u64,
    },
    /// A line that is not UTF-8; thrown away.
    NotText,
    /// The last bytes before the end had no newline: half a line, never to be acted on.
    Cut {
        /// How many bytes there were.
        bytes: u64,
    },
}

/// Reads lines of at most `limit` bytes from `source`.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    source: R,
    limit: usize,
    kept: Vec<u8>,
    /// Bytes of the present line, kept or not.
    seen: u64,
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    /// Reads from `source`, with lines of at most `limit` bytes.
    pub(crate) fn new(source: R, limit: usize) -> Self {
        Self { source, limit, kept: Vec::new(), seen: 0 }
    }

    /// The next line, or `None` at the end. Not to be dropped half-way by a `select!` whose other arm goes on: the
    /// reader tasks own it and do nothing else.
    pub(crate) async fn next(&mut self) -> std::io::Result<Option<Line>> {
        loop {
            let available = self.source.fill_buf().await?;
            if available.is_empty() {
                if self.seen == 0 {
                    return Ok(None);
                }
                let bytes = self.seen;
                self.begin();
                return Ok(Some(Line::Cut { bytes }));
            }
            let end = available.iter().position(|&byte| byte == b'\n');
            let part = available.get(..end.unwrap_or(available.len())).unwrap_or_default();
            let room = self.limit.saturating_sub(self.kept.len());
            self.kept.extend_from_slice(part.get(..part.len().min(room)).unwrap_or_default());
            self.seen = self.seen.saturating_add(u64::try_from(part.len()).unwrap_or(u64::MAX));
            let used = part.len() + usize::from(end.is_some());
            self.source.consume(used);
            if end.is_some() {
                return Ok(Some(self.finish()));
            }
        }
    }

    fn finish(&mut self) -> Line {
        let bytes = self.seen;
        let mut kept = std::mem::take(&mut self.kept);
        self.begin();
        if bytes > u64::try_from(kept.len()).unwrap_or(u64::MAX) {
            return Line::TooLong { bytes };
        }
        if kept.last() == Some(&b'\r') {
            kept.pop();
        }
        String::from_utf8(kept).map_or(Line::NotText, Line::Whole)
    }

    fn begin(&mut self) {
        self.kept = Vec::new();
        self.seen = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::BufReader;

    use super::*;

    async fn all(input: &[u8], limit: usize, buffer: usize) -> Vec<Line> {
        let mut lines = Lines::new(BufReader::with_capacity(buffer, input), limit);
        let mut read = Vec::new();
        while let Some(line) = lines.next().await.unwrap() {
            read.push(line);
        }
        read
    }

    fn whole(text: &str) -> Line {
        Line::Whole(text.to_owned())
    }

    #[tokio::test]
    async fn each_kind_of_line_is_named() {
        let table: [(&[u8], Vec<Line>); 9] = [
            (b"", vec![]),
            (b"a\nb\n", vec![whole("a"), whole("b")]),
            (b"a\r\n\n", vec![whole("a"), whole("")]),
            (b"12345678\n", vec![whole("12345678")]),
            (b"123456789\nx\n", vec![Line::TooLong { bytes: 9 }, whole("x")]),
            (b"half", vec![Line::Cut { bytes: 4 }]),
            (b"a\nhalf", vec![whole("a"), Line::Cut { bytes: 4 }]),
            (b"\xff\xfe\nb\n", vec![Line::NotText, whole("b")]),
            (b"too long and cut", vec![Line::Cut { bytes: 16 }]),
        ];
        for (input, wanted) in table {
            for buffer in [1, 2, 3, 64] {
                assert_eq!(all(input, 8, buffer).await, wanted, "{input:?} by {buffer}");
            }
        }
    }

    proptest! {
        /// Whatever arrives, however it is cut into reads: nothing longer than the limit comes out, and whole short
        /// lines come out as they went in.
        #[test]
        fn the_way_bytes_arrive_changes_nothing(
            input in prop::collection::vec(prop::sample::select(b"ab\n\r\xff".to_vec()), 0..200),
            limit in 1_usize..10,
            buffer in 1_usize..20,
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let read = runtime.block_on(all(&input, limit, buffer));
            prop_assert_eq!(&read, &runtime.block_on(all(&input, limit, 1_024)));
            for line in read {
                if let Line::Whole(text) = line {
                    prop_assert!(text.len() <= limit);
                }
            }
        }
    }
}
