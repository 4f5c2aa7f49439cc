//! The look at the Mac itself, once a minute: disks, clock, and what the newest rows of chat.db
//! say, judged by the very checks of `doctor`.

use std::path::Path;

use protocol::Reason;

use super::{Daemon, Evidence, Now};
use crate::checks::history::refusals;
use crate::checks::machine::{self as checks, Clocks};
use crate::checks::{Check, Outcome};
use crate::machine;

/// What was last written to the log of each check: a disk that stays low is one line, not one a
/// minute.
pub(super) type Logged = Vec<(&'static str, Outcome)>;

impl<E: Evidence> Daemon<E> {
    pub(super) fn look_at_machine(&mut self, now: Now) {
        let pulse = match self.evidence.pulse(now) {
            Ok(pulse) => Some(pulse),
            Err(why) => {
                // Whoever reads it next says so, and waits it out.
                tracing::debug!(reason = %why.reason, "no look at the newest rows");
                None
            }
        };
        if let Some(pulse) = &pulse {
            self.heartbeat.last_inbound = self.heartbeat.last_inbound.max(pulse.newest_inbound);
            self.heartbeat.last_receipt = self.heartbeat.last_receipt.max(pulse.newest_receipt);
            self.heartbeat.own_last_hour = pulse.own_last_hour;
            self.heartbeat.not_registered_last_hour = pulse.not_registered_last_hour;
        }
        let again = (self.clock)();
        let clocks =
            Clocks { wall: now.wall, continuous_ms: (now.continuous_ms, again.continuous_ms) };
        let was_low = self.health.machine_lacks(Reason::DiskLow);
        let low = self.config.disk_low_mib;
        let disk =
            |check, path: &Path| checks::disk(check, path, &machine::disk(path), low, was_low);
        let mut found = vec![
            checks::clock(clocks, pulse.as_ref()),
            disk("state_disk", &self.config.state_dir),
            disk("attachments_disk", &machine::attachments(&self.config.chat_db)),
        ];
        found.extend(pulse.as_ref().map(refusals));
        for check in news(&mut self.machine_logged, &found) {
            match check.outcome {
                Outcome::Error | Outcome::Warning => {
                    let Check { subject, found, remedy, .. } = check;
                    tracing::warn!(check = subject, found, remedy);
                }
                Outcome::Ok | Outcome::Skipped => {
                    tracing::info!(check = check.subject, found = check.found);
                }
            }
        }
        self.health.machine(&found);
    }
}

/// The checks that came out otherwise than the last time; at the first look, those that are not well.
fn news<'a>(logged: &mut Logged, found: &'a [Check]) -> Vec<&'a Check> {
    let news = found
        .iter()
        .filter(|check| {
            let last = logged.iter().find(|(subject, _)| *subject == check.subject);
            last.map_or(Outcome::Ok, |(_, outcome)| *outcome) != check.outcome
        })
        .collect();
    for check in found {
        match logged.iter_mut().find(|(subject, _)| *subject == check.subject) {
            Some((_, outcome)) => *outcome = check.outcome,
            None => logged.push((check.subject, check.outcome)),
        }
    }
    news
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_as_it_is_is_logged_once_and_its_end_as_well() {
        let mut logged = Logged::new();
        let well = || Check::ok("clock", "x");
        let bad = || Check::warning("clock", "x", "y");
        let told = |logged: &mut Logged, checks: &[Check]| -> Vec<Outcome> {
            news(logged, checks).iter().map(|check| check.outcome).collect()
        };
        assert_eq!(told(&mut logged, &[well()]), []);
        assert_eq!(told(&mut logged, &[bad(), Check::ok("disk", "x")]), [Outcome::Warning]);
        assert_eq!(told(&mut logged, &[bad()]), []);
        // Not looked at this time: what was said of it still holds.
        assert_eq!(told(&mut logged, &[]), []);
        assert_eq!(told(&mut logged, &[bad()]), []);
        assert_eq!(told(&mut logged, &[well()]), [Outcome::Ok]);
        assert_eq!(logged.len(), 2);
    }
}
