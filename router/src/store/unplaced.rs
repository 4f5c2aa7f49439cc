//! Events that belong to nothing we know or could not be taken in, as the operator reads them.

use std::str::FromStr;

use data_encoding::BASE64URL_NOPAD;
use protocol::{PhoneId, UnixMs};
use serde::Serialize;

use super::{Json, Row, StoreError, Tx};
use crate::params;

/// An event that a phone told and that has no place here.
#[derive(Clone, Debug, PartialEq, Serialize, utoipa::ToSchema)]
pub struct UnplacedEvent {
    /// Which phone.
    pub phone: PhoneId,
    /// The journal that it stands in.
    pub journal: String,
    /// Its number there.
    pub seq: u64,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// When the router took it.
    pub at: UnixMs,
    /// Why it has no place.
    pub why: String,
    /// The event as the phone told it.
    #[schema(value_type = Object)]
    pub body: serde_json::Value,
}

/// A place in the list: an event's time and key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    at: UnixMs,
    phone: PhoneId,
    journal: String,
    seq: u64,
}

impl Place {
    /// Where an event stands.
    pub fn of(event: &UnplacedEvent) -> Self {
        Self {
            at: event.at,
            phone: event.phone.clone(),
            journal: event.journal.clone(),
            seq: event.seq,
        }
    }
}

impl std::fmt::Display for Place {
    /// A journal's name is the host's own text, so it is encoded.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let journal = BASE64URL_NOPAD.encode(self.journal.as_bytes());
        write!(f, "{}.{}.{}.{journal}", self.at.0, self.seq, self.phone)
    }
}

/// The text is no place in this list.
#[derive(Debug)]
pub struct NoPlace;

impl FromStr for Place {
    type Err = NoPlace;

    fn from_str(text: &str) -> Result<Self, NoPlace> {
        let mut parts = text.splitn(4, '.');
        let mut part = || parts.next().ok_or(NoPlace);
        let at = part()?.parse().map(UnixMs).map_err(|_no_number| NoPlace)?;
        let seq = part()?.parse().map_err(|_no_number| NoPlace)?;
        let phone = part()?.parse().map_err(|_no_id| NoPlace)?;
        let journal = BASE64URL_NOPAD.decode(part()?.as_bytes()).map_err(|_no_base64| NoPlace)?;
        let journal = String::from_utf8(journal).map_err(|_no_text| NoPlace)?;
        Ok(Self { at, phone, journal, seq })
    }
}

const COLUMNS: &str = "phone_id, journal, seq, type, at, why, body";
const ORDER: &str = "ORDER BY at DESC, phone_id DESC, journal DESC, seq DESC";

/// Unplaced events, newest first. One row more than `limit` where there is more.
pub fn list(
    tx: &mut Tx<'_>,
    before: Option<&Place>,
    limit: u32,
) -> Result<Vec<UnplacedEvent>, StoreError> {
    let more = limit.saturating_add(1);
    match before {
        None => tx.query(&first_sql(), params![more], read),
        Some(Place { at, phone, journal, seq }) => {
            tx.query(&next_sql(), params![at, phone, journal, seq, more], read)
        }
    }
}

fn first_sql() -> String {
    format!("SELECT {COLUMNS} FROM unplaced_events {ORDER} LIMIT ?1")
}

fn next_sql() -> String {
    format!(
        "SELECT {COLUMNS} FROM unplaced_events
         WHERE (at, phone_id, journal, seq) < (?1, ?2, ?3, ?4) {ORDER} LIMIT ?5"
    )
}

fn read(row: &Row<'_>) -> Result<UnplacedEvent, StoreError> {
    Ok(UnplacedEvent {
        phone: row.get(0)?,
        journal: row.text(1)?,
        seq: row.get(2)?,
        kind: row.text(3)?,
        at: row.get(4)?,
        why: row.text(5)?,
        body: row.get::<Json<serde_json::Value>>(6)?.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::in_memory;

    #[test]
    fn a_place_survives_the_way_through_a_cursor() {
        let phone = PhoneId::new(1, [7; 10]);
        for journal in ["", "jrn.1", "\u{e9} \n"] {
            let at = UnixMs(1_700_000_000_000);
            let place = Place { at, phone: phone.clone(), journal: journal.to_owned(), seq: 9 };
            assert_eq!(place.to_string().parse::<Place>().unwrap(), place);
        }
        for bad in ["", "1", "1.2", "1.2.pho_x.", "x.2.y.z", "msg_00000000000000000000000000"] {
            bad.parse::<Place>().unwrap_err();
        }
    }

    #[test]
    fn no_page_reads_or_sorts_more_than_its_rows() {
        let connection = in_memory::open();
        for sql in [first_sql(), next_sql()] {
            let plan = in_memory::plan(&connection, &sql);
            assert!(plan.contains("unplaced_events_by_age"), "{sql}: {plan}");
            assert!(!plan.contains("TEMP B-TREE"), "{sql}: {plan}");
        }
    }
}
