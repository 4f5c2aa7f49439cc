//! Recipients who must not be written to: the present state, and the history that proves it.

use protocol::api::{OptOut, OptOutEvent};
use protocol::{EventId, MessageId, PhoneId, Recipient, TenantId, UnixMs};

use super::{Json, Row, StoreError, Tx};
use crate::params;

/// How a wish came to be known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A whole message that is a keyword.
    Keyword,
    /// A message that says it in other words.
    Inferred,
    /// The tenant says so.
    Api,
    /// It stood on a list that was kept elsewhere.
    Import,
    /// The operator says so.
    Operator,
    /// A provider of SMS says that they have told it.
    Provider,
}

impl Method {
    /// The stable word.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Keyword => "keyword",
            Self::Inferred => "inferred",
            Self::Api => "api",
            Self::Import => "import",
            Self::Operator => "operator",
            Self::Provider => "provider",
        }
    }
}

/// What a recipient wishes, and how that is known.
#[derive(Debug, Clone)]
pub struct Wish<'a> {
    /// `opted_out`, `opted_in`, `possible` or `help`.
    pub action: &'a str,
    /// How it is known.
    pub method: Method,
    /// The message that said so, and where it came in.
    pub message: Option<(&'a MessageId, &'a PhoneId)>,
    /// What was written.
    pub text: Option<&'a str>,
    /// Where else it is known from.
    pub evidence: Option<serde_json::Value>,
    /// The version of the rules that judged it.
    pub rules: &'a str,
    /// When it was uttered.
    pub at: UnixMs,
    /// It may be told long after it was uttered, so that what stands may be newer. What was not is the newest wish there
    /// is, whatever the clock showed when what stands was written down.
    pub late: bool,
}

/// What a wish did to the opt-out of (tenant, recipient).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turned {
    /// It was so already, or something newer stands.
    Nothing,
    /// From now on nothing may be sent, or may be again.
    Over,
}

/// Whose wish it is, and towards whom: a tenant, with `true` for what its messages of the sandbox alone obey, and the
/// recipient.
pub type About<'a> = ((&'a TenantId, bool), &'a Recipient);

/// Adds a step to the history, whatever it changed.
pub fn note(
    tx: &mut Tx<'_>,
    ((tenant, test), recipient): About<'_>,
    wish: &Wish<'_>,
    id: &EventId,
) -> Result<(), StoreError> {
    tx.execute(
        "INSERT INTO opt_out_events
             (id, tenant_id, recipient, action, method, at, message_id, phone_id, text, evidence, rules, test)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12)",
        params![
            id,
            tenant,
            recipient,
            wish.action,
            wish.method.as_str(),
            wish.at,
            wish.message.map(|(message, _)| message.clone()),
            wish.message.map(|(_, phone)| phone.clone()),
            wish.text,
            wish.evidence.as_ref().map(Json),
            wish.rules,
            test
        ],
    )?;
    Ok(())
}

/// Writes down what a recipient wishes: the present state, and the step in its history. Only a real change of mind
/// counts as one, and only that is kept: whoever says STOP twice has said it once.
pub fn turn(
    tx: &mut Tx<'_>,
    ((tenant, test), recipient): About<'_>,
    wish: &Wish<'_>,
    id: &EventId,
) -> Result<Turned, StoreError> {
    let before = tx.query_opt(
        "SELECT state, at FROM opt_outs WHERE tenant_id = ?1 AND test = ?3 AND recipient = ?2",
        params![tenant, recipient, test],
        |row| Ok((row.text(0)?, row.get::<UnixMs>(1)?)),
    )?;
    let opts_out = wish.action == "opted_out";
    let at = match before {
        None if opts_out => wish.at,
        // Who never opted out cannot opt back in.
        None => return Ok(Turned::Nothing),
        Some((state, stands)) if state == wish.action => {
            // Said again later, it outlasts a change of mind from between that is told after both.
            if opts_out && wish.at > stands {
                tx.execute(
                    "UPDATE opt_outs SET at = ?4 WHERE tenant_id = ?1 AND test = ?3 AND recipient = ?2",
                    params![tenant, recipient, test, wish.at],
                )?;
            }
            return Ok(Turned::Nothing);
        }
        // iCloud may bring an old message long after a newer one, and a bridge what has waited for it. Which of two of
        // the same moment came last nobody knows: then nothing may be sent.
        Some((_, stands))
            if wish.late && (stands > wish.at || (stands == wish.at && !opts_out)) =>
        {
            return Ok(Turned::Nothing);
        }
        Some((_, stands)) => stands.max(wish.at),
    };
    let wish = &Wish { at, ..wish.clone() };
    tx.execute(
        "INSERT INTO opt_outs (tenant_id, recipient, state, method, keyword, message_id, at, test)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
         ON CONFLICT (tenant_id, test, recipient) DO UPDATE SET state = excluded.state, method = excluded.method,
             keyword = excluded.keyword, message_id = excluded.message_id, at = excluded.at",
        params![
            tenant,
            recipient,
            wish.action,
            wish.method.as_str(),
            wish.text,
            wish.message.map(|(message, _)| message.clone()),
            wish.at,
            test
        ],
    )?;
    note(tx, ((tenant, test), recipient), wish, id)?;
    Ok(Turned::Over)
}

/// Since when a recipient has been opted out; `None` where they have not.
pub fn out_since(
    tx: &mut Tx<'_>,
    ((tenant, test), recipient): About<'_>,
) -> Result<Option<UnixMs>, StoreError> {
    tx.query_opt(
        "SELECT at FROM opt_outs WHERE tenant_id = ?1 AND test = ?3 AND recipient = ?2 AND state = 'opted_out'",
        params![tenant, recipient, test],
        |row| row.get(0),
    )
}

/// Whether HELP was answered for this recipient since `since`.
pub fn helped_since(
    tx: &mut Tx<'_>,
    ((tenant, test), recipient): About<'_>,
    since: UnixMs,
) -> Result<bool, StoreError> {
    let newest = tx.query_opt(
        "SELECT at FROM opt_out_events WHERE tenant_id = ?1 AND recipient = ?2 AND action = 'help' AND test = ?3
         ORDER BY id DESC LIMIT 1",
        params![tenant, recipient, test],
        |row| row.get::<UnixMs>(0),
    )?;
    Ok(newest.is_some_and(|at| at >= since))
}

/// A tenant's opt-outs by recipient, after `after`. Answers one row more than `limit` where there is more.
pub fn list(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    after: &str,
    limit: u32,
) -> Result<Vec<OptOut>, StoreError> {
    tx.query(
        "SELECT recipient, method, at, message_id FROM opt_outs
         WHERE tenant_id = ?1 AND test = ?4 AND recipient > ?2 AND state = 'opted_out' ORDER BY recipient LIMIT ?3",
        params![tenant, after, limit.saturating_add(1), test],
        |row| {
            Ok(OptOut {
                recipient: row.get(0)?,
                method: row.get(1)?,
                at: row.get(2)?,
                message: row.get(3)?,
            })
        },
    )
}

/// Which steps of the history are asked for.
#[derive(Debug, Clone, Default)]
pub struct Steps {
    /// Only this recipient's.
    pub recipient: Option<Recipient>,
    /// Only those that a person has still to look at.
    pub to_review: bool,
}

/// A tenant's history of opt-outs, newest first, before `before`. Answers one row more than `limit` where there is more.
pub fn history(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    steps: &Steps,
    before: Option<&str>,
    limit: u32,
) -> Result<Vec<OptOutEvent>, StoreError> {
    // Behind every id: ids are prefix and 0-9a-v.
    let before = before.unwrap_or("~");
    let values = params![tenant, before, limit.saturating_add(1), steps.recipient];
    tx.query(&history_sql(steps, test), values, step)
}

/// Each list has an index of its own, whose condition stands here word for word; the mode is asked for so that it does not
/// bring in the index of another.
fn history_sql(steps: &Steps, test: bool) -> String {
    let of_whom = if steps.recipient.is_some() { "recipient = ?4" } else { "?4 IS NULL" };
    let which = if steps.to_review {
        "reviewed_at IS NULL AND (method = 'inferred' OR action = 'possible')"
    } else {
        "1 = 1"
    };
    let all = steps.recipient.is_none() && !steps.to_review;
    let column = if all { "test" } else { "COALESCE(test, 0)" };
    let mode = i32::from(test);
    format!(
        "SELECT id, recipient, action, method, at, message_id, phone_id, text, evidence, rules, reviewed_at
         FROM opt_out_events WHERE tenant_id = ?1 AND id < ?2 AND {of_whom} AND {which} AND {column} = {mode}
         ORDER BY id DESC LIMIT ?3"
    )
}

fn step(row: &Row<'_>) -> Result<OptOutEvent, StoreError> {
    let evidence: Option<Json<serde_json::Value>> = row.get(8)?;
    Ok(OptOutEvent {
        id: row.get(0)?,
        recipient: row.get(1)?,
        action: row.text(2)?,
        method: row.text(3)?,
        at: row.get(4)?,
        message: row.get(5)?,
        phone: row.get(6)?,
        text: row.opt_text(7)?,
        evidence: evidence.map(|Json(value)| value),
        rules: row.text(9)?,
        reviewed_at: row.get(10)?,
    })
}

/// Notes that a person has looked at a step; false when there is no such step.
pub fn review(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    id: &EventId,
    now: UnixMs,
) -> Result<bool, StoreError> {
    let changed = tx.execute(
        "UPDATE opt_out_events SET reviewed_at = COALESCE(reviewed_at, ?3)
         WHERE id = ?1 AND tenant_id = ?2 AND test = ?4",
        params![id, tenant, now, test],
    )?;
    Ok(changed > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::in_memory;

    #[test]
    fn a_history_reads_its_page_alone() {
        let connection = in_memory::open();
        let of_one =
            || Steps { recipient: Some("+12025550143".parse().unwrap()), to_review: false };
        let to_review = || Steps { recipient: None, to_review: true };
        for (steps, test, index) in [
            (Steps::default(), false, "opt_out_events_live (tenant_id=? AND id<?)"),
            (Steps::default(), true, "opt_out_events_of_sandbox (tenant_id=? AND id<?)"),
            (of_one(), false, "opt_out_events_by_recipient (tenant_id=? AND recipient=? AND id<?)"),
            (of_one(), true, "opt_out_events_by_recipient (tenant_id=? AND recipient=? AND id<?)"),
            (to_review(), false, "opt_out_events_to_review (tenant_id=? AND id<?)"),
        ] {
            let plan = in_memory::plan(&connection, &history_sql(&steps, test));
            assert!(plan.contains(index), "{steps:?} {test}: {plan}");
            assert!(!plan.contains("TEMP B-TREE") && !plan.contains("SCAN"), "{plan}");
        }
    }
}
