//! Every frame and body against its golden file. `UPDATE_GOLDEN=1` writes them anew; the change
//! is then visible where it belongs, in the review.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on must fail")]

use std::collections::BTreeMap;
use std::path::PathBuf;

use protocol::api::{
    AddedRecipients, ApiKey, AskCapabilities, Batch, BatchRecipient, BatchState, Capabilities,
    ChangeCredit, ChannelKnown, CheckedMessage, CheckedProvider, Contact, ContentReport,
    CreateBatch, CreateKey, CreateMessage, CreateOptOuts, CreateRecipient, CreateTemplate,
    CreateTenant, CreateWebhookEndpoint, CreatedKey, CreatedMessages, CreatedOne, CreatedOptOuts,
    DeadLetter, Direction, Encoding, EnrolmentToken, FailOver, FailedOver, FieldError, Host,
    HoursPreset, Media, Message, MessageEvent, MoveRefused, OptOut, OptOutEvent, Page, Phone,
    PhoneHost, PhoneMove, Plan, PreviewTemplate, Problem, ProviderWhyNot, QuotaWarning,
    ReplacePhone, ReplacedPhone, ReplayWebhooks, ReplayedWebhooks, RotateKey, RotateSecret,
    RowError, RuleDecision, RuleName, RuleVerdict, SetBilling, SettleMessage, Settled, Template,
    TemplatePreview, TemplateVersion, Tenant, TenantBilling, TenantRules, Tier, UnknownZone,
    UpdatePhone, UpdateTemplate, UpdateWebhookEndpoint, UsageRow, UseTemplate, UsedTemplate,
    WebhookAttempt, WebhookBody, WebhookData, WebhookDelivery, WebhookEndpoint,
};
use protocol::link::{
    CanaryAsk, CanaryStanding, CanaryTold, EnrolPhone, EnrolRequest, EnrolResponse, EnrolledPhone,
    Enrolment, EventFrame, HostFrame, HostHealth, HostHello, HostMessagesApp, HostNetwork,
    HostPower, HostTunnel, HostUplink, MessagesAppState, PhoneReport, PhoneState, PowerLevel,
    PowerSource, RouterFrame, TunnelState, UplinkState, Welcome, WelcomePhone,
};
use protocol::pipe::{
    AccountState, App, AttachmentChange, Attempt, AttemptReason, Capability, ChannelCapability,
    Command, Conversation, ConversationKind, Details, Edited, Event, EventLine, GroupChange,
    Heartbeat, Hello, InboundAttachment, LinkPreview, NotReady, Notice, OutboundAttachment,
    PreviewChange, Reaction, Receipt, Received, ReplyTo, Seek, Send, TextPart, TextRun,
    TransferState, UnknownKind, Unsent, Up, Version,
};
use protocol::{
    BatchId, Channel, ChannelChoice, Class, DeliveryId, E164, EndpointId, EventId, HostId, KeyId,
    MessageId, PhoneId, Reason, Recipient, Status, TemplateId, TenantId, UnixMs, WireError, canary,
    link, pipe,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

const NOON: UnixMs = UnixMs(1_795_348_800_250);

fn message() -> MessageId {
    MessageId::new(NOON.0, [1; 10])
}
fn phone() -> PhoneId {
    PhoneId::new(NOON.0, [2; 10])
}
fn host() -> HostId {
    HostId::new(NOON.0, [3; 10])
}
fn tenant() -> TenantId {
    TenantId::new(NOON.0, [4; 10])
}
fn anna() -> Recipient {
    "+12025550143".parse().unwrap()
}
fn number() -> E164 {
    "+12025550190".parse().unwrap()
}
fn attempt() -> Attempt {
    Attempt { message: message(), attempt: 1 }
}
fn direct() -> Conversation {
    Conversation { kind: ConversationKind::Direct, id: "+12025550143".to_owned() }
}
fn guid() -> String {
    "2E7A3D5C-8A5B-4C07-9E0F-1B6F4C2D9A11".to_owned()
}
fn why(reason: Reason, retryable: bool) -> AttemptReason {
    AttemptReason {
        attempt: attempt(),
        reason,
        detail: "error 22".to_owned(),
        retryable,
        channel: Some(Channel::Imessage),
    }
}
fn receipt() -> Receipt {
    Receipt { attempt: attempt(), guid: guid(), at: NOON }
}

fn send() -> Send {
    Send {
        message: message(),
        attempt: 1,
        epoch: 7,
        to: anna(),
        text: "Your table is ready – “Zur Post” 🍲".to_owned(),
        attachments: vec![OutboundAttachment {
            url: "https://files.example.org/menu.pdf".to_owned(),
            name: Some("menu.pdf".to_owned()),
            sha256: None,
        }],
        route: vec![Channel::Imessage, Channel::Sms],
        class: Class::Transactional,
        start_before: NOON,
        conversation: Some(direct()),
    }
}

/// Compares with the file, and reads the file back to the same value.
fn golden<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(name: &str, value: &T) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.json"));
    let written = serde_json::to_string_pretty(value).unwrap() + "\n";
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &written).unwrap();
    }
    let stored = std::fs::read_to_string(&path)
        .unwrap_or_else(|err| panic!("{}: {err}; UPDATE_GOLDEN=1 writes it", path.display()));
    assert_eq!(written, stored, "{name} has changed on the wire");
    let read: T = serde_json::from_str(&stored).unwrap();
    assert_eq!(&read, value, "{name} does not read back");
    // A newer peer may say more.
    let mut more: serde_json::Value = serde_json::from_str(&stored).unwrap();
    if let Some(object) = more.as_object_mut() {
        object.insert("of_tomorrow".to_owned(), serde_json::json!({"x": [1]}));
        // What a client asks for is read strictly: a typing mistake must not pass in silence.
        let asked =
            ["api/ask_", "api/create_", "api/update_", "api/rotate_", "api/set_", "api/change_"];
        let strict = asked.iter().any(|verb| name.starts_with(verb))
            || [
                "api/fail_over",
                "api/replace_phone",
                "api/replay_webhooks",
                "api/preview_template",
                "api/settle_message",
            ]
            .contains(&name);
        assert_eq!(serde_json::from_value::<T>(more).is_err(), strict, "{name}: unknown fields");
    }
}

fn details() -> Details {
    Details {
        subject: Some("Table".to_owned()),
        runs: vec![TextRun {
            start: 0,
            length: 4,
            kind: "link".to_owned(),
            value: Some("https://example.org".to_owned()),
        }],
        parts: vec![TextPart { part: 2, start: 0, length: 4 }],
        reply_to: Some(ReplyTo { guid: guid(), part: 1 }),
        effect: Some("confetti".to_owned()),
        app: Some(App { id: "com.example.app".to_owned(), ..App::default() }),
        preview: Some(LinkPreview {
            url: "https://example.org".to_owned(),
            title: Some("Example".to_owned()),
            ..LinkPreview::default()
        }),
        filter: Some("unknown_sender".to_owned()),
        copy_of: Some(guid()),
        ..Details::default()
    }
}

fn events() -> Vec<Event> {
    vec![
        Event::Accepted(attempt()),
        Event::Refused(why(Reason::StaleEpoch, true)),
        Event::Started { attempt: attempt(), channel: Channel::Imessage },
        Event::Fallback {
            attempt: attempt(),
            from: Channel::Imessage,
            to: Channel::Sms,
            reason: Reason::NotRegistered,
            detail: "error 22".to_owned(),
        },
        Event::Sent { attempt: attempt(), channel: Channel::Sms, guid: guid() },
        Event::Delivered(receipt()),
        Event::Read(receipt()),
        Event::Failed(why(Reason::NotRegistered, false)),
        Event::Unknown(why(Reason::NoEvidence, false)),
        Event::Canceled(attempt()),
        Event::Expired(attempt()),
        Event::Received(Received {
            guid: guid(),
            from: anna(),
            conversation: direct(),
            text: "STOP".to_owned(),
            attachments: vec![InboundAttachment {
                guid: "at_0_X".to_owned(),
                name: Some("a.heic".to_owned()),
                mime: Some("image/heic".to_owned()),
                uti: Some("public.heic".to_owned()),
                bytes: 12_345,
                complete: true,
                state: TransferState::Complete,
                path: Some("~/Library/Messages/Attachments/00/a.heic".to_owned()),
                part: Some(1),
                position: Some(4),
                sticker: true,
                emoji_image: true,
                description: Some("a fox".to_owned()),
            }],
            service: Channel::Imessage,
            at: NOON,
            late: true,
            details: Box::new(details()),
        }),
        Event::Reaction(Reaction {
            guid: guid(),
            from: anna(),
            conversation: direct(),
            target: guid(),
            part: 0,
            kind: "love".to_owned(),
            emoji: None,
            attachments: Vec::new(),
            removed: false,
            at: NOON,
            late: false,
        }),
        Event::Edited(Edited {
            guid: guid(),
            part: 0,
            text: "new".to_owned(),
            history: vec![
                Version { text: "old".to_owned(), at: UnixMs(NOON.0 - 1_000) },
                Version { text: "new".to_owned(), at: NOON },
            ],
            from_me: false,
            at: NOON,
        }),
        Event::Unsent(Unsent { guid: guid(), parts: vec![1], from_me: true, at: NOON }),
        Event::Attachment(AttachmentChange {
            message: guid(),
            attachment: InboundAttachment {
                guid: "at_0_X".to_owned(),
                bytes: 12_345,
                complete: true,
                state: TransferState::Complete,
                ..InboundAttachment::default()
            },
            at: NOON,
        }),
        Event::Preview(PreviewChange {
            message: guid(),
            preview: LinkPreview {
                url: "https://example.org".to_owned(),
                ..LinkPreview::default()
            },
            at: NOON,
        }),
        Event::Group(GroupChange {
            guid: guid(),
            conversation: Conversation { kind: ConversationKind::Group, id: "chat831".to_owned() },
            change: "renamed".to_owned(),
            subject: Some("Lunch".to_owned()),
            by: Some(anna()),
            participants: vec![anna().address().to_owned()],
            at: NOON,
        }),
        Event::Notice(Notice {
            guid: guid(),
            conversation: direct(),
            from: Some(anna()),
            kind: "audio_kept".to_owned(),
            at: NOON,
        }),
        Event::UnknownKind(UnknownKind {
            guid: guid(),
            conversation: Some(direct()),
            from: Some(anna()),
            from_me: false,
            item_type: 9,
            group_action_type: 8,
            associated_message_type: 0,
            message_action_type: 7,
            balloon_bundle_id: None,
            text: "what it says".to_owned(),
            at: NOON,
        }),
        Event::Capability(Capability {
            to: anna(),
            channels: vec![ChannelCapability {
                channel: Channel::Imessage,
                able: false,
                at: NOON,
                own_result: true,
            }],
        }),
        Event::Resync { why: "renumbered".to_owned() },
        Event::Account { state: AccountState::SignedOut, detail: "connection status".to_owned() },
    ]
}

#[test]
fn the_pipe_downwards() {
    let commands = [
        ("send", Command::Send(send())),
        ("cancel", Command::Cancel { message: message(), attempt: 1 }),
        ("lease", Command::Lease { epoch: 7, ttl_ms: 15_000, issued_ms: 123_456 }),
        ("revoke", Command::Revoke { epoch: 7 }),
        ("release", Command::Release { epoch: 8 }),
        ("ack", Command::Ack { journal: "j1".to_owned(), seq: 41 }),
        ("replay", Command::Replay),
        ("capability", Command::Capability { to: anna() }),
        (
            "seek",
            Command::Seek(Seek {
                to: anna(),
                text: "Your table is ready".to_owned(),
                since: NOON,
                until: NOON.plus_ms(60_000),
                attempts: vec![attempt()],
                known: vec![guid()],
            }),
        ),
        ("pause", Command::Pause { for_ms: 20_000, end_after_ms: Some(15_000) }),
        ("block", Command::Block { blocked: true }),
        ("preflight", Command::Preflight),
        ("drain", Command::Drain { deadline_ms: 10_000 }),
        ("stop", Command::Stop { deadline_ms: 5_000 }),
    ];
    for (name, command) in commands {
        golden(&format!("pipe/down_{name}"), &command);
        let line = serde_json::to_string(&command).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(pipe::parse_command(&line), Ok(command));
    }
}

#[test]
fn the_pipe_upwards() {
    let mut ups = vec![
        (
            "hello".to_owned(),
            Up::Hello(Hello {
                protocol: protocol::PROTOCOL,
                version: "0.1.0".to_owned(),
                phone: phone(),
                journal: "j1".to_owned(),
                last_seq: 41,
                acked_seq: 40,
                pid: 4242,
            }),
        ),
        ("ready".to_owned(), Up::Ready),
        (
            "not_ready".to_owned(),
            Up::NotReady {
                reasons: vec![NotReady {
                    reason: Reason::DatabasePermission,
                    remedy: "Grant Full Disk Access".to_owned(),
                }],
            },
        ),
        ("released".to_owned(), Up::Released { epoch: 8 }),
        (
            "heartbeat".to_owned(),
            Up::Heartbeat(Heartbeat {
                last_poll: Some(NOON),
                osascript_age_ms: Some(12),
                osascript_ended: 3,
                osascript_total_ms: 2_400,
                osascript_last_ms: Some(800),
                queued: 3,
                ..Heartbeat::default()
            }),
        ),
    ];
    for (index, event) in events().into_iter().enumerate() {
        let name = format!("event_{}", event.kind());
        let seq = u64::try_from(index).unwrap() + 1;
        ups.push((name, Up::Event(EventLine { seq, at: NOON, epoch: Some(7), event })));
    }
    for (name, up) in ups {
        golden(&format!("pipe/up_{name}"), &up);
        assert_eq!(pipe::parse_up(&serde_json::to_string(&up).unwrap()), Ok(up));
    }
}

fn report() -> PhoneReport {
    PhoneReport {
        phone: phone(),
        journal: Some("j1".to_owned()),
        last_seq: 41,
        acked_seq: 40,
        epoch: Some(7),
        state: PhoneState::NotReady,
        reasons: vec![Reason::AccountOffline],
    }
}

#[test]
fn the_link_from_the_host() {
    let frames = [
        (
            "hello",
            HostFrame::Hello(HostHello {
                protocol: 1,
                version: "0.1.0".to_owned(),
                boot: "b1".to_owned(),
                clock: NOON,
                phones: vec![report()],
            }),
        ),
        (
            "renew",
            HostFrame::Renew {
                renewal: 3,
                phones: vec![report()],
                health: HostHealth {
                    uptime_s: 60,
                    restarts: 1,
                    disk_free: Some(1 << 40),
                    power: Some(HostPower {
                        level: PowerLevel::Battery,
                        source: PowerSource::Ups,
                        percent: Some(81),
                        minutes: Some(24),
                    }),
                    network: Some(HostNetwork {
                        chosen: "hotspot".to_owned(),
                        switches: true,
                        locked: false,
                        uplinks: vec![
                            HostUplink {
                                name: "office".to_owned(),
                                state: UplinkState::Down,
                                router: None,
                            },
                            HostUplink {
                                name: "hotspot".to_owned(),
                                state: UplinkState::Good,
                                router: Some(true),
                            },
                        ],
                    }),
                    messages_app: Some(HostMessagesApp {
                        state: MessagesAppState::Degraded,
                        why: Some("restarted_in_vain".to_owned()),
                        remedy: Some("restart the Mac".to_owned()),
                        since: NOON,
                        recoveries: 2,
                        failures: 1,
                        last_recovery_ms: Some(17_000),
                        restarts_last_hour: 2,
                    }),
                    tunnel: Some(HostTunnel {
                        state: TunnelState::Waiting,
                        why: Some("token_missing".to_owned()),
                        remedy: Some("put the tunnel's token into its file".to_owned()),
                        since: NOON,
                        connections: 0,
                        restarts: 3,
                        restarts_last_hour: 2,
                        capped: false,
                    }),
                },
            },
        ),
        ("phone", HostFrame::Phone(report())),
        (
            "event",
            HostFrame::Event(EventFrame {
                phone: phone(),
                journal: "j1".to_owned(),
                seq: 42,
                epoch: Some(7),
                at: NOON,
                event: Event::Accepted(attempt()),
            }),
        ),
        ("released", HostFrame::Released { phone: phone(), epoch: 8 }),
        (
            "canary",
            HostFrame::Canary(CanaryAsk {
                message: canary::id(NOON, [1, 2, 3, 4]),
                from: phone(),
                to: number(),
            }),
        ),
        ("ping", HostFrame::Ping { at: NOON }),
        ("pong", HostFrame::Pong { at: NOON }),
        ("bye", HostFrame::Bye { reason: "stopping".to_owned() }),
    ];
    for (name, frame) in frames {
        golden(&format!("link/host_{name}"), &frame);
        assert_eq!(link::parse_host(&serde_json::to_string(&frame).unwrap()), Ok(frame));
    }
}

fn told(standing: CanaryStanding) -> RouterFrame {
    RouterFrame::Canary(CanaryTold { message: canary::id(NOON, [1, 2, 3, 4]), standing })
}

#[test]
fn what_a_newer_router_says_of_a_canary_and_what_an_older_one_leaves_out_is_taken() {
    let told = r#"{"type":"canary","message":"MSG","standing":{"state":"eaten","by":"cat"}}"#
        .replace("MSG", canary::id(NOON, [1, 2, 3, 4]).as_str());
    let Ok(RouterFrame::Canary(told)) = link::parse_router(&told) else { panic!("{told}") };
    assert_eq!(told.standing, CanaryStanding::Unknown);
    let welcome = r#"{"type":"welcome","session":"s","clock":"2026-11-22T12:00:00Z","phones":[]}"#;
    let Ok(RouterFrame::Welcome(welcome)) = link::parse_router(welcome) else {
        panic!("{welcome}")
    };
    assert!(!welcome.canaries);
}

#[test]
fn the_link_from_the_router() {
    let frames = [
        (
            "welcome",
            RouterFrame::Welcome(Welcome {
                session: "s1".to_owned(),
                clock: NOON,
                phones: vec![WelcomePhone {
                    phone: phone(),
                    epoch: Some(7),
                    ttl_ms: 15_000,
                    acked_seq: 41,
                }],
                canaries: true,
            }),
        ),
        ("lease", RouterFrame::Lease { phone: phone(), epoch: 7, ttl_ms: 15_000, renewal: 3 }),
        ("revoke", RouterFrame::Revoke { phone: phone(), epoch: 7 }),
        ("release", RouterFrame::Release { phone: phone(), epoch: 8 }),
        ("ack", RouterFrame::Ack { phone: phone(), journal: "j1".to_owned(), seq: 42 }),
        (
            "command",
            RouterFrame::Command { phone: phone(), epoch: 7, command: Command::Send(send()) },
        ),
        ("canary_not_seen", told(CanaryStanding::NotSeen)),
        (
            "canary_seen",
            told(CanaryStanding::Seen {
                phone: phone(),
                host: Some(host()),
                at: NOON,
                waited_ms: 1_200,
            }),
        ),
        ("ping", RouterFrame::Ping { at: NOON }),
        ("pong", RouterFrame::Pong { at: NOON }),
        ("bye", RouterFrame::Bye { reason: "draining".to_owned() }),
    ];
    for (name, frame) in frames {
        golden(&format!("link/router_{name}"), &frame);
        assert_eq!(link::parse_router(&serde_json::to_string(&frame).unwrap()), Ok(frame));
    }
}

#[test]
fn enrolment() {
    let phones = vec![EnrolledPhone { phone: phone(), number: number() }];
    golden(
        "link/enrol_request",
        &EnrolRequest {
            token: "one-time".to_owned(),
            name: "mini-1".to_owned(),
            public_key: "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo".to_owned(),
            phones: vec![EnrolPhone {
                number: number(),
                label: Some("front desk".to_owned()),
                channels: None,
                standby: true,
                sandbox: true,
            }],
        },
    );
    golden(
        "link/enrol_response",
        &EnrolResponse { host: host(), phones: phones.clone(), router_key: Some("A".repeat(43)) },
    );
    golden(
        "link/enrolment",
        &Enrolment {
            router: "https://router.example.org".to_owned(),
            host: host(),
            phones,
            router_key: Some("A".repeat(43)),
        },
    );
}

#[test]
fn the_authorization_header_reads_back() {
    let header = link::Authorization {
        host: host(),
        ts: 1_795_348_800,
        nonce: "A".repeat(22),
        sig: "b".repeat(86),
    };
    assert_eq!(header.to_string().parse(), Ok(header.clone()));
    let text = header.to_string();
    for bad in [
        text.replace("Switchboard", "Bearer"),
        text.replace("nonce", "once"),
        text.replace(&"b".repeat(86), &"b".repeat(85)),
        text.replace(&"A".repeat(22), "A\\\" "),
        format!("{text}, ts=\"1\""),
        text.replace("ts=\"1795348800\"", "ts=\"soon\""),
        String::new(),
    ] {
        assert!(bad.parse::<link::Authorization>().is_err(), "{bad}");
    }
}

fn api_message() -> Message {
    Message {
        id: message(),
        direction: Direction::Outbound,
        status: Status::Queued,
        reason: None,
        held_reason: Some(Reason::NoPhoneAvailable),
        next_at: Some(NOON),
        to: anna(),
        from: Some(number()),
        phone: Some(phone()),
        text: "Your table is ready.".to_owned(),
        template: Some(UsedTemplate { id: template(), version: 2 }),
        media: Vec::new(),
        batch: Some(batch()),
        channel: ChannelChoice::Auto,
        fallback: None,
        channel_used: Some(Channel::Imessage),
        class: Class::Marketing,
        attempts: 1,
        sequence: 3,
        created_at: NOON,
        updated_at: NOON,
        send_at: None,
        expires_at: Some(NOON),
        metadata: Some(BTreeMap::from([("order".to_owned(), "17".to_owned())])),
    }
}

#[test]
fn the_public_api() {
    golden(
        "api/create_message",
        &CreateMessage {
            to: anna(),
            text: Some("Your table is ready.".to_owned()),
            template: None,
            media: vec![Media {
                url: "https://example.com/menu.pdf".to_owned(),
                name: Some("menu.pdf".to_owned()),
                sha256: Some("ab".repeat(32)),
            }],
            channel: Some(ChannelChoice::Auto),
            fallback: Some(vec![Channel::Sms]),
            class: Some(Class::Transactional),
            from: Some(number()),
            send_at: None,
            expires_at: None,
            ttl_seconds: Some(600),
            metadata: Some(BTreeMap::from([("order".to_owned(), "17".to_owned())])),
        },
    );
    golden("api/message", &api_message());
    golden(
        "api/dead_letter",
        &DeadLetter {
            tenant: tenant(),
            at: NOON,
            reason: Reason::AttemptsExhausted,
            message: Message {
                status: Status::Failed,
                reason: Some(Reason::Network),
                held_reason: None,
                next_at: None,
                attempts: 3,
                ..api_message()
            },
        },
    );
    golden(
        "api/page",
        &Page { data: vec![api_message()], next_cursor: Some("abc".to_owned()), has_more: true },
    );
    golden(
        "api/message_event",
        &MessageEvent {
            id: EventId::new(NOON.0, [5; 10]),
            message: message(),
            sequence: 2,
            kind: "fallback".to_owned(),
            at: NOON,
            phone: Some(phone()),
            attempt: Some(1),
            channel: Some(Channel::Sms),
            reason: Some(Reason::NotRegistered),
            detail: Some("error 22".to_owned()),
        },
    );
    golden(
        "api/rule_decision",
        &RuleDecision {
            number: 2,
            at: NOON,
            verdict: "hold".to_owned(),
            reason: Some(Reason::QuietHours),
            until: Some(NOON),
            class: Class::Marketing,
            rules: "2026-11-28.1/2026-06".to_owned(),
            zones: "2026b".to_owned(),
            text_sha256: "00ff".to_owned(),
        },
    );
    golden("api/settle_message", &SettleMessage { outcome: Settled::Failed });
    golden(
        "api/problem",
        &Problem {
            kind: "about:blank".to_owned(),
            title: "The request is not valid".to_owned(),
            status: 422,
            detail: Some("1 field is wrong".to_owned()),
            code: "invalid_request".to_owned(),
            request_id: Some("r1".to_owned()),
            errors: vec![FieldError {
                pointer: "/to".to_owned(),
                code: "bad_number".to_owned(),
                detail: "not an E.164 number".to_owned(),
            }],
            resets_at: Some(NOON),
        },
    );
    golden(
        "api/update_phone",
        &UpdatePhone {
            label: Some("Shop".to_owned()),
            exclusive_to: Some("everybody".to_owned()),
            daily_cap: Some(200),
            warming_priority: Some(1),
            in_service_at: Some(NOON),
        },
    );
    golden(
        "api/capabilities",
        &Capabilities {
            recipient: anna(),
            channels: vec![ChannelKnown {
                channel: Channel::Imessage,
                able: false,
                at: NOON,
                fresh: true,
            }],
            asked_at: Some(NOON),
        },
    );
    golden("api/ask_capabilities", &AskCapabilities { to: anna() });
    golden(
        "api/opt_out",
        &OptOut {
            recipient: anna(),
            method: "keyword".to_owned(),
            at: NOON,
            message: Some(message()),
        },
    );
}

#[test]
fn money() {
    golden(
        "api/usage_row",
        &UsageRow {
            period: "2026-11".to_owned(),
            tenant: Some(tenant()),
            class: Class::Otp,
            channel: ChannelChoice::Sms,
            accepted: 10,
            segments: 12,
            sent: 8,
            returned: 1,
            credits: 20,
            credits_returned: 2,
        },
    );
    golden(
        "api/tenant_billing",
        &TenantBilling {
            tenant: tenant(),
            plan: "starter".to_owned(),
            plan_is_default: false,
            messages_per_month: Some(1_000),
            credits_per_message: 2,
            month: "2026-11".to_owned(),
            used: 12,
            resets_at: NOON,
            credit: -3,
            billing_account_id: Some(tenant()),
            stripe_customer_id: Some("cus_1".to_owned()),
        },
    );
    golden(
        "api/set_billing",
        &SetBilling { plan: Some("starter".to_owned()), ..SetBilling::default() },
    );
    golden(
        "api/change_credit",
        &ChangeCredit { amount: -5, reason: "mistake".to_owned(), reference: None },
    );
    golden(
        "api/plan",
        &Plan {
            name: "starter".to_owned(),
            is_default: false,
            messages_per_month: Some(1_000),
            credits_per_message: 2,
        },
    );
}

#[test]
fn rules_and_opt_outs() {
    let rules = TenantRules {
        hours: Some(HoursPreset::UsStates),
        hours_window: Some("09:00-18:00".to_owned()),
        time_zone: Some("America/New_York".to_owned()),
        unknown_zone: UnknownZone::Tenant,
        stop_words: vec!["alto".to_owned()],
        start_words: vec!["yes".to_owned()],
        help_text: Some("Write to help@example.org.".to_owned()),
        blocked_words: vec!["free money".to_owned()],
        segments_max: Some(3),
        ..TenantRules::default()
    };
    golden("api/tenant_rules", &rules);
    golden(
        "api/checked_message",
        &CheckedMessage {
            verdict: "hold".to_owned(),
            reason: Some(Reason::QuietHours),
            detail: None,
            next_allowed_at: Some(NOON),
            class: Class::Marketing,
            rules: vec![RuleVerdict {
                rule: RuleName::QuietHours,
                verdict: "hold".to_owned(),
                reason: Some(Reason::QuietHours),
                detail: None,
                until: Some(NOON),
            }],
            time_zones: vec!["America/New_York".to_owned()],
            content: ContentReport {
                characters: 20,
                encoding: Encoding::Gsm7,
                segments: 1,
                links: false,
            },
            phone: Some(phone()),
            from: Some(number()),
            route: vec![Channel::Imessage, Channel::Sms],
            providers: vec![CheckedProvider {
                provider: "telnyx-1".to_owned(),
                chosen: false,
                why_not: vec![ProviderWhyNot::PhonesFirst],
            }],
            rules_version: "2026-11-27".to_owned(),
        },
    );
    golden(
        "api/create_opt_outs",
        &CreateOptOuts { recipients: vec![anna()], source: Some("called us".to_owned()) },
    );
    golden("api/created_opt_outs", &CreatedOptOuts { added: 3, already: 1, stopped: 2 });
    golden(
        "api/opt_out_event",
        &OptOutEvent {
            id: EventId::new(NOON.0, [5; 10]),
            recipient: anna(),
            action: "opted_out".to_owned(),
            method: "inferred".to_owned(),
            at: NOON,
            message: Some(message()),
            phone: Some(phone()),
            text: Some("please stop texting me".to_owned()),
            evidence: None,
            rules: "2026-11-27".to_owned(),
            reviewed_at: Some(NOON),
        },
    );
    golden(
        "api/contact",
        &Contact {
            recipient: anna(),
            time_zone: Some("America/Denver".to_owned()),
            state: Some("CO".to_owned()),
            person: Some("customer 17".to_owned()),
            created_at: NOON,
            updated_at: NOON,
        },
    );
}

fn batch() -> BatchId {
    BatchId::new(NOON.0, [8; 10])
}

#[test]
fn batches() {
    let values = BTreeMap::from([("name".to_owned(), "Anna".to_owned())]);
    let used = UseTemplate { id: template(), version: Some(2), variables: Some(values.clone()) };
    golden(
        "api/create_batch",
        &CreateBatch {
            name: "November".to_owned(),
            text: None,
            template: Some(used),
            channel: Some(ChannelChoice::Auto),
            class: Some(Class::Marketing),
            from: Some(number()),
            send_at: Some(NOON),
            ttl_seconds: Some(3_600),
            metadata: None,
        },
    );
    golden(
        "api/batch",
        &Batch {
            id: batch(),
            name: "November".to_owned(),
            state: BatchState::Paused,
            reason: None,
            text: None,
            template: Some(UsedTemplate { id: template(), version: 2 }),
            variables: values.clone(),
            channel: ChannelChoice::Auto,
            class: Class::Marketing,
            from: Some(number()),
            send_at: Some(NOON),
            ttl_seconds: Some(3_600),
            metadata: None,
            recipients: 5_000,
            duplicates: 2,
            invalid: 1,
            expanded: 1_000,
            outcomes: Some(BTreeMap::from([(Status::Queued, 300), (Status::Delivered, 700)])),
            created_at: NOON,
            updated_at: NOON,
            started_at: Some(NOON),
            ended_at: None,
            forgotten_at: None,
        },
    );
    golden("api/create_recipient", &CreateRecipient { to: anna(), variables: Some(values) });
    golden(
        "api/added_recipients",
        &AddedRecipients {
            added: 3,
            duplicates: 2,
            invalid: 1,
            recipients: 5_000,
            errors: vec![RowError {
                line: 7,
                field: "to".to_owned(),
                code: "invalid_recipient".to_owned(),
                detail: "It is not a number.".to_owned(),
            }],
        },
    );
    golden(
        "api/batch_recipient",
        &BatchRecipient {
            number: 17,
            to: anna(),
            message: Some(message()),
            status: Some(Status::Blocked),
            reason: Some(Reason::OptedOut),
            updated_at: Some(NOON),
        },
    );
    golden(
        "api/created_messages",
        &CreatedMessages {
            accepted: 1,
            refused: 1,
            results: vec![
                CreatedOne {
                    status: 202,
                    message: Some(Box::new(api_message())),
                    code: None,
                    errors: Vec::new(),
                },
                CreatedOne {
                    status: 422,
                    message: None,
                    code: Some("invalid_request".to_owned()),
                    errors: vec![FieldError {
                        pointer: "/messages/1/to".to_owned(),
                        code: "required".to_owned(),
                        detail: "It is required.".to_owned(),
                    }],
                },
            ],
        },
    );
}

fn template() -> TemplateId {
    TemplateId::new(NOON.0, [6; 10])
}

#[test]
fn templates() {
    let values = BTreeMap::from([("name".to_owned(), "Anna".to_owned())]);
    let text = "Hello {{name}}.".to_owned();
    golden(
        "api/create_message_of_template",
        &CreateMessage {
            to: anna(),
            text: None,
            template: Some(UseTemplate {
                id: template(),
                version: Some(2),
                variables: Some(values.clone()),
            }),
            channel: None,
            fallback: None,
            media: Vec::new(),
            class: None,
            from: None,
            send_at: None,
            expires_at: None,
            ttl_seconds: None,
            metadata: None,
        },
    );
    golden(
        "api/create_template",
        &CreateTemplate {
            name: "greeting".to_owned(),
            text: text.clone(),
            defaults: Some(values.clone()),
        },
    );
    golden(
        "api/update_template",
        &UpdateTemplate { text: Some(text.clone()), ..UpdateTemplate::default() },
    );
    golden(
        "api/template",
        &Template {
            id: template(),
            name: "greeting".to_owned(),
            version: 2,
            text: text.clone(),
            variables: vec!["name".to_owned()],
            defaults: values.clone(),
            created_at: NOON,
            updated_at: NOON,
        },
    );
    golden(
        "api/template_version",
        &TemplateVersion {
            version: 1,
            text,
            variables: vec!["name".to_owned()],
            defaults: BTreeMap::new(),
            created_at: NOON,
        },
    );
    golden("api/preview_template", &PreviewTemplate { version: Some(2), variables: Some(values) });
    golden(
        "api/template_preview",
        &TemplatePreview {
            version: 2,
            text: "Hello Anna.".to_owned(),
            content: ContentReport {
                characters: 11,
                encoding: Encoding::Gsm7,
                segments: 1,
                links: false,
            },
            allowed: false,
            detail: Some("blocked_words".to_owned()),
            explanation: Some("It has words that are blocked for this tenant.".to_owned()),
        },
    );
}

#[test]
fn the_operators_api() {
    golden("api/create_tenant", &CreateTenant { name: "Post".to_owned(), brand: None });
    golden(
        "api/tenant",
        &Tenant {
            id: tenant(),
            name: "Post".to_owned(),
            brand: "Zur Post".to_owned(),
            created_at: NOON,
        },
    );
    golden(
        "api/create_key",
        &CreateKey {
            tenant: tenant(),
            name: "shop".to_owned(),
            test: false,
            expires_at: Some(NOON),
            scopes: Some(vec!["messages:write".to_owned()]),
            allow: vec!["192.0.2.0/24".to_owned()],
            tier: Some(Tier::Custom),
            per_second: Some(5),
            burst: Some(20),
        },
    );
    golden(
        "api/created_key",
        &CreatedKey {
            key: ApiKey {
                id: KeyId::new(NOON.0, [6; 10]),
                tenant: tenant(),
                name: "shop".to_owned(),
                prefix: "sb_live_AbCd".to_owned(),
                test: false,
                scopes: vec!["messages:write".to_owned()],
                allow: vec!["192.0.2.0/24".to_owned()],
                tier: Tier::Custom,
                per_second: 5,
                burst: 20,
                created_at: NOON,
                expires_at: None,
                rotated_to: Some(KeyId::new(NOON.0, [7; 10])),
                revoked_at: None,
                last_used_at: None,
            },
            secret: "sb_live_…".to_owned(),
        },
    );
    golden(
        "api/enrolment_token",
        &EnrolmentToken { token: "one-time".to_owned(), expires_at: NOON },
    );
    golden(
        "api/host",
        &Host {
            id: host(),
            name: "mini-1".to_owned(),
            online: true,
            last_seen_at: Some(NOON),
            version: Some("0.1.0".to_owned()),
            phones: vec![phone()],
            standby_phones: vec![],
            drained_at: Some(NOON),
            tunnel: Some(HostTunnel {
                state: TunnelState::Ready,
                why: None,
                remedy: None,
                since: NOON,
                connections: 4,
                restarts: 1,
                restarts_last_hour: 0,
                capped: false,
            }),
            created_at: NOON,
        },
    );
    golden("api/fail_over", &FailOver { to: Some(host()), force: true, despite_block: true });
    golden(
        "api/failed_over",
        &FailedOver {
            phones: vec![
                PhoneMove { phone: phone(), from: Some(host()), to: Some(host()), refused: None },
                PhoneMove {
                    phone: phone(),
                    from: Some(host()),
                    to: None,
                    refused: Some(MoveRefused::StandbyNotReady),
                },
            ],
        },
    );
    golden("api/replace_phone", &ReplacePhone { by: phone() });
    golden(
        "api/replaced_phone",
        &ReplacedPhone { phone: phone(), by: phone(), conversations: 40, messages: 2 },
    );
    golden(
        "api/phone",
        &Phone {
            id: phone(),
            number: number(),
            label: Some("front desk".to_owned()),
            host: Some(host()),
            hosts: vec![PhoneHost {
                host: host(),
                active: true,
                online: true,
                state: PhoneState::Ready,
                reasons: vec![],
                seen_at: Some(NOON),
            }],
            handed_to: None,
            sandbox: true,
            replaced_by: None,
            online: true,
            state: PhoneState::Ready,
            reasons: vec![],
            channels: vec![Channel::Imessage, Channel::Sms],
            epoch: Some(7),
            lease_until: Some(NOON),
            messages_today: 12,
            in_flight: 1,
            last_used_at: None,
            exclusive_to: Some(tenant()),
            daily_cap: Some(200),
            warming_priority: 1,
            in_service_at: Some(NOON),
        },
    );
}

#[test]
fn webhooks() {
    let endpoint = EndpointId::new(NOON.0, [8; 10]);
    golden(
        "api/create_webhook_endpoint",
        &CreateWebhookEndpoint {
            url: "https://shop.example.org/hooks".to_owned(),
            events: vec!["message.sent".to_owned()],
            description: Some("the shop".to_owned()),
        },
    );
    golden(
        "api/update_webhook_endpoint",
        &UpdateWebhookEndpoint { disabled: Some(false), ..UpdateWebhookEndpoint::default() },
    );
    golden("api/rotate_secret", &RotateSecret { overlap_seconds: Some(3_600) });
    golden("api/rotate_key", &RotateKey { overlap_seconds: Some(3_600) });
    golden(
        "api/replay_webhooks",
        &ReplayWebhooks {
            since: NOON,
            until: Some(NOON),
            delivered: true,
            after: Some(DeliveryId::new(NOON.0, [9; 10])),
        },
    );
    golden(
        "api/replayed_webhooks",
        &ReplayedWebhooks { replayed: 5_000, next: Some(DeliveryId::new(NOON.0, [9; 10])) },
    );
    golden(
        "api/webhook_endpoint",
        &WebhookEndpoint {
            id: endpoint.clone(),
            url: "https://shop.example.org/hooks".to_owned(),
            events: vec![],
            disabled_at: None,
            disabled_reason: None,
            description: Some("the shop".to_owned()),
            test: false,
            failing_since: Some(NOON),
            failures: 5,
            paused_until: Some(NOON),
            old_secret_until: Some(NOON),
            created_at: NOON,
        },
    );
    golden(
        "api/webhook_delivery",
        &WebhookDelivery {
            id: DeliveryId::new(NOON.0, [9; 10]),
            endpoint,
            event: EventId::new(NOON.0, [5; 10]),
            kind: "message.sent".to_owned(),
            state: "pending".to_owned(),
            attempts: vec![WebhookAttempt {
                at: NOON,
                status: Some(503),
                error: None,
                duration_ms: 12,
                response: Some("busy".to_owned()),
            }],
            next_at: Some(NOON),
            created_at: NOON,
        },
    );
    golden(
        "api/quota_warning",
        &WebhookBody {
            kind: "usage.quota_warning".to_owned(),
            timestamp: NOON,
            data: WebhookData {
                tenant: Some(tenant()),
                quota: Some(QuotaWarning {
                    percent: 80,
                    used: 800,
                    quota: 1_000,
                    month: "2026-11".to_owned(),
                    resets_at: NOON,
                }),
                ..WebhookData::default()
            },
        },
    );
    golden(
        "api/webhook_body",
        &WebhookBody {
            kind: "message.sent".to_owned(),
            timestamp: NOON,
            data: WebhookData {
                tenant: Some(tenant()),
                message: Some(message()),
                sequence: Some(4),
                status: Some(Status::Sent),
                direction: Some(Direction::Outbound),
                recipient: Some(anna()),
                channel: Some(Channel::Sms),
                ..WebhookData::default()
            },
        },
    );
}

#[test]
fn an_event_of_tomorrow_is_carried_on_as_it_stands() {
    for event in [
        r#"{"type":"teleported","guid":"G","depth":{"n":[1,2]}}"#,
        r#"{"type":"sent","message":"msg_of_another_form","attempt":1}"#,
    ] {
        let line = format!(
            r#"{{"type":"event","seq":5,"at":"2026-11-22T12:00:00.250Z","event":{event}}}"#
        );
        let Ok(Up::Event(read)) = pipe::parse_up(&line) else { panic!("{line}") };
        assert_eq!(read.seq, 5);
        assert_eq!(read.event.kind(), "other");
        assert!(matches!(&read.event, Event::Other(_)), "{read:?}");
        let stands: serde_json::Value = serde_json::from_str(event).unwrap();
        assert_eq!(serde_json::to_value(&read.event).unwrap(), stands);
    }
    // Without a type it is nothing.
    let line = r#"{"type":"event","seq":5,"at":"2026-11-22T12:00:00.250Z","event":{}}"#;
    assert!(matches!(pipe::parse_up(line), Err(WireError::BadFields { .. })));
}

#[test]
fn bad_lines_are_refused_by_name() {
    for (line, expected) in [
        ("", "malformed"),
        ("[]", "malformed"),
        ("{", "malformed"),
        ("{\"type\":1}", "malformed"),
        ("{\"type\":\"teleport\"}", "unknown_type"),
        ("{\"type\":\"cancel\"}", "bad_fields"),
        ("{\"type\":\"cancel\",\"message\":\"ten_1\",\"attempt\":1}", "bad_fields"),
        ("{\"type\":\"revoke\",\"epoch\":-1}", "bad_fields"),
    ] {
        let refused = pipe::parse_command(line).unwrap_err();
        assert_eq!(refused.label(), expected, "{line}: {refused}");
    }
    let long = format!("{{\"type\":\"replay\",\"x\":\"{}\"}}", "y".repeat(1 << 20));
    assert!(matches!(pipe::parse_command(&long), Err(WireError::TooLong { .. })));
    let unknown = pipe::parse_command("{\"type\":\"teleport\"}").unwrap_err();
    assert_eq!(unknown.to_string(), "unknown type \"teleport\"");
}

proptest::proptest! {
    #[test]
    fn no_bytes_panic_the_parsers(text in "\\PC{0,200}") {
        let parsed = (pipe::parse_command(&text), pipe::parse_up(&text), link::parse_host(&text), link::parse_router(&text));
        proptest::prop_assert!(parsed.0.is_err());
        let _header: Result<link::Authorization, _> = text.parse();
    }

    #[test]
    fn a_cut_line_is_refused(cut in 1_usize..400) {
        let line = serde_json::to_string(&Command::Send(send())).unwrap();
        let cut = line.char_indices().map(|(at, _)| at).take_while(|at| *at < line.len().min(cut)).last().unwrap_or(0);
        proptest::prop_assert!(pipe::parse_command(line.split_at(cut).0).is_err());
    }
}
