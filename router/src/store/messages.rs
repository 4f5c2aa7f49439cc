//! Messages: accepted, listed, canceled.

use std::collections::BTreeMap;

use protocol::api::{Direction, Media, Message, UsedTemplate, WebhookData};
use protocol::{
    BatchId, Channel, ChannelChoice, Class, E164, MessageId, PhoneId, Reason, Recipient, Status,
    TenantId, UnixMs,
};

use super::credit::{self, Reservation};
use super::events::{self, NewEvent};
use super::{Json, Row, StoreError, Tx, Value, queue, webhook_jobs};
use crate::billing::Refusal;
use crate::compliance::content;
use crate::params;
use crate::shares;

/// An outbound message as it is accepted.
#[derive(Clone, Debug)]
pub struct NewMessage {
    /// Its id.
    pub id: MessageId,
    /// Made with a test key: it goes to phones of the sandbox alone.
    pub test: bool,
    /// Whom it goes to.
    pub recipient: Recipient,
    /// The number to send from, where one was asked for.
    pub from: Option<E164>,
    /// The channel asked for.
    pub channel: ChannelChoice,
    /// Channels to be tried after it, where that was asked for.
    pub fallback: Option<Vec<Channel>>,
    /// What rules apply.
    pub class: Class,
    /// Its text; may be empty where there are files.
    pub text: String,
    /// What the text was made from.
    pub template: Option<UsedTemplate>,
    /// Files that go with it.
    pub media: Vec<Media>,
    /// The batch that it is one of.
    pub batch: Option<BatchId>,
    /// What the tenant keeps with it.
    pub metadata: Option<BTreeMap<String, String>>,
    /// Not before; `scheduled` until then.
    pub send_at: Option<UnixMs>,
    /// Not after.
    pub expires_at: UnixMs,
    /// When it is accepted.
    pub now: UnixMs,
}

/// Which messages a list holds.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    /// Only with this status.
    pub status: Option<Status>,
    /// Only this way.
    pub direction: Option<Direction>,
    /// Only to or from this other side.
    pub recipient: Option<Recipient>,
    /// Only what belongs to the sandbox: what a test key may see.
    pub test: bool,
}

/// A place in a list: what lies before this id (newest first), at most so many.
#[derive(Clone, Debug)]
pub struct Window {
    /// The last id of the page before.
    pub before: Option<String>,
    /// Rows to answer.
    pub limit: u32,
}

/// How a cancel went.
#[derive(Clone, Debug, PartialEq)]
pub enum Canceled {
    /// It never was with a phone, and never will be.
    Now(Box<Message>),
    /// A phone has it; the phone is asked, its answer is the outcome.
    Asked(Box<Message>),
    /// It has ended already.
    TooLate(Status),
}

/// Reserves what one message costs whoever pays for the tenant. Messages made with test keys cost nothing.
pub fn reserve(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    new: &NewMessage,
) -> Result<Result<Reservation, Refusal>, StoreError> {
    if new.test {
        return Ok(Ok(Reservation::FREE));
    }
    credit::reserve(tx, tenant, 1, new.now)
}

/// Stores a message with its first event, its job and its webhooks, in the caller's transaction, which has reserved what it
/// costs.
pub fn accept(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    new: &NewMessage,
    reservation: &Reservation,
) -> Result<Message, StoreError> {
    let status = if new.send_at.is_some() { Status::Scheduled } else { Status::Queued };
    tx.execute(
        "INSERT INTO messages (id, tenant_id, direction, kind, test, recipient, asked_from, channel_asked, class,
            text, metadata, status, next_at, send_at, expires_at, attempts, sequence, cancel_asked, created_at,
            updated_at, template_id, template_version, fallback, media, batch_id, room,
            on_the_way)
         VALUES (?1, ?2, 'outbound', 'tenant', ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?11, ?12, 0, 1, 0, ?13, ?13,
            ?14, ?15, ?16, ?17, ?18, zeroblob(96), 1)",
        params![
            new.id,
            tenant,
            new.test,
            new.recipient,
            new.from,
            new.channel,
            new.class,
            new.text,
            new.metadata.as_ref().map(Json),
            status,
            new.send_at,
            new.expires_at,
            new.now,
            new.template.as_ref().map(|used| &used.id),
            new.template.as_ref().map(|used| used.version),
            new.fallback.as_ref().map(Json),
            (!new.media.is_empty()).then_some(Json(&new.media)),
            new.batch
        ],
    )?;
    events::insert(tx, (tenant, &new.id), 1, &[NewEvent::new(status.as_str(), new.now)])?;
    if !new.test {
        let kind = (new.class, new.channel);
        let segments = content::segments(&new.text);
        credit::accepted(tx, (tenant, &new.id), kind, segments, reservation, new.now)?;
    }
    let message = Message {
        id: new.id.clone(),
        direction: Direction::Outbound,
        status,
        reason: None,
        held_reason: None,
        next_at: new.send_at,
        to: new.recipient.clone(),
        from: new.from.clone(),
        phone: None,
        text: new.text.clone(),
        template: new.template.clone(),
        media: new.media.clone(),
        batch: new.batch.clone(),
        channel: new.channel,
        fallback: new.fallback.clone(),
        channel_used: None,
        class: new.class,
        attempts: 0,
        sequence: 1,
        created_at: new.now,
        updated_at: new.now,
        send_at: new.send_at,
        expires_at: Some(new.expires_at),
        metadata: new.metadata.clone(),
    };
    tell(tx, (tenant, new.test), &message, Status::Queued, new.now)?;
    // Where there is no sandbox, a story is played, so that an integration can be tried out on any router.
    if new.test && !has_sandbox(tx, tenant)? {
        return simulate(tx, tenant, message, new.now);
    }
    let due = (new.send_at.unwrap_or(new.now), new.now);
    let rank = shares::rank(new.class, new.test);
    queue::add(tx, (tenant, &new.id), rank, due)?;
    Ok(message)
}

/// There is a phone of the sandbox that the tenant may use.
pub fn has_sandbox(tx: &mut Tx<'_>, tenant: &TenantId) -> Result<bool, StoreError> {
    let found = tx.query_opt(
        "SELECT 1 FROM phones WHERE sandbox = 1 AND (exclusive_tenant_id IS NULL OR exclusive_tenant_id = ?1) LIMIT 1",
        params![tenant],
        |row| row.int(0),
    )?;
    Ok(found.is_some())
}

/// The whole life of a message made with a test key, at once: whoever integrates sees the webhooks of a delivery.
fn simulate(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    mut message: Message,
    now: UnixMs,
) -> Result<Message, StoreError> {
    for status in [Status::Sent, Status::Delivered] {
        let detail = Some("made with a test key; no phone was used");
        let event = NewEvent { detail, ..NewEvent::new(status.as_str(), now) };
        message.sequence = events::append(tx, tenant, &message.id, &[event])?;
        message.status = status;
        message.next_at = None;
        tell(tx, (tenant, true), &message, status, now)?;
    }
    tx.execute(
        "UPDATE messages SET status = ?3, next_at = NULL, on_the_way = 0 WHERE id = ?1 AND tenant_id = ?2",
        params![message.id, tenant, message.status],
    )?;
    Ok(message)
}

/// Puts a status into the tenant's outbox.
fn tell(
    tx: &mut Tx<'_>,
    (tenant, test): (&TenantId, bool),
    message: &Message,
    news: Status,
    at: UnixMs,
) -> Result<(), StoreError> {
    let data = WebhookData {
        tenant: Some(tenant.clone()),
        message: Some(message.id.clone()),
        sequence: Some(message.sequence),
        status: Some(message.status),
        direction: Some(message.direction),
        recipient: Some(message.to.clone()),
        number: message.from.clone(),
        phone: message.phone.clone(),
        channel: message.channel_used,
        reason: message.reason,
        next_at: message.next_at,
        metadata: message.metadata.clone(),
        ..WebhookData::default()
    };
    webhook_jobs::enqueue(tx, (tenant, test), &format!("message.{news}"), &data, at)?;
    Ok(())
}

/// The columns that [`read`] reads, in its order.
const COLUMNS: &str = "m.id, m.direction, m.status, m.reason, m.held_reason, m.next_at, m.recipient, m.asked_from, \
     p.number, m.phone_id, m.text, m.channel_asked, m.channel_used, m.class, m.attempts, m.sequence, m.created_at, \
     m.updated_at, m.send_at, m.expires_at, m.metadata, m.tenant_id, m.template_id, m.template_version, \
     m.fallback, m.media, m.batch_id";
const FROM: &str = "FROM messages m LEFT JOIN phones p ON p.id = m.phone_id";

/// One message, or `None` where the tenant has no such message.
pub fn get(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
) -> Result<Option<Message>, StoreError> {
    tx.query_opt(
        &format!("SELECT {COLUMNS} {FROM} WHERE m.id = ?1 AND m.tenant_id = ?2"),
        params![id, tenant],
        read,
    )
}

/// Whether a message belongs to the sandbox; `None` where the tenant has no such message.
pub fn is_test(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
) -> Result<Option<bool>, StoreError> {
    tx.query_opt(
        "SELECT test FROM messages WHERE id = ?1 AND tenant_id = ?2",
        params![id, tenant],
        |row| row.get(0),
    )
}

/// Whose a message is, for the operator, who may read everybody's.
pub fn owner(tx: &mut Tx<'_>, id: &MessageId) -> Result<Option<TenantId>, StoreError> {
    tx.query_opt("SELECT tenant_id FROM messages WHERE id = ?1", params![id], |row| row.get(0))
}

/// A tenant's messages, newest first. Answers one row more than the window's limit where there is more.
pub fn list(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    filter: &Filter,
    window: &Window,
) -> Result<Vec<Message>, StoreError> {
    let mut wanted = Conditions::default();
    wanted.add("m.tenant_id =", params![tenant]);
    let (sql, values) = wanted.finish(filter, window);
    tx.query(&sql, &values, read)
}

/// The messages of all tenants, for the operator; otherwise as [`list`].
pub fn list_all(
    tx: &mut Tx<'_>,
    tenant: Option<&TenantId>,
    filter: &Filter,
    window: &Window,
) -> Result<Vec<(TenantId, Message)>, StoreError> {
    let mut wanted = Conditions::default();
    if let Some(tenant) = tenant {
        wanted.add("m.tenant_id =", params![tenant]);
    }
    let (sql, values) = wanted.finish(filter, window);
    tx.query(&sql, &values, |row| Ok((row.get(21)?, read(row)?)))
}

/// A WHERE clause that names only what is asked for, so that an index can serve it.
#[derive(Default)]
struct Conditions {
    clauses: Vec<String>,
    values: Vec<Value>,
}

impl Conditions {
    fn add(&mut self, left: &str, value: &[Value]) {
        self.values.extend_from_slice(value);
        self.clauses.push(format!("{left} ?{}", self.values.len()));
    }

    fn finish(mut self, filter: &Filter, window: &Window) -> (String, Vec<Value>) {
        if let Some(status) = filter.status {
            // Of the sandbox by the sandbox's own index: by that of the status all other messages would be read.
            let column = if filter.test { "COALESCE(m.status, '') =" } else { "m.status =" };
            self.add(column, params![status]);
        }
        if let Some(direction) = filter.direction {
            self.add("m.direction =", params![direction]);
        }
        if let Some(recipient) = &filter.recipient {
            self.add("m.recipient =", params![recipient]);
        }
        if filter.test {
            // The condition of the index, word for word.
            self.clauses.push("m.test = 1".to_owned());
        }
        if let Some(before) = &window.before {
            self.add("m.id <", params![before]);
        }
        self.values.extend_from_slice(params![window.limit.saturating_add(1)]);
        let last = self.values.len();
        let of_tenant = self.clauses.iter().any(|clause| clause.starts_with("m.tenant_id"));
        let of = |more: Option<&str>| {
            let clauses: Vec<&str> = self.clauses.iter().map(String::as_str).chain(more).collect();
            let condition = if clauses.is_empty() { "" } else { " WHERE " };
            format!("SELECT {COLUMNS} {FROM}{condition}{}", clauses.join(" AND "))
        };
        let rows = if of_tenant && filter.recipient.is_some() && !filter.test {
            // What is on its way to a recipient stands apart from what was, each in the order of its ids.
            ["m.on_the_way = 0", "m.on_the_way = 1"].map(|side| of(Some(side))).join(" UNION ALL ")
        } else {
            of(None)
        };
        let sql = format!("{rows} ORDER BY 1 DESC LIMIT ?{last}");
        (sql, self.values)
    }
}

/// Withdraws a message: at once where no phone has it, else by asking the phone. `None`: the tenant has no such message.
pub fn cancel(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    id: &MessageId,
    now: UnixMs,
) -> Result<Option<Canceled>, StoreError> {
    let Some(mut message) = get(tx, tenant, id)? else { return Ok(None) };
    if message.direction == Direction::Inbound || message.status.is_final() {
        return Ok(Some(Canceled::TooLate(message.status)));
    }
    let open = tx
        .query_opt(
            "SELECT 1 FROM attempts WHERE message_id = ?1 AND tenant_id = ?2 AND state <> 'done' LIMIT 1",
            params![id, tenant],
            |row| row.int(0),
        )?
        .is_some();
    if open {
        tx.execute(
            "UPDATE messages SET cancel_asked = 1 WHERE id = ?1 AND tenant_id = ?2",
            params![id, tenant],
        )?;
        return Ok(Some(Canceled::Asked(Box::new(message))));
    }
    let reason = Some(Reason::Canceled);
    let event = NewEvent { reason, ..NewEvent::new(Status::Canceled.as_str(), now) };
    message.sequence = events::append(tx, tenant, id, &[event])?;
    tx.execute(
        "UPDATE messages SET status = ?3, reason = ?4, held_reason = NULL, next_at = NULL, on_the_way = 0
         WHERE id = ?1 AND tenant_id = ?2",
        params![id, tenant, Status::Canceled, reason],
    )?;
    tx.execute("DELETE FROM jobs WHERE message_id = ?1 AND tenant_id = ?2", params![id, tenant])?;
    credit::give_back(tx, tenant, (id, false), now)?;
    message.status = Status::Canceled;
    message.reason = reason;
    message.held_reason = None;
    message.next_at = None;
    message.updated_at = now;
    let test = is_test(tx, tenant, id)?.unwrap_or(false);
    tell(tx, (tenant, test), &message, Status::Canceled, now)?;
    Ok(Some(Canceled::Now(Box::new(message))))
}

/// The tenant may ask for this number: it is in the pool, or the tenant's own, and of the sandbox or not as asked.
pub fn may_send_from(
    tx: &mut Tx<'_>,
    tenant: &TenantId,
    (number, sandbox): (&E164, bool),
) -> Result<Option<PhoneId>, StoreError> {
    tx.query_opt(
        "SELECT id FROM phones
         WHERE number = ?1 AND sandbox = ?3 AND (exclusive_tenant_id IS NULL OR exclusive_tenant_id = ?2)
             AND (provider IS NULL OR EXISTS (SELECT 1 FROM providers v WHERE v.phone_id = phones.id))",
        params![number, tenant, sandbox],
        |row| row.get(0),
    )
}

fn read(row: &Row<'_>) -> Result<Message, StoreError> {
    let asked_from: Option<E164> = row.get(7)?;
    let number: Option<E164> = row.get(8)?;
    let metadata: Option<Json<BTreeMap<String, String>>> = row.get(20)?;
    let fallback: Option<Json<Vec<Channel>>> = row.get(24)?;
    let media: Option<Json<Vec<Media>>> = row.get(25)?;
    Ok(Message {
        id: row.get(0)?,
        direction: row.get(1)?,
        status: row.get(2)?,
        reason: row.get(3)?,
        held_reason: row.get(4)?,
        next_at: row.get(5)?,
        to: row.get(6)?,
        from: number.or(asked_from),
        phone: row.get(9)?,
        text: row.opt_text(10)?.unwrap_or_default(),
        template: match (row.get(22)?, row.get(23)?) {
            (Some(id), Some(version)) => Some(UsedTemplate { id, version }),
            _ => None,
        },
        media: media.map(|json| json.0).unwrap_or_default(),
        batch: row.get(26)?,
        channel: row.get(11)?,
        fallback: fallback.map(|json| json.0),
        channel_used: row.get(12)?,
        class: row.get(13)?,
        attempts: row.get(14)?,
        sequence: row.get(15)?,
        created_at: row.get(16)?,
        updated_at: row.get(17)?,
        send_at: row.get(18)?,
        expires_at: row.get(19)?,
        metadata: metadata.map(|json| json.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::in_memory;

    fn plan(filter: &Filter, tenant: bool) -> String {
        let mut wanted = Conditions::default();
        if tenant {
            wanted.add("m.tenant_id =", params!["ten"]);
        }
        let before = Some("msg_z".to_owned());
        let (sql, _values) = wanted.finish(filter, &Window { before, limit: 10 });
        in_memory::plan(&in_memory::open(), &sql)
    }

    #[test]
    fn no_list_reads_or_sorts_more_than_its_page() {
        let recipient = || Some("+12025550143".parse().unwrap());
        for (filter, tenant, index) in [
            (Filter::default(), true, "messages_by_tenant "),
            (
                Filter { status: Some(Status::Sent), ..Filter::default() },
                true,
                "messages_by_tenant_status ",
            ),
            (
                Filter { recipient: recipient(), ..Filter::default() },
                true,
                "messages_by_recipient ",
            ),
            (Filter { test: true, ..Filter::default() }, true, "messages_of_sandbox "),
            (
                Filter { test: true, status: Some(Status::Sent), ..Filter::default() },
                true,
                "messages_of_sandbox ",
            ),
            (Filter::default(), false, "sqlite_autoindex_messages_1 "),
        ] {
            let plan = plan(&filter, tenant);
            assert!(plan.contains(&format!("SEARCH m USING INDEX {index}")), "{filter:?}: {plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{filter:?}: {plan}");
            assert!(!plan.contains("SCAN"), "{filter:?}: {plan}");
        }
    }
}
