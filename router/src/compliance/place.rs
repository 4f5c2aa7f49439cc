//! Where the recipient may be: the time zones, and in the United States the state, that a number can belong to.
//!
//! A number is a presumption and no more: people move and keep it. So an area code stands for every zone that its
//! numbers are known to be in, and a number that says nothing stands for all fifty states at once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use jiff::tz::TimeZone;
use protocol::Recipient;
use protocol::api::UnknownZone;
use serde::Deserialize;

/// A time zone, with the state whose law counts there, where it is one of the United States.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Its clock.
    pub zone: TimeZone,
    /// Two letters.
    pub state: Option<String>,
}

/// What is known of where a recipient is.
#[derive(Debug, Clone, PartialEq)]
pub enum Places {
    /// In one of these; never empty.
    Known(Vec<Place>),
    /// Nothing is known, and the tenant wants nothing sent then.
    Refused,
    /// What is written down about it makes no sense: nothing is sent on a guess.
    Unreadable,
}

/// What a tenant has said of a recipient.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contact {
    /// IANA name of a time zone.
    pub time_zone: Option<String>,
    /// Two letters.
    pub state: Option<String>,
}

/// How a tenant wants recipients treated whose place is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unknown<'a> {
    /// What to do.
    pub policy: UnknownZone,
    /// The tenant's own time zone.
    pub tenant_zone: Option<&'a str>,
}

/// A row of the table of area codes.
#[derive(Debug, Deserialize)]
struct AreaCode {
    country: String,
    state: Option<String>,
    zones: Vec<String>,
}

static AREA_CODES: LazyLock<BTreeMap<String, AreaCode>> =
    LazyLock::new(|| table(include_str!("../../data/npa-zones.json")));

static COUNTRIES: LazyLock<BTreeMap<String, Vec<String>>> =
    LazyLock::new(|| table(include_str!("../../data/country-zones.json")));

/// Every zone of every state, each once.
static FIFTY_STATES: LazyLock<Option<Vec<Place>>> = LazyLock::new(|| {
    let pairs: BTreeSet<(&str, &str)> = AREA_CODES
        .values()
        .filter(|code| code.country == "US")
        .filter_map(|code| code.state.as_deref().map(|state| (state, &code.zones)))
        .flat_map(|(state, zones)| zones.iter().map(move |zone| (zone.as_str(), state)))
        .collect();
    pairs.into_iter().map(|(zone, state)| place(zone, Some(state)).ok()).collect()
});

/// A table that is compiled in. One that does not parse is empty, and then nobody's place is known: a test keeps that
/// from being shipped.
fn table<T: serde::de::DeserializeOwned + Default>(json: &str) -> T {
    serde_json::from_str(json).unwrap_or_default()
}

fn place(zone: &str, state: Option<&str>) -> Result<Place, NoSuchPlace> {
    let zone = TimeZone::get(zone).map_err(|_unknown| NoSuchPlace)?;
    Ok(Place { zone, state: state.map(ToOwned::to_owned) })
}

/// Whether this is a time zone that we can reckon with.
pub fn is_zone(name: &str) -> bool {
    TimeZone::get(name).is_ok()
}

/// Whether these are the two letters of a state or district of the United States.
pub fn is_state(letters: &str) -> bool {
    AREA_CODES.values().any(|code| code.state.as_deref() == Some(letters))
}

/// Where `recipient` may be. What the tenant says of the contact counts first, then the number.
pub fn places(recipient: &Recipient, contact: &Contact, unknown: Unknown<'_>) -> Places {
    match known(recipient, contact) {
        Ok(Some(places)) if !places.is_empty() => Places::Known(places),
        Ok(None) => not_known(unknown),
        Ok(Some(_)) | Err(NoSuchPlace) => Places::Unreadable,
    }
}

/// A zone or state that does not exist: what is written down cannot be gone by.
#[derive(Debug)]
struct NoSuchPlace;

/// The places that something stands for; `None` where nothing is known.
type Found = Result<Option<Vec<Place>>, NoSuchPlace>;

fn known(recipient: &Recipient, contact: &Contact) -> Found {
    let from_number = match recipient {
        Recipient::Number(number) => of_number(number.as_str())?,
        Recipient::Email(_) | Recipient::Group(_) | Recipient::Service(_) => None,
    };
    match (&contact.time_zone, &contact.state) {
        (None, None) => Ok(from_number),
        // A state alone has all its zones.
        (None, Some(state)) => zones_of_state(state).map(Some),
        (Some(zone), Some(state)) => Ok(Some(vec![place(zone, Some(state))?])),
        // A zone alone keeps the state of the number, whose law its owner may fall back on.
        (Some(zone), None) => {
            let states: BTreeSet<Option<String>> =
                from_number.into_iter().flatten().map(|place| place.state).collect();
            if states.is_empty() {
                return Ok(Some(vec![place(zone, None)?]));
            }
            let places = states.iter().map(|state| place(zone, state.as_deref()));
            places.collect::<Result<_, _>>().map(Some)
        }
    }
}

fn zones_of_state(state: &str) -> Result<Vec<Place>, NoSuchPlace> {
    let all = FIFTY_STATES.as_ref().ok_or(NoSuchPlace)?;
    Ok(all.iter().filter(|place| place.state.as_deref() == Some(state)).cloned().collect())
}

/// What a number says; nothing where it is of no place.
fn of_number(number: &str) -> Found {
    if let Some(national) = number.strip_prefix("+1") {
        if let Some(code) = national.get(..3).and_then(|code| AREA_CODES.get(code)) {
            if code.zones.is_empty() {
                return Ok(None);
            }
            let places = code.zones.iter().map(|zone| place(zone, code.state.as_deref()));
            return places.collect::<Result<_, _>>().map(Some);
        }
        // Area codes of the islands are not in the table; one that is new in the large countries says nothing.
        return match region_of(number) {
            Some(region) if region != "US" && region != "CA" => of_country(&region),
            Some(_) | None => Ok(None),
        };
    }
    match region_of(number) {
        Some(region) => of_country(&region),
        None => of_calling_code(number),
    }
}

fn of_country(region: &str) -> Found {
    let Some(zones) = COUNTRIES.get(region) else { return Ok(None) };
    zones.iter().map(|zone| place(zone, None)).collect::<Result<_, _>>().map(Some)
}

/// The country of a number, by the longest prefix that tells it.
fn region_of(number: &str) -> Option<String> {
    let util = &rlibphonenumber::PHONE_NUMBER_UTIL;
    let parsed = util.parse(number, None).ok()?;
    util.get_region_for_number(&parsed).map(|region| region.to_string())
}

/// Every country that shares the calling code of a number that cannot be told apart further.
fn of_calling_code(number: &str) -> Found {
    let util = &rlibphonenumber::PHONE_NUMBER_UTIL;
    let Ok(parsed) = util.parse(number, None) else { return Ok(None) };
    let regions = util.get_regions_for_country_calling_code(parsed.country_code);
    let zones: BTreeSet<&String> = regions
        .into_iter()
        .flatten()
        .filter_map(|region| COUNTRIES.get(&region.to_string()))
        .flatten()
        .collect();
    if zones.is_empty() {
        return Ok(None);
    }
    zones.into_iter().map(|zone| place(zone, None)).collect::<Result<_, _>>().map(Some)
}

fn not_known(unknown: Unknown<'_>) -> Places {
    let fifty = || FIFTY_STATES.clone().filter(|places| !places.is_empty());
    let places = match (unknown.policy, unknown.tenant_zone) {
        (UnknownZone::Reject, _) => return Places::Refused,
        (UnknownZone::Tenant, Some(zone)) => place(zone, None).ok().map(|place| vec![place]),
        (UnknownZone::Us50, _) | (UnknownZone::Tenant, None) => fifty(),
    };
    places.map_or(Places::Unreadable, Places::Known)
}

#[cfg(test)]
mod tests {
    use super::*;

    const US50: Unknown<'_> = Unknown { policy: UnknownZone::Us50, tenant_zone: None };

    fn names(recipient: &str, contact: &Contact, unknown: Unknown<'_>) -> Vec<String> {
        match places(&recipient.parse().unwrap(), contact, unknown) {
            Places::Known(places) => places
                .iter()
                .map(|place| {
                    let zone = place.zone.iana_name().unwrap();
                    place.state.as_ref().map_or(zone.to_owned(), |state| format!("{zone} {state}"))
                })
                .collect(),
            other @ (Places::Refused | Places::Unreadable) => vec![format!("{other:?}")],
        }
    }

    fn of(recipient: &str) -> Vec<String> {
        names(recipient, &Contact::default(), US50)
    }

    #[test]
    fn the_tables_are_whole_and_every_zone_is_known() {
        assert!(AREA_CODES.len() > 400 && COUNTRIES.len() > 240);
        for zone in
            AREA_CODES.values().flat_map(|code| &code.zones).chain(COUNTRIES.values().flatten())
        {
            assert!(is_zone(zone), "{zone}");
        }
        let states: BTreeSet<_> = FIFTY_STATES
            .as_ref()
            .unwrap()
            .iter()
            .map(|place| place.state.clone().unwrap())
            .collect();
        assert_eq!(states.len(), 51, "fifty and the district: {states:?}");
    }

    #[test]
    fn an_area_code_stands_for_every_zone_it_may_be_in() {
        for (number, zones) in [
            ("+12125550123", vec!["America/New_York NY"]),
            ("+18505550123", vec!["America/Chicago FL", "America/New_York FL"]),
            ("+16895550123", vec!["America/New_York FL"]),
            ("+19285550123", vec!["America/Phoenix AZ", "America/Denver AZ"]),
            ("+14745550123", vec!["America/Regina", "America/Edmonton"]),
            // Islands that share the calling code, and other countries.
            ("+12425550123", vec!["America/Nassau"]),
            ("+17875550123", vec!["America/Puerto_Rico"]),
            ("+447400123456", vec!["Europe/London"]),
            ("+4915112345678", vec!["Europe/Berlin", "Europe/Busingen"]),
            ("+212650123456", vec!["Africa/Casablanca"]),
        ] {
            assert_eq!(of(number), zones, "{number}");
        }
        assert!(of("+79161234567").len() > 20, "all of Russia");
        assert!(
            of("+77011234567").iter().all(|zone| zone.starts_with("Asia/")),
            "Kazakhstan alone"
        );
    }

    #[test]
    fn who_cannot_be_placed_is_in_every_state_at_once_or_what_the_tenant_says() {
        for unknown in ["+18005550123", "+15005550123", "+18375550123", "anna@example.org"] {
            let all = of(unknown);
            assert!(all.len() > 50, "{unknown}: {all:?}");
            assert!(all.contains(&"Pacific/Honolulu HI".to_owned()), "{unknown}");
            assert!(!all.iter().any(|zone| zone.contains("Guam")), "{unknown}");
            let berlin =
                Unknown { policy: UnknownZone::Tenant, tenant_zone: Some("Europe/Berlin") };
            assert_eq!(names(unknown, &Contact::default(), berlin), ["Europe/Berlin"]);
            let reject = Unknown { policy: UnknownZone::Reject, ..berlin };
            assert_eq!(names(unknown, &Contact::default(), reject), ["Refused"]);
        }
    }

    #[test]
    fn what_the_tenant_knows_counts_before_the_number() {
        let contact = |zone: Option<&str>, state: Option<&str>| Contact {
            time_zone: zone.map(ToOwned::to_owned),
            state: state.map(ToOwned::to_owned),
        };
        let denver = contact(Some("America/Denver"), None);
        // The number's own state still has a say: its owner may live there by law.
        assert_eq!(names("+12125550123", &denver, US50), ["America/Denver NY"]);
        assert_eq!(names("anna@example.org", &denver, US50), ["America/Denver"]);
        let texan = contact(None, Some("TX"));
        assert_eq!(
            names("+12125550123", &texan, US50),
            ["America/Chicago TX", "America/Denver TX"]
        );
        let moved = contact(Some("America/Chicago"), Some("TX"));
        assert_eq!(names("+12125550123", &moved, US50), ["America/Chicago TX"]);
        for bad in [contact(Some("Mars/Base"), None), contact(None, Some("ZZ"))] {
            assert_eq!(names("+12125550123", &bad, US50), ["Unreadable"]);
        }
        let nowhere = Unknown { policy: UnknownZone::Tenant, tenant_zone: Some("Mars/Base") };
        assert_eq!(names("anna@example.org", &Contact::default(), nowhere), ["Unreadable"]);
    }
}
