//! Who waits for a phone that is busy, so that whoever is more urgent, or had less, has the hand that becomes free. Pure,
//! and in memory: a router that starts anew lets everybody look again, and the lines form anew.
//!
//! What waits because none of its tenant's phones has a hand free is not even claimed (see [`crate::store::queue`]). Lines
//! are for the rest: messages that ask for one phone, or need a channel or a place for a stranger that only busy phones
//! have. They are looked at from time to time, those of one line bit by bit. The first few of each line are remembered here:
//! they are called when a phone of theirs has a hand again, and a message that could have a phone which the first of a line
//! could have as well lets it go first.

use std::collections::{BTreeMap, HashMap};

use protocol::{Channel, MessageId, PhoneId, TenantId, UnixMs};

use crate::resolve::{self, Candidate, Need};
use crate::shares::{self, CLASSES};
use crate::store::dispatch::Relations;

/// When a message that found all its phones busy is looked at again, by itself.
const BUSY_WAIT_MS: i64 = 500;

/// And the next one of the same line so much later: a phone sends about one a second.
const BUSY_SPREAD_MS: i64 = 2;

/// How long after its time to be looked at again the first of a line still has the right to go first: longer than a claim
/// and its decision take.
const FIRST_FOR_MS: i64 = 1_000;

/// The first of a line that are remembered; whoever comes after them is looked at when its time comes.
const FIRST_MAX: usize = 8;

/// Of those that wait for the same moment, such as the next place for a stranger, one is looked at so long after another: the
/// first has it, and a long queue is not decided as a whole for each.
const SAME_MOMENT_SPREAD_MS: i64 = 20;

/// Moments that are remembered; beyond it the counting begins anew.
const MOMENTS_MAX: usize = 10_000;

/// How often lines that nobody waits in are cleared away.
const CLEAR_EVERY_MS: i64 = 1_000;

/// A line: the class, as [`shares::rank`] counts, and whose it is.
pub type Line = (u8, TenantId);

/// What the first of a line waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The message.
    pub message: MessageId,
    /// It is for the sandbox.
    pub sandbox: bool,
    /// The phone that was asked for.
    pub from: Option<PhoneId>,
    /// Channels that would do.
    pub wanted: Vec<Channel>,
    /// What its recipient is to the phones.
    pub relations: Relations,
}

impl Waiting {
    /// What it needs of a phone.
    pub fn need<'a>(&'a self, tenant: &'a TenantId, in_flight_max: u32, now: UnixMs) -> Need<'a> {
        Need {
            tenant,
            sandbox: self.sandbox,
            from: self.from.as_ref(),
            wanted: &self.wanted,
            in_flight_max,
            now_ms: now.0,
        }
    }
}

/// Who goes first among the first of lines: the more urgent, then the older.
fn turn<'a>(line: &Line, first: &'a Waiting) -> (u8, &'a MessageId) {
    (line.0, &first.message)
}

/// The lines.
#[derive(Debug, Default)]
pub struct Lines {
    /// When the last message of each is looked at again.
    last: HashMap<Line, UnixMs>,
    /// The first of each, the oldest first, and until when each has the right to go first.
    first: HashMap<Line, BTreeMap<MessageId, (Waiting, UnixMs)>>,
    /// Who of each class had the last phone.
    had: [Option<TenantId>; CLASSES],
    /// By whom a line was overtaken last, and by how many since it had a phone itself.
    overtaken: HashMap<Line, (MessageId, u64)>,
    /// How many of each line wait for a moment.
    moments: HashMap<(Line, UnixMs), i64>,
    cleared_at: Option<UnixMs>,
}

impl Lines {
    /// A message has found all its phones busy; answers when it is to be looked at again.
    pub fn join(&mut self, line: &Line, waiting: Waiting, now: UnixMs) -> UnixMs {
        self.clear(now);
        let first = now.plus_ms(BUSY_WAIT_MS);
        let last = self.last.get(line).map_or(first, |last| last.plus_ms(BUSY_SPREAD_MS));
        let again = first.max(last);
        self.last.insert(line.clone(), again);
        let until = again.plus_ms(FIRST_FOR_MS);
        let first = self.first.entry(line.clone()).or_default();
        first.insert(waiting.message.clone(), (waiting, until));
        while first.len() > FIRST_MAX {
            first.pop_last();
        }
        again
    }

    /// A message waits for a moment, as others of its line may; answers when it is to be looked at.
    pub fn waits_until(&mut self, line: &Line, moment: UnixMs, now: UnixMs) -> UnixMs {
        self.clear(now);
        if self.moments.len() >= MOMENTS_MAX {
            self.moments.clear();
        }
        let before = self.moments.entry((line.clone(), moment)).or_default();
        let at = moment.plus_ms(before.saturating_mul(SAME_MOMENT_SPREAD_MS));
        *before = before.saturating_add(1);
        at
    }

    /// A message has a phone, or needs none any more.
    pub fn leave(&mut self, line: &Line, message: &MessageId) {
        if let Some(first) = self.first.get_mut(line) {
            first.remove(message);
            if first.is_empty() {
                self.first.remove(line);
            }
        }
    }

    /// The first of each line that still wait, the most urgent first, at most so many.
    pub fn firsts(&self, now: UnixMs, limit: usize) -> Vec<(&Line, &Waiting)> {
        let mut firsts: Vec<_> = self.heads(now).collect();
        firsts.sort_by(|(one, a), (other, b)| turn(one, a).cmp(&turn(other, b)));
        firsts.truncate(limit);
        firsts
    }

    fn heads(&self, now: UnixMs) -> impl Iterator<Item = (&Line, &Waiting)> {
        self.first.iter().filter_map(move |(line, first)| {
            let (waiting, _) = first.values().find(|(_, until)| *until > now)?;
            Some((line, waiting))
        })
    }

    /// A message of this line was given to a phone.
    pub fn gave(&mut self, line: &Line, message: &MessageId) {
        self.leave(line, message);
        self.overtaken.remove(line);
        if let Some(had) = self.had.get_mut(usize::from(line.0))
            && had.as_ref() != Some(&line.1)
        {
            *had = Some(line.1.clone());
        }
    }

    /// The line whose first is to have this phone before this message: it is more urgent, or as urgent and its tenant did not
    /// have the last one, or of the same line and older. `as_candidate` is the phone as somebody with these relations sees
    /// it.
    pub fn before(
        &self,
        line: &Line,
        message: &MessageId,
        as_candidate: impl Fn(&Relations) -> Candidate,
        in_flight_max: u32,
        now: UnixMs,
    ) -> Option<(Line, MessageId)> {
        self.heads(now)
            .filter(|(other, first)| {
                first.message != *message && self.precedes(other, first, line, message)
            })
            .filter(|(other, first)| {
                let need = first.need(&other.1, in_flight_max, now);
                resolve::resolve(&need, &[as_candidate(&first.relations)]).is_ok()
            })
            .min_by(|(one, a), (other, b)| turn(one, a).cmp(&turn(other, b)))
            .map(|(line, first)| (line.clone(), first.message.clone()))
    }

    fn precedes(&self, other: &Line, first: &Waiting, line: &Line, message: &MessageId) -> bool {
        if other == line {
            return first.message < *message;
        }
        if other.0 == line.0 {
            return self
                .had
                .get(usize::from(line.0))
                .is_some_and(|had| had.as_ref() == Some(&line.1));
        }
        // As many times as its class has more turns, and then whoever is less urgent has one.
        let turns = shares::weight(other.0) / shares::weight(line.0).max(1);
        let overtaken = self.overtaken.get(line);
        other.0 < line.0
            && overtaken.is_none_or(|(last, times)| *last == first.message || *times < turns)
    }

    /// A message of `line` has let the first of another line go first.
    pub fn yielded(&mut self, line: &Line, first: &MessageId) {
        let (last, times) =
            self.overtaken.entry(line.clone()).or_insert_with(|| (first.clone(), 0));
        if *times == 0 || last != first {
            *times += 1;
            *last = first.clone();
        }
    }

    fn clear(&mut self, now: UnixMs) {
        let since = self.cleared_at.map_or(i64::MAX, |at| now.since(at));
        if (0..CLEAR_EVERY_MS).contains(&since) {
            return;
        }
        self.cleared_at = Some(now);
        self.last.retain(|_, last| *last > now);
        self.moments.retain(|(_, moment), _| *moment > now);
        self.first.retain(|_, first| {
            first.retain(|_, (_, until)| *until > now);
            !first.is_empty()
        });
        let (last, first) = (&self.last, &self.first);
        self.overtaken.retain(|line, _| last.contains_key(line) || first.contains_key(line));
    }
}

#[cfg(test)]
mod tests {
    use protocol::Class;

    use super::*;

    const NOW: UnixMs = UnixMs(1_000_000);
    const SMS: [Channel; 1] = [Channel::Sms];

    fn line(class: Class, whose: u8) -> Line {
        (shares::rank(class, false), TenantId::new(1, [whose; 10]))
    }

    fn message(n: u8) -> MessageId {
        MessageId::new(1, [n; 10])
    }

    fn phone(n: u8) -> PhoneId {
        PhoneId::new(1, [n; 10])
    }

    fn waiting(n: u8, from: Option<u8>) -> Waiting {
        Waiting {
            message: message(n),
            sandbox: false,
            from: from.map(phone),
            wanted: SMS.to_vec(),
            relations: Relations::default(),
        }
    }

    fn free(n: u8) -> Candidate {
        Candidate {
            phone: phone(n),
            exclusive_to: None,
            sandbox: false,
            sticky_ms: None,
            online: true,
            ready: true,
            leased: true,
            channels: SMS.to_vec(),
            in_flight: 0,
            known: false,
            new_from_ms: 0,
            capped: false,
            messages_today: 0,
            warming_priority: 0,
            last_used_ms: 0,
        }
    }

    fn before(lines: &Lines, of: &Line, n: u8, candidate: &Candidate) -> Option<MessageId> {
        lines.before(of, &message(n), |_| candidate.clone(), 1, NOW).map(|(_, first)| first)
    }

    #[test]
    fn a_line_is_looked_at_bit_by_bit_and_each_class_has_its_own() {
        let mut lines = Lines::default();
        let mut join =
            |of: &Line, n: u8, now: UnixMs| lines.join(of, waiting(n, None), now).0 - NOW.0;
        let (marketing, code) = (line(Class::Marketing, 1), line(Class::Otp, 1));
        assert_eq!([1, 2, 3].map(|n| join(&marketing, n, NOW)), [500, 502, 504]);
        assert_eq!(join(&line(Class::Marketing, 2), 4, NOW), 500);
        assert_eq!(join(&code, 5, NOW), 500, "a code does not stand behind its tenant's campaign");
        assert_eq!(join(&marketing, 6, NOW.plus_ms(600)), 1_100);
    }

    #[test]
    fn whoever_waits_for_the_same_moment_is_looked_at_one_after_another() {
        let mut lines = Lines::default();
        let (one, other) = (line(Class::Marketing, 1), line(Class::Marketing, 2));
        let moment = NOW.plus_ms(60_000);
        let mut at = |of: &Line, moment| lines.waits_until(of, moment, NOW).0 - NOW.0;
        assert_eq!([1, 2, 3].map(|_| at(&one, moment)), [60_000, 60_020, 60_040]);
        assert_eq!(at(&other, moment), 60_000, "another's line is another");
        assert_eq!(at(&one, moment.plus_ms(5)), 60_005, "another moment is another");
        lines.waits_until(&one, moment.plus_ms(10), moment.plus_ms(5_000));
        assert_eq!(lines.moments.len(), 1, "what is over is forgotten");
    }

    #[test]
    fn who_goes_first() {
        use Class::{Marketing, Otp, Transactional};
        let cases = [
            ("a code before a campaign of its own", line(Marketing, 1), line(Otp, 1), true),
            ("a code before another's campaign", line(Marketing, 1), line(Otp, 2), true),
            ("no campaign before a code", line(Otp, 1), line(Marketing, 2), false),
            (
                "whoever did not have the last one",
                line(Transactional, 1),
                line(Transactional, 2),
                true,
            ),
            ("not whoever had it", line(Transactional, 2), line(Transactional, 1), false),
            ("the older of a line", line(Transactional, 1), line(Transactional, 1), true),
        ];
        for (what, of, other, expected) in cases {
            let mut lines = Lines::default();
            lines.gave(&line(Transactional, 1), &message(1));
            lines.join(&other, waiting(2, Some(7)), NOW);
            let first = before(&lines, &of, 9, &free(7));
            assert_eq!(first, expected.then(|| message(2)), "{what}");
            assert_eq!(before(&lines, &of, 9, &free(8)), None, "{what}: another phone");
        }
    }

    #[test]
    fn nobody_waits_for_one_who_cannot_have_the_phone() {
        type Spoil = fn(&mut Candidate);
        let spoils: [(&str, Spoil); 4] = [
            ("another's", |c| c.exclusive_to = Some(TenantId::new(1, [9; 10]))),
            ("of the sandbox", |c| c.sandbox = true),
            ("without the channel", |c| c.channels = vec![Channel::Imessage]),
            ("without a place for a stranger", |c| c.new_from_ms = NOW.0 + 1),
        ];
        let mut lines = Lines::default();
        lines.join(&line(Class::Otp, 2), waiting(2, None), NOW);
        let of = line(Class::Marketing, 1);
        assert_eq!(before(&lines, &of, 9, &free(7)), Some(message(2)));
        for (what, spoil) in spoils {
            let mut candidate = free(7);
            spoil(&mut candidate);
            assert_eq!(before(&lines, &of, 9, &candidate), None, "{what}");
        }
    }

    #[test]
    fn a_right_to_go_first_ends_with_its_phone_its_message_or_its_time() {
        let (of, code) = (line(Class::Marketing, 1), line(Class::Otp, 2));
        let mut lines = Lines::default();
        let again = lines.join(&code, waiting(2, None), NOW);
        let late = again.plus_ms(FIRST_FOR_MS);
        let ask =
            |lines: &Lines, now| lines.before(&of, &message(9), |_| free(7), 1, now).is_some();
        assert!(ask(&lines, late.plus_ms(-1)));
        assert!(!ask(&lines, late));
        lines.leave(&code, &message(3));
        assert!(ask(&lines, NOW), "another one left");
        lines.leave(&code, &message(2));
        assert!(!ask(&lines, NOW));
        lines.join(&code, waiting(2, None), NOW);
        lines.gave(&code, &message(2));
        assert!(!ask(&lines, NOW));
    }

    #[test]
    fn the_older_one_stays_the_first_of_its_line() {
        let (of, code) = (line(Class::Marketing, 1), line(Class::Otp, 2));
        let mut lines = Lines::default();
        for n in [4, 3, 5] {
            lines.join(&code, waiting(n, None), NOW);
        }
        assert_eq!(before(&lines, &of, 9, &free(7)), Some(message(3)));
        lines.gave(&code, &message(3));
        assert_eq!(before(&lines, &of, 9, &free(7)), Some(message(4)));
        for n in 5..16 {
            lines.join(&code, waiting(n, None), NOW);
        }
        assert_eq!(lines.first[&code].len(), FIRST_MAX, "a line costs no more, however long it is");
        let firsts = lines.firsts(NOW, 10);
        assert_eq!(firsts.iter().map(|(_, one)| &one.message).collect::<Vec<_>>(), [&message(4)]);
    }

    #[test]
    fn whoever_is_less_urgent_has_a_turn_after_as_many_as_its_weight_says() {
        let (of, codes) = (line(Class::Marketing, 1), line(Class::Transactional, 2));
        let mut lines = Lines::default();
        let mut let_go = 0;
        for n in 10..100 {
            lines.join(&codes, waiting(n, None), NOW);
            // Many of the line find that one before them; it counts once.
            for mine in [200, 201, 202] {
                if let Some(first) = before(&lines, &of, mine, &free(7)) {
                    lines.yielded(&of, &first);
                }
            }
            if before(&lines, &of, 203, &free(7)).is_none() {
                break;
            }
            lines.gave(&codes, &message(n));
            let_go += 1;
        }
        assert_eq!(let_go, 16, "the weights are 16 and 1");
        lines.gave(&of, &message(200));
        assert!(before(&lines, &of, 203, &free(7)).is_some());
    }

    #[test]
    fn lines_that_are_over_are_forgotten() {
        let mut lines = Lines::default();
        for n in 0..100 {
            lines.join(&line(Class::Otp, n), waiting(n, None), NOW);
            lines.yielded(&line(Class::Otp, n), &message(1));
        }
        lines.join(&line(Class::Otp, 200), waiting(200, None), NOW.plus_ms(10_000));
        assert_eq!((lines.last.len(), lines.first.len(), lines.overtaken.len()), (1, 1, 0));
    }
}
