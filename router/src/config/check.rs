//! Which values can work, and where one stands that cannot.

use std::path::Path;

use protocol::api::Tier;

use super::Raw;
use super::error::{ConfigError, line_of, offset_of};
use crate::warming::Step;

/// Requests a second, and at once, of a key: more than a router answers.
pub const RATE_MAX: u32 = 1_000_000;

/// Longest that something is kept which is not kept for ever: a century.
const DAYS_MAX: u32 = 36_500;

/// Steps of a phone's growth: far more than anybody would keep in mind.
const STEPS_MAX: usize = 32;

/// New contacts of a phone in a day. The times of so many are looked at for each choice; Apple blocks far below.
const NEW_CONTACTS_MAX: u32 = 1_000;

/// Complains about values, with where they stand in the file.
pub(super) struct Check<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
}

impl Check<'_> {
    pub(super) fn wrong(&self, field: &'static str, message: impl Into<String>) -> ConfigError {
        ConfigError::Value {
            path: self.path.display().to_string(),
            line: offset_of(self.text, field).map(|offset| line_of(self.text, offset)),
            field,
            message: message.into(),
        }
    }

    pub(super) fn range<T: PartialOrd + std::fmt::Display + Copy>(
        &self,
        field: &'static str,
        value: T,
        low: T,
        high: T,
    ) -> Result<(), ConfigError> {
        if value >= low && value <= high {
            return Ok(());
        }
        Err(self.wrong(field, format!("{value} is not between {low} and {high}")))
    }

    pub(super) fn all(&self, raw: &Raw) -> Result<(), ConfigError> {
        let Raw { limits, messages, dispatch, warming, lease, link, .. } = raw;
        let Raw { webhooks, compliance, log, .. } = raw;
        if raw.database.as_os_str().is_empty() {
            return Err(self.wrong("database", "is empty"));
        }
        self.range("database_log_mib", raw.database_log_mib, 0, crate::store::LOG_MIB_MAX)?;
        self.range("drain_ms", raw.drain_ms, 0, 600_000)?;
        if limits.tier == Tier::Custom {
            return Err(self.wrong("limits.tier", "\"custom\" is what single keys may be"));
        }
        for (per_second, burst, rate) in [
            ("limits.starter.per_second", "limits.starter.burst", limits.starter),
            ("limits.growth.per_second", "limits.growth.burst", limits.growth),
        ] {
            self.range(per_second, rate.per_second, 1, RATE_MAX)?;
            self.range(burst, rate.burst, 1, RATE_MAX)?;
        }
        // A text of 20,000 four-byte characters, every one escaped (12 bytes), must fit.
        self.range("limits.body_bytes", limits.body_bytes, 256 * 1024, 16 * 1024 * 1024)?;
        self.range("limits.request_timeout_ms", limits.request_timeout_ms, 100, 600_000)?;
        self.range("messages.ahead_s_max", messages.ahead_s_max, 60, 400 * 86_400)?;
        self.range("messages.life_s", messages.life_s, 1, messages.ahead_s_max)?;
        self.range("messages.otp_life_s", messages.otp_life_s, 1, messages.ahead_s_max)?;
        self.range("messages.batch_queued", messages.batch_queued, 1_000, 1_000_000)?;
        for (field, days) in [
            ("retention.recipients_days", raw.retention.recipients_days),
            ("retention.charges_days", raw.retention.charges_days),
            ("retention.audit_days", raw.retention.audit_days),
            ("retention.idle_batch_days", raw.retention.idle_batch_days),
            ("retention.capabilities_days", raw.retention.capabilities_days),
        ] {
            self.range(field, days, 0, DAYS_MAX)?;
        }
        self.range("dispatch.in_flight_per_phone", dispatch.in_flight_per_phone, 1, 10_000)?;
        self.range("dispatch.daily_cap", dispatch.daily_cap, 1, 1_000_000)?;
        self.range("dispatch.claim_batch", dispatch.claim_batch, 1, 1_000)?;
        self.range("dispatch.claim_ms", dispatch.claim_ms, 100, 600_000)?;
        self.range("dispatch.start_window_ms", dispatch.start_window_ms, 1_000, 3_600_000)?;
        self.range("dispatch.reoffer_ms", dispatch.reoffer_ms, 100, 600_000)?;
        self.range("dispatch.host_lost_ms", dispatch.host_lost_ms, 0, 86_400_000)?;
        self.range("dispatch.attempts", dispatch.attempts, 1, 20)?;
        self.range("dispatch.retry_first_ms", dispatch.retry_first_ms, 1, 600_000)?;
        self.range("dispatch.capability_ms", dispatch.capability_ms, 0, 2_592_000_000)?;
        self.growth(&warming.new_contacts)?;
        self.range("warming.new_contacts_per_hour", warming.new_contacts_per_hour, 1, 1_000)?;
        self.range("warming.unanswered", warming.unanswered, 0, 1_000)?;
        // The bridge stops 3 s before the end of a lease, and renews every 5 s.
        self.range("lease.ttl_ms", lease.ttl_ms, 4_000, 600_000)?;
        // A host that is asked has some round trips' time to answer.
        self.range("link.ping_ms", link.ping_ms, 500, 20_000)?;
        self.range("link.silence_ms", link.silence_ms, link.ping_ms.saturating_mul(2), 600_000)?;
        self.range("lease.grace_ms", lease.grace_ms, 0, 600_000)?;
        self.range("lease.unfit_ms", lease.unfit_ms, 1_000, 86_400_000)?;
        self.range("lease.settle_ms", lease.settle_ms, 0, 86_400_000)?;
        self.range("webhooks.timeout_ms", webhooks.timeout_ms, 100, 60_000)?;
        self.range("webhooks.per_endpoint", webhooks.per_endpoint, 1, 1_000)?;
        self.range("webhooks.in_flight", webhooks.in_flight, webhooks.per_endpoint, 10_000)?;
        self.range("webhooks.endpoints_per_tenant", webhooks.endpoints_per_tenant, 1, 1_000)?;
        self.range("compliance.guard_s", compliance.guard_s, 0, 3_600)?;
        self.range("compliance.reply_s", compliance.reply_s, 60, 30 * 86_400)?;
        self.range(
            "compliance.reply_at_night_s",
            compliance.reply_at_night_s,
            0,
            compliance.reply_s,
        )?;
        self.range("compliance.otp_life_s_max", compliance.otp_life_s_max, 10, 3_600)?;
        if compliance.blocked_words.iter().any(|word| !word.contains(char::is_alphanumeric)) {
            return Err(
                self.wrong("compliance.blocked_words", "has an entry without a letter or digit")
            );
        }
        log.filter
            .parse::<tracing_subscriber::EnvFilter>()
            .map(drop)
            .map_err(|error| self.wrong("log.filter", error.to_string()))
    }

    /// A phone only ever grows, from its first day on.
    fn growth(&self, steps: &[Step]) -> Result<(), ConfigError> {
        let wrong = |message: String| Err(self.wrong("warming.new_contacts", message));
        if steps.first().is_none_or(|first| first.from_day != 0) {
            return wrong("the first step must be from_day = 0".to_owned());
        }
        if steps.len() > STEPS_MAX {
            return wrong(format!("{} steps are more than {STEPS_MAX}", steps.len()));
        }
        for step in steps {
            if !(1..=NEW_CONTACTS_MAX).contains(&step.per_day) {
                return wrong(format!(
                    "per_day = {} is not between 1 and {NEW_CONTACTS_MAX}",
                    step.per_day
                ));
            }
        }
        for (before, after) in steps.iter().zip(steps.iter().skip(1)) {
            if after.from_day <= before.from_day || after.per_day < before.per_day {
                return wrong(format!(
                    "from_day = {} must come after {} and allow as many at least",
                    after.from_day, before.from_day
                ));
            }
        }
        Ok(())
    }
}
