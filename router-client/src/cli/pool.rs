//! `hosts` and `phones`: what the operator's pool looks like now.

use protocol::{
    Channel, Reason,
    api::{Host, Phone},
    link::PhoneState,
};

use super::{
    client::{Client, Who, typed_rows},
    failure::Failure,
    screen::{Screen, or_nothing, time},
};

pub(crate) async fn hosts(screen: &mut Screen, client: &Client) -> Result<(), Failure> {
    let page = client.list(Who::Operator, "/v1/admin/hosts", &[], usize::MAX).await?;
    if screen.is_json() {
        return screen.json(&page);
    }
    let rows = typed_rows::<Host>(&page)?.into_iter().map(|host| {
        let link = match (host.online, host.drained_at) {
            (up, None) => online(up),
            (up, Some(_)) => format!("{}, drained", online(up)),
        };
        [
            host.id.to_string(),
            host.name,
            link,
            host.phones.len().to_string(),
            host.standby_phones.len().to_string(),
            or_nothing(host.version),
            time(host.last_seen_at),
            time(host.created_at),
        ]
    });
    screen.table(
        ["HOST", "NAME", "LINK", "PHONES", "STANDBY", "VERSION", "LAST SEEN", "ENROLLED"],
        rows.collect(),
        "no host is enrolled: run `switchboard host enroll --config FILE` on a Mac",
    )
}

pub(crate) async fn phones(screen: &mut Screen, client: &Client) -> Result<(), Failure> {
    let page = client.list(Who::Operator, "/v1/admin/phones", &[], usize::MAX).await?;
    if screen.is_json() {
        return screen.json(&page);
    }
    let rows = typed_rows::<Phone>(&page)?.into_iter().map(|phone| {
        let reasons: Vec<&str> = phone.reasons.iter().map(|r| Reason::as_str(*r)).collect();
        let mut state = if reasons.is_empty() {
            phone.state.as_str().to_owned()
        } else {
            format!("{} ({})", phone.state.as_str(), reasons.join(", "))
        };
        if phone.handed_to.is_some() {
            state.push_str(", handed over");
        }
        if phone.replaced_by.is_some() {
            state.push_str(", replaced");
        }
        let standby = phone.hosts.iter().filter(|host| !host.active);
        let able =
            standby.clone().filter(|host| host.online && host.state == PhoneState::Ready).count();
        let standby = match standby.count() {
            0 => String::new(),
            all => format!("{able} of {all}"),
        };
        let channels: Vec<&str> = phone.channels.iter().map(|c| Channel::as_str(*c)).collect();
        [
            phone.id.to_string(),
            phone.number.to_string(),
            or_nothing(phone.label),
            online(phone.online),
            state,
            standby,
            channels.join(","),
            or_nothing(phone.epoch),
            time(phone.lease_until),
            phone.messages_today.to_string(),
            phone.in_flight.to_string(),
        ]
    });
    screen.table(
        [
            "PHONE",
            "NUMBER",
            "LABEL",
            "LINK",
            "STATE",
            "STANDBY",
            "CHANNELS",
            "EPOCH",
            "LEASE UNTIL",
            "TODAY",
            "OPEN",
        ],
        rows.collect(),
        "there is no phone: they come with the host that serves them",
    )
}

fn online(online: bool) -> String {
    if online { "up" } else { "down" }.to_owned()
}
