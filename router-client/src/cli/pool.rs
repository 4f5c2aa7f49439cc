//! `hosts` and `phones`: what the operator's pool looks like now.

use clap::Args;
use protocol::{
    Channel, PhoneId, Reason, UnixMs,
    api::{Host, Phone, UpdatePhone},
    link::{HostTunnel, PhoneState},
};

use super::{
    client::{Client, Request, Who, typed, typed_rows},
    failure::Failure,
    screen::{Screen, or_nothing, time},
};

#[derive(Debug, Args)]
pub(crate) struct OnePhone {
    /// The phone
    id: PhoneId,
    /// Names it for people; an empty text takes the name away
    #[arg(long)]
    label: Option<String>,
    /// Reserves it for this tenant; `everybody` puts it back into the pool
    #[arg(long, value_name = "TENANT")]
    exclusive_to: Option<String>,
    /// Messages that it sends in a day (UTC) at most; 0 for as many as is configured for all
    #[arg(long, value_name = "MESSAGES")]
    daily_cap: Option<u32>,
    /// Among phones that have sent as much today, those with less are taken first
    #[arg(long, value_name = "NUMBER")]
    warming_priority: Option<u32>,
    /// Since when its number is used, such as 2024-05-01T00:00:00Z: its age, by which it may meet strangers
    #[arg(long, value_name = "TIME")]
    in_service_at: Option<UnixMs>,
}

/// Shows a phone, as it is once what is asked for is changed.
pub(crate) async fn phone(
    screen: &mut Screen,
    client: &Client,
    one: OnePhone,
) -> Result<(), Failure> {
    let path = format!("/v1/admin/phones/{}", one.id);
    let change = UpdatePhone {
        label: one.label,
        exclusive_to: one.exclusive_to,
        daily_cap: one.daily_cap,
        warming_priority: one.warming_priority,
        in_service_at: one.in_service_at,
    };
    let request = if change == UpdatePhone::default() {
        Request::get(Who::Operator, path)
    } else {
        Request::patch(Who::Operator, path).body(&change)?
    };
    let answer = client.call(&request).await?;
    if screen.is_json() {
        return screen.json(&answer);
    }
    let phone: Phone = typed(answer)?;
    let channels: Vec<&str> = phone.channels.iter().map(|c| Channel::as_str(*c)).collect();
    let whose = phone.exclusive_to.map_or_else(|| "everybody".to_owned(), |one| one.to_string());
    let cap = phone.daily_cap.map_or_else(|| "as for all".to_owned(), |cap| cap.to_string());
    let rows = [
        ("number", phone.number.to_string()),
        ("label", or_nothing(phone.label)),
        ("for", whose),
        ("state", phone.state.as_str().to_owned()),
        ("link", online(phone.online)),
        ("channels", channels.join(",")),
        ("sent today", phone.messages_today.to_string()),
        ("daily cap", cap),
        ("warming priority", phone.warming_priority.to_string()),
        ("in service since", time(phone.in_service_at)),
        ("last used", time(phone.last_used_at)),
    ];
    let rows = rows.into_iter().map(|(name, value)| [name.to_owned(), value]).collect();
    screen.table(["WHAT", "VALUE"], rows, "there is no such phone")
}

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
            tunnel(host.tunnel.as_ref()),
            or_nothing(host.version),
            time(host.last_seen_at),
            time(host.created_at),
        ]
    });
    screen.table(
        ["HOST", "NAME", "LINK", "PHONES", "STANDBY", "TUNNEL", "VERSION", "LAST SEEN", "ENROLLED"],
        rows.collect(),
        "no host is enrolled: run `switchboard host enroll --config FILE` on a Mac",
    )
}

/// How a tunnel is, since when, and how often it was started again.
fn tunnel(tunnel: Option<&HostTunnel>) -> String {
    let Some(tunnel) = tunnel else { return or_nothing(None::<&str>) };
    let why = tunnel.why.as_ref().map_or_else(String::new, |why| format!(" ({why})"));
    let restarts = match tunnel.restarts {
        0 => String::new(),
        1 => ", restarted once".to_owned(),
        times => format!(", restarted {times} times"),
    };
    format!("{}{why} since {}{restarts}", tunnel.state.as_str(), time(tunnel.since))
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
