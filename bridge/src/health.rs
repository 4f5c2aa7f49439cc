//! Whether this phone can send: database, Automation, account. Pure.
//!
//! `ready` means that all three are proven. Health never ends a send that is started; it keeps
//! new ones from starting and tells the listener why.

use protocol::Reason;
use protocol::pipe::{AccountState, NotReady, Up};

use crate::checks::messages::standing;
use crate::checks::{Check, remedy};
use crate::osascript::Disposition;

/// While something is wrong the account is asked this often: people who repair it wait for it.
const PROBE_WHILE_BAD_MS: i64 = 5_000;

/// Longest pause that is believed; it is asked for again while it lasts.
const PAUSE_MS_MAX: i64 = 60_000;

const REMEDY_ORPHAN: &str =
    "an osascript of an earlier run still works; it is waited for. End it if it hangs";

/// What is known of the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Account {
    /// Not asked yet.
    Unasked,
    Connected,
    /// A send has shown something that only an answer can settle. Nothing starts until then, but
    /// the listener need not hear of a doubt that is over in a moment.
    Suspect,
    Bad(Reason),
}

/// What is known of everything.
#[derive(Debug)]
pub(crate) struct Health {
    database: Result<(), NotReady>,
    account: Account,
    orphan: bool,
    /// An operator says that Apple has blocked the account. No answer of Messages says otherwise.
    blocked: bool,
    /// Somebody restarts Messages: nothing may talk to it until then.
    paused_until_ms: Option<i64>,
    /// What is wrong with this Mac: its disks, its clock.
    machine: Vec<NotReady>,
    /// What was last said to the listener.
    said: Option<Vec<NotReady>>,
    next_probe_ms: i64,
    interval_ms: i64,
}

/// A state of the account worth an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AccountNews {
    pub(crate) state: AccountState,
    pub(crate) detail: String,
}

impl Health {
    pub(crate) fn new(interval_ms: i64, now_ms: i64) -> Self {
        Self {
            database: Err(not_ready(Reason::Starting)),
            account: Account::Unasked,
            orphan: false,
            blocked: false,
            paused_until_ms: None,
            machine: Vec::new(),
            said: None,
            next_probe_ms: now_ms,
            interval_ms,
        }
    }

    pub(crate) fn database(&mut self, state: Result<(), NotReady>) {
        self.database = state;
    }

    pub(crate) fn orphan(&mut self, runs: bool) {
        self.orphan = runs;
    }

    /// What the checks of this Mac have found.
    pub(crate) fn machine(&mut self, checks: &[Check]) {
        self.machine.clear();
        for why in checks.iter().filter_map(Check::not_ready) {
            // Two folders on one full disk are one reason.
            if !self.machine_lacks(why.reason) {
                self.machine.push(why);
            }
        }
    }

    /// Whether this is among what is wrong with this Mac.
    pub(crate) fn machine_lacks(&self, reason: Reason) -> bool {
        self.machine.iter().any(|why| why.reason == reason)
    }

    /// Apple has blocked the account, or no longer.
    pub(crate) fn block(&mut self, blocked: bool, now_ms: i64) {
        self.blocked = blocked;
        self.suspect(now_ms);
    }

    /// Whether Apple has blocked the account.
    pub(crate) fn is_blocked(&self) -> bool {
        self.blocked
    }

    /// Messages is being restarted, or no longer.
    pub(crate) fn pause(&mut self, for_ms: u64, now_ms: i64) {
        if for_ms == 0 {
            self.resume(now_ms);
            return;
        }
        let for_ms = i64::try_from(for_ms).unwrap_or(i64::MAX).min(PAUSE_MS_MAX);
        self.paused_until_ms = Some(now_ms.saturating_add(for_ms));
        // Whatever it was: a Messages that was restarted must answer before it is sent to.
        self.account = Account::Bad(Reason::MessagesRestarting);
    }

    /// Ends a pause that was not asked for again.
    pub(crate) fn tick(&mut self, now_ms: i64) {
        if self.paused_until_ms.is_some_and(|until| now_ms >= until) {
            self.resume(now_ms);
        }
    }

    fn resume(&mut self, now_ms: i64) {
        if self.paused_until_ms.take().is_some() {
            self.next_probe_ms = now_ms;
        }
    }

    /// Whether nothing may talk to Messages now.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused_until_ms.is_some()
    }

    /// A send has shown something that only a probe can settle.
    pub(crate) fn suspect(&mut self, now_ms: i64) {
        if self.is_paused() {
            // It is known that something is wrong, and a probe follows the pause anyway.
            return;
        }
        self.account = Account::Suspect;
        self.next_probe_ms = now_ms;
    }

    /// What was answered last holds, and is asked again by then.
    pub(crate) fn ask_by(&mut self, at_ms: i64) {
        self.next_probe_ms = self.next_probe_ms.min(at_ms);
    }

    /// Whether the account should be asked now.
    pub(crate) fn probe_due(&self, now_ms: i64) -> bool {
        !self.is_paused() && now_ms >= self.next_probe_ms
    }

    /// A question is on its way; the next one is due after this time even if it gets no answer.
    pub(crate) fn probing(&mut self, now_ms: i64) {
        self.next_probe_ms = now_ms.saturating_add(self.interval_ms);
    }

    /// The answer.
    pub(crate) fn probed(&mut self, disposition: &Disposition, now_ms: i64) -> AccountNews {
        let standing = standing(disposition);
        let account = standing.reason.map_or(Account::Connected, Account::Bad);
        if !self.is_paused() {
            self.account = account;
        }
        let pause = match account {
            Account::Connected => self.interval_ms,
            Account::Unasked | Account::Suspect | Account::Bad(_) => {
                self.interval_ms.min(PROBE_WHILE_BAD_MS)
            }
        };
        self.next_probe_ms = now_ms.saturating_add(pause);
        AccountNews { state: standing.state, detail: standing.detail }
    }

    /// Automation was denied: only a person can change that, and a running process does not see it.
    pub(crate) fn is_forbidden(&self) -> bool {
        self.account == Account::Bad(Reason::AutomationDenied)
    }

    /// May new sends start?
    pub(crate) fn is_usable(&self) -> bool {
        self.account == Account::Connected && self.reasons().is_empty()
    }

    fn reasons(&self) -> Vec<NotReady> {
        let mut reasons: Vec<NotReady> =
            self.database.as_ref().err().cloned().into_iter().collect();
        if self.blocked {
            reasons.push(not_ready(Reason::AccountBlocked));
        }
        match self.account {
            Account::Connected | Account::Suspect => {}
            Account::Unasked => {
                if reasons.is_empty() {
                    reasons.push(not_ready(Reason::Starting));
                }
            }
            Account::Bad(reason) => reasons.push(not_ready(reason)),
        }
        reasons.extend(self.machine.iter().cloned());
        if self.orphan {
            reasons.push(NotReady {
                reason: Reason::MessagesTimeout,
                remedy: REMEDY_ORPHAN.to_owned(),
            });
        }
        reasons
    }

    /// What the listener must hear, if it has not.
    pub(crate) fn news(&mut self) -> Option<Up> {
        let reasons = self.reasons();
        if self.said.as_ref() == Some(&reasons) {
            return None;
        }
        self.said = Some(reasons.clone());
        Some(if reasons.is_empty() { Up::Ready } else { Up::NotReady { reasons } })
    }

    /// The listener is new and has heard nothing.
    pub(crate) fn forget_said(&mut self) {
        self.said = None;
    }
}

fn not_ready(reason: Reason) -> NotReady {
    NotReady { reason, remedy: remedy(reason).to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::osascript::of_number;

    fn answer(word: &str) -> Disposition {
        Disposition::Succeeded { output: word.to_owned() }
    }

    fn reasons(up: Option<Up>) -> Option<Vec<Reason>> {
        match up? {
            Up::Ready => Some(Vec::new()),
            Up::NotReady { reasons } => Some(reasons.into_iter().map(|why| why.reason).collect()),
            other @ (Up::Event(_) | Up::Hello(_) | Up::Released { .. } | Up::Heartbeat(_)) => {
                panic!("not a readiness: {other:?}")
            }
        }
    }

    #[test]
    fn ready_is_said_only_when_everything_is_proven_and_only_once() {
        let mut health = Health::new(60_000, 0);
        health.orphan(false);
        assert_eq!(reasons(health.news()), Some(vec![Reason::Starting]));
        health.database(Ok(()));
        assert!(!health.is_usable());
        health.probed(&answer("connected"), 0);
        assert!(health.is_usable());
        assert_eq!(reasons(health.news()), Some(vec![]));
        assert_eq!(health.news(), None);
        health.database(Err(not_ready(Reason::DatabaseLocked)));
        assert_eq!(reasons(health.news()), Some(vec![Reason::DatabaseLocked]));
    }

    #[test]
    fn every_answer_of_a_probe_has_its_state() {
        let cases = [
            (answer("connected"), AccountState::Ready, true),
            (answer("connecting"), AccountState::Degraded, false),
            (answer("disconnected"), AccountState::SignedOut, false),
            (of_number(-1743), AccountState::NoPermission, false),
            (of_number(-1744), AccountState::NoPermission, false),
            (of_number(-600), AccountState::Degraded, false),
            (of_number(-2753), AccountState::SignedOut, false),
            (of_number(-1719), AccountState::SignedOut, false),
            (of_number(-1712), AccountState::Degraded, false),
        ];
        for (disposition, state, usable) in cases {
            let mut health = Health::new(60_000, 0);
            health.orphan(false);
            health.database(Ok(()));
            assert_eq!(health.probed(&disposition, 0).state, state, "{disposition:?}");
            assert_eq!(health.is_usable(), usable, "{disposition:?}");
            // A question that waits is asked again: only a refusal needs another process.
            assert_eq!(health.is_forbidden(), disposition == of_number(-1743));
        }
    }

    #[test]
    fn a_full_disk_or_a_wrong_clock_keeps_a_phone_from_sending() {
        use crate::exit::Exit;
        let mut health = Health::new(60_000, 0);
        health.database(Ok(()));
        health.probed(&answer("connected"), 0);
        assert!(health.is_usable());
        let low = Check::error("state_disk", "full", Reason::DiskLow, Exit::TryAgain);
        health.machine(&[Check::ok("clock", "right"), low.clone(), low]);
        assert!(!health.is_usable() && health.machine_lacks(Reason::DiskLow));
        assert_eq!(reasons(health.news()), Some(vec![Reason::DiskLow]));
        health.machine(&[Check::warning("state_disk", "some", "Free it.")]);
        assert!(health.is_usable() && !health.machine_lacks(Reason::DiskLow));
        assert_eq!(reasons(health.news()), Some(vec![]));
    }

    #[test]
    fn a_blocked_account_sends_nothing_whatever_it_answers() {
        let mut health = Health::new(60_000, 0);
        health.database(Ok(()));
        health.block(true, 0);
        health.probed(&answer("connected"), 0);
        assert!(!health.is_usable());
        assert_eq!(reasons(health.news()), Some(vec![Reason::AccountBlocked]));
        health.block(false, 1_000);
        assert!(!health.is_usable() && health.probe_due(1_000), "it must answer first");
        health.probed(&answer("connected"), 1_100);
        assert!(health.is_usable());
        assert_eq!(reasons(health.news()), Some(vec![]));
    }

    #[test]
    fn a_pause_keeps_everything_from_messages_until_it_has_answered_again() {
        let mut health = Health::new(60_000, 0);
        health.database(Ok(()));
        health.probed(&answer("connected"), 0);
        assert!(health.is_usable());
        health.pause(20_000, 1_000);
        assert!(!health.is_usable() && !health.probe_due(100_000));
        assert_eq!(reasons(health.news()), Some(vec![Reason::MessagesRestarting]));
        // What was asked before and what a send has met change nothing of it.
        health.suspect(2_000);
        health.probed(&answer("connected"), 2_000);
        assert!(!health.is_usable() && !health.probe_due(100_000));
        health.tick(20_999);
        assert!(health.is_paused());
        health.tick(21_000);
        assert!(!health.is_paused() && health.probe_due(21_000) && !health.is_usable());
        assert_eq!(health.news(), None, "it has not answered yet");
        health.probed(&answer("connected"), 21_100);
        assert!(health.is_usable());
        assert_eq!(reasons(health.news()), Some(vec![]));

        health.pause(u64::MAX, 30_000);
        health.tick(30_000 + PAUSE_MS_MAX);
        assert!(!health.is_paused(), "nobody is paused for ever");
        health.pause(20_000, 100_000);
        health.pause(0, 100_100);
        assert!(!health.is_paused() && health.probe_due(100_100));
        // A pause that is ended twice does not make a healthy account be asked again.
        health.probed(&answer("connected"), 100_200);
        health.pause(0, 100_300);
        assert!(!health.probe_due(100_300) && health.is_usable());
    }

    #[test]
    fn an_account_that_is_to_be_asked_soon_is_as_good_as_before_until_it_has_answered() {
        let mut health = Health::new(60_000, 0);
        health.database(Ok(()));
        health.probed(&answer("connected"), 0);
        health.ask_by(1_000);
        assert!(health.is_usable() && !health.probe_due(999) && health.probe_due(1_000));
        // One that is due sooner is not put off.
        health.ask_by(5_000);
        assert!(health.probe_due(1_000));
    }

    #[test]
    fn a_bad_account_is_asked_more_often() {
        let mut health = Health::new(60_000, 0);
        assert!(health.probe_due(0));
        health.probing(0);
        assert!(!health.probe_due(59_999));
        health.probed(&answer("disconnected"), 1_000);
        assert!(health.probe_due(6_000));
        health.probed(&answer("connected"), 6_000);
        assert!(!health.probe_due(65_999));
        health.suspect(7_000);
        assert!(health.probe_due(7_000) && !health.is_usable());
    }
}
