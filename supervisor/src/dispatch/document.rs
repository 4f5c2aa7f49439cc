//! The document of the dispatch API (OpenAPI 3.1).
//!
//! It is a file, written by hand, so that a supervisor carries no generator and keeps no tree of it; the tests hold it
//! against the routes and against what the handlers answer.

use axum::http::header;
use axum::response::IntoResponse;

/// The document as it is served.
const OPENAPI: &str = include_str!("openapi.json");

pub(super) async fn serve() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use protocol::check::Outcome;
    use protocol::link::{
        EventFrame, HostMessagesApp, HostNetwork, HostPower, HostUplink, MessagesAppState,
        PhoneState, PowerLevel, PowerSource, TunnelState, UplinkState,
    };
    use protocol::pipe::{Attempt, Event, Heartbeat, Hello, NotReady};
    use protocol::{MessageId, PhoneId, Reason, UnixMs};
    use serde::Serialize;
    use serde_json::Value;
    use serde_json::value::RawValue;

    use super::super::{
        FirstWord, Health, HostView, LinkView, List, PhoneReadiness, PhoneView, Readiness, guarded,
        open,
    };
    use super::*;
    use crate::logs::LogLine;
    use crate::phone::Report;
    use crate::pool::Changes;
    use crate::reload::Reloaded;
    use crate::restart::{Cause, Exit, KillReason};
    use crate::switchboard::LinkState;
    use crate::{canary, cloudflared};

    const AT: UnixMs = UnixMs(1_795_348_800_000);

    fn document() -> Value {
        serde_json::from_str(OPENAPI).unwrap()
    }

    fn phone_id() -> PhoneId {
        PhoneId::new(1, [1; 10])
    }

    fn type_of(value: &Value) -> &'static str {
        match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        }
    }

    /// Where a value is not what the schema says. What the schema does not name must not be there.
    fn misfit(document: &Value, schema: &Value, value: &Value, at: &str) -> Option<String> {
        let wrong = |why: String| Some(format!("{at}: {why}"));
        if let Some(name) = schema["$ref"].as_str() {
            let target = document.pointer(name.strip_prefix('#').unwrap()).expect(name);
            return misfit(document, target, value, at);
        }
        if let Some(schemas) = schema["oneOf"].as_array() {
            let misfits: Vec<_> =
                schemas.iter().filter_map(|one| misfit(document, one, value, at)).collect();
            let fits = schemas.len() - misfits.len();
            return if fits == 1 { None } else { wrong(format!("{fits} fit: {misfits:?}")) };
        }
        let types = schema["type"].as_array().cloned();
        let types = types.unwrap_or_else(|| vec![schema["type"].clone()]);
        if !types.iter().any(|one| one == type_of(value)) {
            return wrong(format!("{} for {types:?}", type_of(value)));
        }
        if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
            return wrong(format!("{value} is none of its words"));
        }
        if let (Some(items), Value::Array(values)) = (schema.get("items"), value) {
            return values.iter().find_map(|one| misfit(document, items, one, at));
        }
        let (Some(properties), Value::Object(fields)) = (schema["properties"].as_object(), value)
        else {
            return None;
        };
        let required = schema["required"].as_array().into_iter().flatten();
        let missing: Vec<_> =
            required.filter(|name| !fields.contains_key(name.as_str().unwrap())).collect();
        if !missing.is_empty() {
            return wrong(format!("{missing:?} are missing"));
        }
        fields.iter().find_map(|(name, field)| match properties.get(name) {
            Some(schema) => misfit(document, schema, field, &format!("{at}/{name}")),
            None if schema["additionalProperties"] == true => None,
            None => wrong(format!("{name} is not in the document")),
        })
    }

    fn fits(schema: &str, value: &impl Serialize) {
        let document = document();
        let named = &document["components"]["schemas"][schema];
        assert!(named.is_object(), "{schema}");
        // As text and back, as a client has it.
        let value = serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap();
        assert_eq!(misfit(&document, named, &value, schema), None, "{value:#}");
    }

    #[test]
    fn every_route_is_in_the_document_and_nothing_else() {
        let below = |prefix: &'static str| {
            move |(method, path, _): super::super::Route| {
                (method.to_owned(), format!("{prefix}{path}"))
            }
        };
        let routes: BTreeSet<(String, String)> = (guarded().into_iter().map(below("/v1")))
            .chain(open().into_iter().map(below("")))
            .collect();
        let document = document();
        let mut documented = BTreeSet::new();
        let mut names = BTreeSet::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            for (method, operation) in methods.as_object().unwrap() {
                documented.insert((method.clone(), path.clone()));
                assert!(names.insert(operation["operationId"].to_string()), "{path}: its name");
                let is_open = operation["security"] == serde_json::json!([]);
                let asks = operation["responses"].get("401").is_some();
                assert!(is_open != asks, "{method} {path}: with the token or without");
                assert_eq!(is_open, !path.starts_with("/v1"), "{path}");
                let named = operation["parameters"].as_array().into_iter().flatten();
                let has_id = named.filter(|one| one["in"] == "path").count() == 1;
                assert_eq!(has_id, path.contains("{id}"), "{path}");
            }
        }
        assert_eq!(documented, routes);
        for reference in OPENAPI.split("\"$ref\": \"").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(document.pointer(&name[1..]).is_some(), "{name} is nowhere");
        }
    }

    #[test]
    fn a_phone_is_what_the_document_says() {
        let exits = [
            Exit::Code { code: 75 },
            Exit::Signal { signal: 9 },
            Exit::Killed { why: KillReason::NoHeartbeat },
            Exit::Replaced { why: KillReason::Memory },
            Exit::NotStarted,
        ];
        let causes = [Cause::Unavailable, Cause::Permission, Cause::Configuration];
        for (n, state) in PhoneState::ALL.into_iter().enumerate() {
            let phone = PhoneView {
                id: phone_id(),
                number: "+12025550190".parse().unwrap(),
                label: Some("desk".to_owned()),
                report: Report {
                    state,
                    not_ready: vec![NotReady {
                        reason: Reason::AccountOffline,
                        remedy: "Sign in.".to_owned(),
                    }],
                    waits_for: Some(causes[n % causes.len()]),
                    bridge: Some(Hello {
                        protocol: 1,
                        version: "1".to_owned(),
                        phone: phone_id(),
                        journal: "j".to_owned(),
                        last_seq: 1,
                        acked_seq: 1,
                        pid: 7,
                    }),
                    heartbeat: Some(Heartbeat {
                        last_poll: Some(AT),
                        last_change: Some(AT),
                        last_inbound: Some(AT),
                        last_receipt: Some(AT),
                        osascript_age_ms: Some(1),
                        osascript_last_ms: Some(1),
                        paused: true,
                        ..Heartbeat::default()
                    }),
                    restarts: 1,
                    tries: 1,
                    last_exit: Some(exits[n % exits.len()]),
                },
                epoch: Some(1),
                last_inbound_age_s: Some(1),
            };
            fits("Phone", &phone);
            fits("Phones", &List { data: vec![phone] });
            let phones = vec![PhoneReadiness { id: phone_id(), state }];
            fits("Readiness", &Readiness { ready: true, link: LinkState::Connected, phones });
        }
        let new = crate::phone::Phone::new(phone_id(), crate::phone::Settings::default());
        fits(
            "Phone",
            &PhoneView {
                id: phone_id(),
                number: "+12025550190".parse().unwrap(),
                label: None,
                report: Report { heartbeat: Some(Heartbeat::default()), ..new.report() },
                epoch: None,
                last_inbound_age_s: None,
            },
        );
        for why in [
            KillReason::NoHello,
            KillReason::NoHeartbeat,
            KillReason::NoProgress,
            KillReason::NotReading,
            KillReason::ClosedStdout,
            KillReason::OtherProtocol,
            KillReason::OtherPhone,
            KillReason::Memory,
            KillReason::Cpu,
        ] {
            fits("KillReason", &why);
        }
    }

    #[test]
    fn a_host_is_what_the_document_says() {
        let uplink = |state| HostUplink { name: "en0".to_owned(), state, router: Some(true) };
        let canary = |why| canary::Standing {
            from: "+12025550190".parse().unwrap(),
            to: "+12025550191".parse().unwrap(),
            remote: true,
            sent: 1,
            seen: 1,
            lost: 1,
            skipped: 1,
            unknown: 1,
            why,
            lost_in_a_row: 1,
            alarm: true,
            last_seen: Some(AT),
            last_latency_ms: Some(1),
        };
        let whys = canary::Why::ALL.into_iter().map(Some).chain([None]);
        let host = HostView {
            version: "1",
            restarts: 1,
            power: Some(HostPower {
                level: PowerLevel::Low,
                source: PowerSource::Ups,
                percent: Some(7),
                minutes: Some(3),
            }),
            network: Some(HostNetwork {
                chosen: "en0".to_owned(),
                switches: true,
                locked: true,
                uplinks: UplinkState::ALL.map(uplink).to_vec(),
            }),
            messages_app: Some(HostMessagesApp {
                state: MessagesAppState::Degraded,
                why: Some("hung".to_owned()),
                remedy: Some("Look at the screen.".to_owned()),
                since: AT,
                recoveries: 1,
                failures: 1,
                last_recovery_ms: Some(1),
                restarts_last_hour: 1,
            }),
            cloudflared: None,
            canaries: whys.map(canary).collect(),
        };
        fits("Host", &host);
        for level in PowerLevel::ALL {
            let power = HostPower { level, ..host.power.clone().unwrap() };
            fits("Host", &HostView { power: Some(power), ..nothing() });
        }
        for state in MessagesAppState::ALL {
            let app = HostMessagesApp { state, ..host.messages_app.clone().unwrap() };
            fits("Host", &HostView { messages_app: Some(app), ..nothing() });
        }
        for state in TunnelState::ALL {
            fits("Cloudflared", &tunnel(state));
            fits("Host", &HostView { cloudflared: Some(tunnel(state)), ..nothing() });
        }
        let down = LinkView { state: LinkState::Disconnected, why: Some("refused".to_owned()) };
        fits("Link", &down);
        fits("Link", &LinkView { state: LinkState::Standalone, why: None });
        let check = router_client::doctor::Check {
            reason: Some("disk_low".to_owned()),
            ..router_client::doctor::Check::new("disk", Outcome::Warning, "full")
        };
        let phone = router_client::doctor::PhoneReport {
            phone: phone_id(),
            ready: true,
            exit_code: 0,
            checks: vec![check.clone()],
        };
        fits("Doctor", &router_client::doctor::Report::new(vec![(check, 69)], vec![phone]));
    }

    fn nothing() -> HostView {
        HostView {
            version: "1",
            restarts: 0,
            power: None,
            network: None,
            messages_app: None,
            cloudflared: None,
            canaries: Vec::new(),
        }
    }

    fn tunnel(state: TunnelState) -> cloudflared::Standing {
        cloudflared::Standing {
            state,
            since: AT,
            why: Some("x"),
            remedy: Some("y"),
            connections: 4,
            last_exit: Some(Exit::Code { code: 1 }),
            restarts: 1,
            restarts_last_hour: 1,
            capped: true,
        }
    }

    #[test]
    fn what_was_done_and_what_went_wrong_are_what_the_document_says() {
        let attempt = Attempt { message: MessageId::new(1, [1; 10]), attempt: 1 };
        let frame = EventFrame {
            phone: phone_id(),
            journal: "j".to_owned(),
            seq: 1,
            epoch: Some(1),
            at: AT,
            event: Event::Accepted(attempt.clone()),
        };
        fits("Event", &frame);
        let event = RawValue::from_string(serde_json::to_string(&frame).unwrap()).unwrap();
        let word = FirstWord { phone: phone_id(), attempt, answer: "accepted", event: Some(event) };
        fits("FirstWord", &word);
        fits("FirstWord", &FirstWord { answer: "pending", event: None, ..word });
        let ids = || vec![phone_id()];
        let phones = Changes {
            started: ids(),
            stopped: ids(),
            replaced: ids(),
            still_ending: ids(),
            untouched: 1,
        };
        let (taken, needs_restart) = (vec!["[power]"], vec!["state_dir"]);
        fits("Reloaded", &Reloaded { phones, taken, needs_restart });
        let phones = Changes::default();
        fits("Reloaded", &Reloaded { phones, taken: Vec::new(), needs_restart: Vec::new() });
        fits("Log", &List { data: vec![LogLine { n: 1, at: AT, line: "x".to_owned() }] });
        let errors = vec![protocol::api::FieldError {
            pointer: "/to".to_owned(),
            code: "required".to_owned(),
            detail: "must be given".to_owned(),
        }];
        let super::super::Failure(mut problem) = super::super::Failure::fields(errors);
        problem.request_id = Some("7".to_owned());
        fits("Problem", &problem);
        let health = &document()["paths"]["/healthz"]["get"]["responses"]["200"]["content"]["application/json"]
            ["schema"];
        let ok = serde_json::to_value(Health { status: "ok" }).unwrap();
        assert_eq!(misfit(&document(), health, &ok, "health"), None);
    }
}
