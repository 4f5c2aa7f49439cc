//! Which uplink: pure. Probes come in, one decision comes out; time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use protocol::link::UplinkState;
use router_client::clock::ContinuousMs;

/// What steadies the choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    /// So many bad rounds in a row, and an uplink is down.
    pub(crate) down_after: u32,
    /// So many good rounds in a row, and it is good.
    pub(crate) up_after: u32,
    /// After a switch there is no other for so long.
    pub(crate) hold: Duration,
    /// A preferred uplink must answer without a fault for so long before it is gone back to.
    pub(crate) fail_back: Duration,
    /// So many switches within the window lock the choice.
    pub(crate) switches_max: usize,
    /// The window.
    pub(crate) window: Duration,
    /// So long.
    pub(crate) lock: Duration,
    /// A lock is not stronger than an uplink that has been down for so long beside one that has proved itself.
    pub(crate) rescue_after: Duration,
    /// An answer that is older than this proves nothing: the uplink must have answered since.
    pub(crate) fresh: Duration,
    /// Without an answer for so long (the machine slept) an uplink begins anew.
    pub(crate) gap: Duration,
    /// A switch that failed is tried again after this.
    pub(crate) again: Duration,
}

impl Default for Policy {
    /// facts: 3 failures, 60 s, 120 s and 3 flaps in 15 minutes are proposals; a flap is two switches.
    fn default() -> Self {
        Self {
            down_after: 3,
            up_after: 2,
            hold: Duration::from_mins(1),
            fail_back: Duration::from_mins(2),
            switches_max: 6,
            window: Duration::from_mins(15),
            lock: Duration::from_mins(30),
            rescue_after: Duration::from_mins(5),
            fresh: Duration::from_secs(15),
            gap: Duration::from_mins(3),
            again: Duration::from_secs(10),
        }
    }
}

/// What one round of probes over one uplink saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Somebody answered as only they can.
    Good,
    /// Somebody answered in another's place.
    Captive,
    /// Nobody answered.
    Nothing,
}

/// How soon an uplink is probed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pace {
    /// Something is about to be decided.
    Quick,
    /// It is in use, or would be gone back to.
    Usual,
    /// It stands by; it may be paid for by the byte.
    Rare,
}

/// Why it stays where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stay {
    /// Nothing better is known.
    Fine,
    /// The uplink is lost, and no other is known to be good.
    NoOther,
    /// The last switch is too young.
    Settling {
        /// When that is over.
        until: ContinuousMs,
    },
    /// A preferred uplink is good again and must prove itself.
    Proving {
        /// When that is done.
        until: ContinuousMs,
    },
    /// It has switched too often.
    Locked {
        /// When that is over.
        until: ContinuousMs,
    },
    /// The switch was tried and failed.
    Failed {
        /// When it is tried again.
        until: ContinuousMs,
    },
}

/// Why it switches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Why {
    /// The uplink in use is lost.
    Lost,
    /// A preferred one has been good for long enough.
    Better,
}

impl Why {
    /// The stable word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Better => "better",
        }
    }
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Decision {
    /// Nothing.
    Stay(Stay),
    /// Go to another uplink.
    Switch {
        /// Which.
        to: usize,
        /// The reason.
        why: Why,
    },
}

/// One uplink, as its rounds have shown it.
#[derive(Debug, Clone, Copy)]
struct Uplink {
    state: UplinkState,
    last: Option<(Seen, ContinuousMs)>,
    /// Rounds in a row that were all good, or all not.
    run: u32,
    /// When that began.
    since: ContinuousMs,
}

impl Uplink {
    const NEW: Self = Self { state: UplinkState::Unknown, last: None, run: 0, since: 0 };

    fn is_good_now(&self) -> bool {
        matches!(self.last, Some((Seen::Good, _)))
    }

    /// For how long its rounds have been what the last one was.
    fn lasted(&self, now: ContinuousMs) -> Duration {
        Duration::from_millis(now.saturating_sub(self.since))
    }
}

/// Chooses.
#[derive(Debug)]
pub(crate) struct Chooser {
    policy: Policy,
    uplinks: Vec<Uplink>,
    chosen: usize,
    /// When it switched, as far back as the window reaches.
    switches: VecDeque<ContinuousMs>,
    locked_until: ContinuousMs,
    again_at: ContinuousMs,
}

/// A time after another one.
pub(super) fn after(at: ContinuousMs, period: Duration) -> ContinuousMs {
    at.saturating_add(u64::try_from(period.as_millis()).unwrap_or(u64::MAX))
}

impl Chooser {
    /// Over so many uplinks in order of preference, of which one is in use. There must be at least one.
    pub(crate) fn new(policy: Policy, uplinks: usize, chosen: usize) -> Self {
        Self {
            policy,
            uplinks: vec![Uplink::NEW; uplinks.max(1)],
            chosen: chosen.min(uplinks.saturating_sub(1)),
            switches: VecDeque::new(),
            locked_until: 0,
            again_at: 0,
        }
    }

    /// Goes by another policy from now on.
    pub(crate) fn retune(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// Takes a round in; the change of the uplink's state, if that was one.
    pub(crate) fn saw(
        &mut self,
        uplink: usize,
        seen: Seen,
        now: ContinuousMs,
    ) -> Option<(UplinkState, UplinkState)> {
        let policy = self.policy;
        let it = self.uplinks.get_mut(uplink)?;
        let before = it.state;
        if it.last.is_some_and(|(_, at)| now > after(at, policy.gap)) {
            *it = Uplink::NEW;
        }
        let good = seen == Seen::Good;
        let same = it.last.is_some_and(|(last, _)| (last == Seen::Good) == good);
        (it.run, it.since) = if same { (it.run.saturating_add(1), it.since) } else { (1, now) };
        it.last = Some((seen, now));
        match seen {
            Seen::Good if it.run >= policy.up_after => it.state = UplinkState::Good,
            Seen::Captive if it.run >= policy.down_after => it.state = UplinkState::Captive,
            Seen::Nothing if it.run >= policy.down_after => it.state = UplinkState::Down,
            Seen::Good | Seen::Captive | Seen::Nothing => {}
        }
        (before != it.state).then_some((before, it.state))
    }

    /// What to do now.
    pub(crate) fn decide(&self, now: ContinuousMs) -> Decision {
        let policy = &self.policy;
        let Some(here) = self.uplinks.get(self.chosen) else {
            return Decision::Stay(Stay::Fine);
        };
        // One that has just answered again is given the next round to show what it is.
        let lost = is_lost(here.state) && !here.is_good_now();
        let proved = |it: &Uplink| it.lasted(now) >= policy.fail_back;
        // Locked or not, nobody goes to an uplink that has not just answered.
        let mut usable = self.uplinks.iter().enumerate().filter(|(at, it)| {
            *at != self.chosen
                && it.state == UplinkState::Good
                && it.run >= policy.up_after
                && matches!(it.last, Some((Seen::Good, last)) if now <= after(last, policy.fresh))
        });
        let locked = now < self.locked_until;
        let (to, why) = if lost {
            let rescue = here.lasted(now) >= policy.rescue_after;
            let first = usable.clone().next();
            match (locked, usable.find(|(_, it)| rescue && proved(it)), first) {
                (_, _, None) => return Decision::Stay(Stay::NoOther),
                (true, None, Some(_)) => {
                    return Decision::Stay(Stay::Locked { until: self.locked_until });
                }
                (true, Some((to, _)), _) | (false, _, Some((to, _))) => (to, Why::Lost),
            }
        } else {
            let mut better = usable.filter(|(at, _)| *at < self.chosen);
            let first = better.clone().next();
            match (better.find(|(_, it)| proved(it)), first) {
                (Some(_), _) if locked => {
                    return Decision::Stay(Stay::Locked { until: self.locked_until });
                }
                (Some((to, _)), _) => (to, Why::Better),
                (None, Some((_, it))) => {
                    return Decision::Stay(Stay::Proving {
                        until: after(it.since, policy.fail_back),
                    });
                }
                (None, None) => return Decision::Stay(Stay::Fine),
            }
        };
        let settled = self.switches.back().map_or(0, |last| after(*last, policy.hold));
        if now < settled {
            return Decision::Stay(Stay::Settling { until: settled });
        }
        if now < self.again_at {
            return Decision::Stay(Stay::Failed { until: self.again_at });
        }
        Decision::Switch { to, why }
    }

    /// A decision was carried out. True when that was one too many: it stays where it is from now on.
    pub(crate) fn switched(&mut self, to: usize, now: ContinuousMs) -> bool {
        self.chosen = to;
        self.switches.retain(|at| now < after(*at, self.policy.window));
        self.switches.push_back(now);
        let locks = self.switches.len() >= self.policy.switches_max;
        if locks {
            self.locked_until = after(now, self.policy.lock);
        }
        locks
    }

    /// A decision could not be carried out.
    pub(crate) fn failed(&mut self, now: ContinuousMs) {
        self.again_at = after(now, self.policy.again);
    }

    /// Somebody else has chosen.
    pub(crate) fn found(&mut self, chosen: usize) {
        if chosen < self.uplinks.len() {
            self.chosen = chosen;
        }
    }

    /// How soon an uplink is probed again.
    pub(crate) fn pace(&self, uplink: usize) -> Pace {
        let (Some(here), Some(it)) = (self.uplinks.get(self.chosen), self.uplinks.get(uplink))
        else {
            return Pace::Usual;
        };
        let suspect = here.last.is_some() && !here.is_good_now() && !is_lost(here.state);
        let known = it.state == UplinkState::Good && it.run >= self.policy.up_after;
        let rising = it.is_good_now() && !known;
        if suspect || (is_lost(here.state) && rising) {
            return Pace::Quick;
        }
        let stands_by = uplink > self.chosen && here.is_good_now() && !rising;
        if stands_by && it.state != UplinkState::Unknown { Pace::Rare } else { Pace::Usual }
    }

    /// The uplink in use.
    pub(crate) fn chosen(&self) -> usize {
        self.chosen
    }

    /// How an uplink is.
    pub(crate) fn state(&self, uplink: usize) -> UplinkState {
        self.uplinks.get(uplink).map_or(UplinkState::Unknown, |it| it.state)
    }

    /// Whether it stays where it is because it switched too often.
    pub(crate) fn is_locked(&self, now: ContinuousMs) -> bool {
        now < self.locked_until
    }
}

fn is_lost(state: UplinkState) -> bool {
    match state {
        UplinkState::Down | UplinkState::Captive => true,
        UplinkState::Good | UplinkState::Unknown => false,
    }
}

#[cfg(test)]
#[path = "choice_tests.rs"]
mod tests;
