//! `switchboard` as a person runs it, against a router that says what it is told to.

#![expect(
    clippy::unwrap_used,
    clippy::needless_pass_by_value,
    reason = "in a test, a panic is how it fails, and values are written where they are passed"
)]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    thread::JoinHandle,
    time::Duration,
};

use serde_json::{Value, json};

const ADMIN: &str = "admin-secret-of-the-test";
const KEY: &str = "sb_live_secret-of-the-test";
const MSG: &str = "msg_0000000000000000000000000g";
const TEN: &str = "ten_0000000000000000000000000g";
const PHO: &str = "pho_0000000000000000000000000g";
const HST: &str = "hst_0000000000000000000000000g";
const WHK: &str = "whk_0000000000000000000000000g";
const EVT: &str = "evt_0000000000000000000000000g";
const DLV: &str = "dlv_0000000000000000000000000g";
const API_KEY_ID: &str = "key_0000000000000000000000000g";
/// A request that does not come is a failure, not a hang.
const REQUEST_WITHIN: Duration = Duration::from_secs(20);

/// What the router does with one request.
enum Answer {
    Json(u16, Value),
    Empty(u16),
    Problem(u16, Value),
    /// The connection breaks after the request has been read.
    Break,
}

#[derive(Clone, Debug)]
struct Asked {
    line: String,
    headers: Vec<(String, String)>,
    body: Value,
}

impl Asked {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// A router with a script.
struct Router {
    url: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    thread: JoinHandle<()>,
}

impl Router {
    fn new(script: Vec<Answer>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&asked);
        let thread = std::thread::spawn(move || {
            for answer in script {
                let (mut stream, _) = listener.accept().unwrap();
                stream.set_read_timeout(Some(REQUEST_WITHIN)).unwrap();
                let request = read_request(&stream);
                seen.lock().unwrap().push(request);
                write_answer(&mut stream, answer);
            }
        });
        Self { url, asked, thread }
    }

    fn asked(&self) -> MutexGuard<'_, Vec<Asked>> {
        self.asked.lock().unwrap()
    }

    /// The script has been played to its end.
    fn done(self) -> Vec<Asked> {
        self.thread.join().unwrap();
        Arc::try_unwrap(self.asked).unwrap().into_inner().unwrap()
    }
}

fn read_request(stream: &TcpStream) -> Asked {
    let mut reader = BufReader::new(stream);
    let mut next = || {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    };
    let line = next().trim_end_matches(" HTTP/1.1").to_owned();
    let mut headers = Vec::new();
    loop {
        let header = next();
        let Some((name, value)) = header.split_once(": ") else { break };
        headers.push((name.to_lowercase(), value.to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let mut body = vec![0; length.map_or(0, |(_, length)| length.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    Asked { line, headers, body }
}

fn write_answer(stream: &mut TcpStream, answer: Answer) {
    let (status, kind, body) = match answer {
        Answer::Json(status, body) => (status, "application/json", body.to_string()),
        Answer::Problem(status, body) => (status, "application/problem+json", body.to_string()),
        Answer::Empty(status) => (status, "application/json", String::new()),
        Answer::Break => return,
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    )
    .unwrap();
}

#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

#[expect(clippy::disallowed_methods, reason = "the program under test is run as people run it")]
fn switchboard() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchboard"));
    command.env_clear().env("HOME", "/nonexistent");
    command
}

fn finish(command: &mut Command, stdin: &str) -> Ran {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let ran = Ran {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    };
    for secret in [ADMIN, KEY] {
        assert!(!ran.out.contains(secret) && !ran.err.contains(secret), "{ran:?}");
    }
    ran
}

/// Runs with the operator's token alone, against a script which must be played to its end.
fn run_as_operator(script: Vec<Answer>, arguments: &[&str]) -> (Ran, Vec<Asked>) {
    let router = Router::new(script);
    let mut command = switchboard();
    command.env("SWITCHBOARD_URL", &router.url).env("SWITCHBOARD_ADMIN_TOKEN", ADMIN);
    let ran = finish(command.args(arguments), "");
    assert!(!router.asked().is_empty(), "nothing was asked: {ran:?}");
    let asked = router.done();
    let bearer = format!("Bearer {ADMIN}");
    assert!(asked.iter().all(|asked| asked.header("authorization") == Some(&bearer)), "{asked:?}");
    (ran, asked)
}

fn run_with(url: &str, arguments: &[&str], stdin: &str) -> Ran {
    let command = &mut switchboard();
    command.env("SWITCHBOARD_URL", url);
    command.env("SWITCHBOARD_ADMIN_TOKEN", ADMIN).env("SWITCHBOARD_API_KEY", KEY);
    finish(command.args(arguments), stdin)
}

/// Runs against a script, which must be played to its end.
fn run(script: Vec<Answer>, arguments: &[&str]) -> (Ran, Vec<Asked>) {
    let router = Router::new(script);
    let ran = run_with(&router.url, arguments, "");
    assert!(!router.asked().is_empty(), "nothing was asked: {ran:?}");
    (ran, router.done())
}

fn page(rows: Value) -> Answer {
    Answer::Json(200, json!({ "data": rows, "next_cursor": null, "has_more": false }))
}

fn message(status: &str, sequence: u64) -> Value {
    json!({
        "id": MSG, "direction": "outbound", "status": status, "to": "+12025550143",
        "from": "+12025550190", "phone": PHO, "text": "Your code\nis 4711", "channel": "auto",
        "class": "otp", "attempts": 1, "sequence": sequence,
        "created_at": "2026-11-22T12:00:00.000Z", "updated_at": "2026-11-22T12:00:01.500Z",
    })
}

fn problem(status: u16, code: &str, detail: &str, errors: Value) -> Answer {
    Answer::Problem(
        status,
        json!({
            "type": format!("urn:switchboard:problem:{code}"), "title": "Title", "status": status,
            "code": code,
            "detail": detail, "request_id": "req_7", "errors": errors,
        }),
    )
}

fn ok(ran: &Ran) -> &str {
    assert_eq!((ran.code, ran.err.as_str()), (0, ""), "{}", ran.out);
    &ran.out
}

#[test]
fn tenants_are_made_and_listed() {
    let tenant = json!({
        "id": TEN, "name": "acme", "brand": "Acme", "created_at": "2026-11-22T12:00:00.000Z",
    });
    let script = vec![Answer::Json(201, tenant.clone())];
    let (ran, asked) = run(script, &["tenants", "create", "acme", "--brand", "Acme"]);
    assert_eq!(
        ok(&ran),
        format!("tenant {TEN} (acme)\nnext: switchboard keys create --tenant {TEN} --name NAME\n")
    );
    assert_eq!(asked[0].line, "POST /v1/admin/tenants");
    assert_eq!(asked[0].body, json!({ "name": "acme", "brand": "Acme" }));
    assert_eq!(asked[0].header("authorization"), Some(format!("Bearer {ADMIN}").as_str()));

    let (ran, _) = run(vec![page(json!([tenant]))], &["tenants"]);
    assert_eq!(
        ok(&ran),
        "TENANT                          NAME  BRAND  CREATED\n\
         ten_0000000000000000000000000g  acme  Acme   2026-11-22 12:00:00Z\n"
    );
    let (ran, _) = run(vec![page(json!([tenant]))], &["tenants", "list", "--json"]);
    let shown: Value = serde_json::from_str(ok(&ran)).unwrap();
    assert_eq!(shown, json!({ "data": [tenant], "next_cursor": null, "has_more": false }));
    let (ran, _) = run(vec![page(json!([]))], &["tenants"]);
    assert!(ok(&ran).contains("switchboard tenants create NAME"), "{ran:?}");
}

#[test]
fn long_lists_are_read_page_by_page() {
    let host = |name: &str| {
        json!({
            "id": HST, "name": name, "online": true, "phones": [PHO], "version": "1.0.0",
            "last_seen_at": "2026-11-22T12:00:00.000Z", "created_at": "2026-11-22T11:00:00.000Z",
        })
    };
    let first = json!({ "data": [host("mini-1")], "next_cursor": "c/1", "has_more": true });
    let script = vec![Answer::Json(200, first), page(json!([host("mini-2")]))];
    let (ran, asked) = run(script, &["hosts"]);
    assert_eq!(asked[1].line, "GET /v1/admin/hosts?cursor=c%2F1");
    let names: Vec<&str> =
        ok(&ran).lines().filter_map(|line| line.split_whitespace().nth(1)).collect();
    assert_eq!(names, ["NAME", "mini-1", "mini-2"]);
}

#[test]
fn phones_are_listed_with_what_ails_them() {
    let phones = json!([{
        "id": PHO, "number": "+12025550190", "label": "de\u{1b}[2Jsk\n", "host": HST, "online": true,
        "state": "not_ready", "reasons": ["automation_denied"], "channels": ["imessage", "sms"],
        "epoch": 7, "lease_until": "2026-11-22T12:00:15.000Z", "messages_today": 12, "in_flight": 1,
    }]);
    let (ran, _) = run(vec![page(phones)], &["phones"]);
    let text = ok(&ran);
    assert!(text.contains("+12025550190"), "{text}");
    assert!(text.contains("not_ready (automation_denied)"), "{text}");
    assert!(text.contains("imessage,sms"), "{text}");
    assert!(text.contains("de [2Jsk") && text.lines().count() == 2, "{text}");
    assert!(text.contains("2026-11-22 12:00:15Z"), "{text}");
}

#[test]
fn a_reload_says_what_became_of_each_phone_and_what_has_not_ended_yet() {
    let other = "pho_0000000000000000000000000k";
    let changes = |still: Value| {
        let mut done = json!({
            "started": [], "stopped": [], "replaced": [PHO], "untouched": 3, "needs_restart": [],
        });
        // An older supervisor does not speak of it.
        if !still.is_null() {
            done["still_ending"] = still;
        }
        Answer::Json(200, done)
    };
    let waits = || {
        Answer::Json(
            200,
            json!({
                "started": [], "stopped": [], "replaced": [], "untouched": 4, "taken": ["[power]"],
                "needs_restart": ["[router] url"],
            }),
        )
    };
    let script = vec![changes(json!([other])), changes(Value::Null), waits(), waits()];
    let supervisor = Router::new(script);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("token"), "dispatch-token").unwrap();
    let config = dir.path().join("supervisor.toml");
    let listen = supervisor.url.trim_start_matches("http://");
    let dispatch = format!("[dispatch]\nlisten = \"{listen}\"\ntoken_file = \"token\"\n");
    std::fs::write(&config, format!("{CONFIG}\n{dispatch}")).unwrap();
    let reload = || {
        let mut command = switchboard();
        finish(command.args(["host", "reload", "--config"]).arg(&config), "")
    };
    let first = reload();
    let text = ok(&first);
    let row = |id: &str, what: &str| {
        text.lines().any(|line| line.contains(id) && line.trim_end().ends_with(what))
    };
    assert!(row(PHO, "replaced") && row(other, "still ending"), "{text}");
    assert!(text.contains("3 phones went on") && text.contains("when it has ended"), "{text}");
    let second = reload();
    assert!(!ok(&second).contains("ending"), "{second:?}");
    // What waits for a restart is said by the exit code, too, and what does not is said beside it.
    for json in [false, true] {
        let mut command = switchboard();
        if json {
            command.arg("--json");
        }
        let third = finish(command.args(["host", "reload", "--config"]).arg(&config), "");
        assert_eq!(third.code, 3, "{third:?}");
        assert!(third.out.contains("[power]"), "{third:?}");
        assert!(third.err.contains("[router] url"), "{third:?}");
        assert_eq!(third.out.contains("needs_restart"), json, "{third:?}");
    }
    let asked = supervisor.done();
    assert_eq!(asked[0].line, "POST /v1/reload");
    assert_eq!(asked[0].header("authorization"), Some("Bearer dispatch-token"));
}

#[test]
fn a_blocked_phone_is_handed_over_only_when_that_is_said() {
    let phone = || {
        page(json!([{
            "id": PHO, "number": "+12025550190", "host": HST, "online": true, "state": "not_ready",
            "reasons": ["account_blocked"], "channels": ["imessage"], "messages_today": 0, "in_flight": 0,
        }]))
    };
    let to = "hst_0000000000000000000000000k";
    let script = vec![
        phone(),
        problem(409, "phone_not_moved", "Apple has blocked the phone's account", json!([])),
        phone(),
        Answer::Json(202, json!({ "phones": [{ "phone": PHO, "from": HST, "to": to }] })),
    ];
    let router = Router::new(script);
    let failover = |arguments: &[&str]| {
        let mut all = vec!["failover", "phone", "+12025550190", "--no-wait"];
        all.extend(arguments);
        run_with(&router.url, &all, "")
    };
    let refused = failover(&[]);
    assert!(refused.code != 0 && refused.err.contains("blocked"), "{refused:?}");
    let begun = failover(&["--despite-block"]);
    assert!(ok(&begun).contains("begun") && begun.out.contains(to), "{begun:?}");
    let asked = router.done();
    for (said, despite_block) in [(&asked[1], Value::Null), (&asked[3], json!(true))] {
        assert_eq!(said.line, format!("POST /v1/admin/phones/{PHO}/failover"));
        let sent = said.body.get("despite_block").filter(|word| **word != json!(false));
        assert_eq!(sent.cloned().unwrap_or_default(), despite_block);
    }
    // A whole host is never handed over against its blocks.
    let ran = run_with("http://127.0.0.1:1", &["failover", "host", HST, "--despite-block"], "");
    assert_eq!(ran.code, 2, "{ran:?}");
}

#[test]
fn keys_are_made_with_an_end_and_revoked() {
    let key = json!({
        "id": API_KEY_ID, "tenant": TEN, "name": "web", "prefix": "sb_live_ab", "test": false,
        "created_at": "2026-11-22T12:00:00.000Z", "secret": "sb_live_new", "tier": "custom",
        "per_second": 5, "burst": 20,
    });
    let arguments = ["keys", "create", "--tenant", TEN, "--name", "web", "--expires", "90d"];
    let (ran, asked) = run(vec![Answer::Json(201, key.clone())], &arguments);
    assert!(ok(&ran).contains("secret, shown this once: sb_live_new\n"), "{ran:?}");
    assert_eq!(asked[0].body["tenant"], TEN);
    assert_eq!(asked[0].body["test"], false);
    assert!(asked[0].body["expires_at"].as_str().unwrap().ends_with('Z'));
    assert!(asked[0].body.get("tier").is_none() && asked[0].body.get("scopes").is_none());

    let arguments = [
        "keys",
        "create",
        "--tenant",
        TEN,
        "--name",
        "web",
        "--scope",
        "messages:read",
        "--allow",
        "192.0.2.0/24",
        "--per-second",
        "5",
        "--burst",
        "20",
    ];
    let (ran, asked) = run(vec![Answer::Json(201, key.clone())], &arguments);
    ok(&ran);
    let sent = &asked[0].body;
    assert_eq!(
        (&sent["tier"], &sent["per_second"], &sent["burst"]),
        (&json!("custom"), &json!(5), &json!(20))
    );
    assert_eq!(
        (&sent["scopes"], &sent["allow"]),
        (&json!(["messages:read"]), &json!(["192.0.2.0/24"]))
    );

    let (ran, asked) = run(vec![Answer::Json(201, key.clone())], &["keys", "rotate", API_KEY_ID]);
    assert!(ok(&ran).contains("secret, shown this once: sb_live_new\n"), "{ran:?}");
    assert_eq!(asked[0].line, format!("POST /v1/admin/keys/{API_KEY_ID}/rotate"));
    assert_eq!(asked[0].body, json!({ "overlap_seconds": 86_400 }));
    let (ran, asked) =
        run(vec![Answer::Json(201, key)], &["keys", "rotate", API_KEY_ID, "--at-once"]);
    assert!(ok(&ran).contains("has ended"), "{ran:?}");
    assert_eq!(asked[0].body, json!({ "overlap_seconds": 0 }));

    let (ran, asked) = run(vec![Answer::Empty(204)], &["keys", "revoke", API_KEY_ID]);
    assert_eq!(ok(&ran), format!("key {API_KEY_ID} is revoked\n"));
    assert_eq!(asked[0].line, format!("DELETE /v1/admin/keys/{API_KEY_ID}"));
    let arguments = ["keys", "revoke", API_KEY_ID, "--json"];
    let (ran, _) = run(vec![Answer::Empty(204)], &arguments);
    assert_eq!(serde_json::from_str::<Value>(ok(&ran)).unwrap(), json!({ "id": API_KEY_ID }));
}

#[test]
fn plans_are_changed_in_part_and_credits_are_booked_once() {
    let billing = json!({ "tenant": TEN, "plan": "small", "plan_is_default": false, "messages_per_month": 20,
        "credits_per_message": 0, "month": "2026-11", "used": 3, "resets_at": "2026-12-01T00:00:00.000Z",
        "credit": -5, "billing_account_id": TEN, "stripe_customer_id": "cus_1" });
    let script = || vec![Answer::Json(200, billing.clone()), Answer::Json(200, billing.clone())];
    let path = format!("/v1/admin/tenants/{TEN}/billing");
    for (more, sent) in [
        (
            &["--plan", "large"][..],
            json!({ "plan": "large", "billing_account_id": TEN, "stripe_customer_id": "cus_1" }),
        ),
        (&["--default-plan", "--pays-itself", "--no-stripe-customer"], json!({})),
        (
            &["--stripe-customer", "cus_2"],
            json!({ "plan": "small", "billing_account_id": TEN, "stripe_customer_id": "cus_2" }),
        ),
    ] {
        let (ran, asked) = run(script(), &[&["billing", "set", TEN], more].concat());
        assert!(ok(&ran).contains("3 in 2026-11, until 2026-12-01"), "{ran:?}");
        assert_eq!(asked[0].line, format!("GET {path}"));
        assert_eq!((&asked[1].line, &asked[1].body), (&format!("PUT {path}"), &sent));
    }
    let entry = json!({ "id": EVT, "tenant": TEN, "at": "2026-11-22T12:00:01.000Z", "amount": -5, "balance": 7,
        "source": "operator", "reason": "mistake" });
    let arguments = ["credits", "add", TEN, "-5", "--reason", "mistake"];
    let (ran, asked) = run(vec![Answer::Break, Answer::Json(201, entry.clone())], &arguments);
    assert_eq!(ok(&ran), format!("booked {EVT}: -5 credits, 7 are there\n"));
    assert_eq!(asked[0].body, json!({ "amount": -5, "reason": "mistake" }));
    let keys: Vec<_> = asked.iter().map(|asked| asked.header("idempotency-key").unwrap()).collect();
    assert!(keys.len() == 2 && keys[0] == keys[1], "{keys:?}");
    let page = json!({ "data": [entry], "next_cursor": null, "has_more": false });
    let (ran, asked) = run(vec![Answer::Json(200, page)], &["credits", "list"]);
    assert!(ok(&ran).contains("mistake"), "{ran:?}");
    assert_eq!(asked[0].line, "GET /v1/credits");
}

#[test]
fn usage_is_summed_up_unless_asked_otherwise() {
    let row = |class: &str, accepted: u64| {
        json!({ "period": "2026-11", "tenant": TEN, "class": class, "channel": "auto", "accepted": accepted,
            "segments": 9, "sent": 1, "returned": 0, "credits": 4, "credits_returned": 1 })
    };
    let page = json!({ "data": [row("otp", 40), row("marketing", 2)], "next_cursor": null, "has_more": false });
    let arguments = ["usage", "--tenant", TEN, "--from", "2026-11-01"];
    let (ran, asked) = run(vec![Answer::Json(200, page.clone())], &arguments);
    let said = ok(&ran);
    assert!(said.contains(" 42 ") && !said.contains("marketing"), "{said}");
    assert_eq!(
        asked[0].line,
        format!("GET /v1/admin/usage?period=month&tenant={TEN}&from=2026-11-01")
    );
    let (ran, asked) =
        run(vec![Answer::Json(200, page)], &["usage", "--period", "day", "--detail"]);
    assert!(ok(&ran).contains("marketing"), "{ran:?}");
    assert_eq!(asked[0].line, "GET /v1/usage?period=day");
}

#[test]
fn a_message_is_sent_once_however_often_the_network_fails() {
    let script = vec![
        Answer::Break,
        problem(503, "busy", "Not now.", json!([])),
        Answer::Json(202, message("queued", 1)),
    ];
    let arguments =
        ["send", "--to", "+12025550143", "--text", "-x", "--class", "otp", "--ttl", "10m"];
    let (ran, asked) = run(script, &arguments);
    assert_eq!(ok(&ran), format!("2026-11-22 12:00:01Z  {MSG}  queued  to +12025550143\n"));
    let keys: Vec<_> = asked.iter().map(|asked| asked.header("idempotency-key").unwrap()).collect();
    assert_eq!(keys.len(), 3);
    assert!(keys[0].len() >= 26 && keys.iter().all(|key| *key == keys[0]), "{keys:?}");
    let body = json!({ "to": "+12025550143", "text": "-x", "class": "otp", "ttl_seconds": 600 });
    assert!(asked.iter().all(|asked| asked.body == body), "{asked:?}");
    assert_eq!(asked[0].header("authorization"), Some(format!("Bearer {KEY}").as_str()));
}

#[test]
fn every_message_has_its_own_key_unless_one_is_given() {
    let send = |more: &[&str]| {
        let arguments = [&["send", "--to", "+12025550143", "--text", "x"], more].concat();
        let (_, asked) = run(vec![Answer::Json(202, message("queued", 1))], &arguments);
        asked[0].header("idempotency-key").unwrap().to_owned()
    };
    assert_ne!(send(&[]), send(&[]));
    assert_eq!(send(&["--idempotency-key", "mine"]), "mine");
}

#[test]
fn the_text_can_come_from_standard_input() {
    let router = Router::new(vec![Answer::Json(202, message("queued", 1))]);
    let arguments = ["send", "--to", "ann@example.com", "--text", "-"];
    let ran = run_with(&router.url, &arguments, "two\nlines – ü\n");
    ok(&ran);
    assert_eq!(router.done()[0].body["text"], "two\nlines – ü");
}

#[test]
fn what_fails_on_the_network_without_a_key_is_not_repeated() {
    let (ran, asked) = run(vec![Answer::Break], &["tenants", "create", "acme"]);
    assert_eq!(ran.code, 69);
    assert_eq!(asked.len(), 1);
}

#[test]
fn a_refusal_names_every_field() {
    let errors = json!([
        { "pointer": "/to", "code": "not_possible", "detail": "No such number." },
        { "pointer": "/text", "code": "too_long", "detail": "At most 20000 characters." },
    ]);
    let script = vec![problem(422, "validation_failed", "Some fields are wrong.", errors)];
    let (ran, _) = run(script, &["send", "--to", "+12025550143", "--text", "x"]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert_eq!(
        ran.err,
        "error: the router said no: Some fields are wrong. (validation_failed, HTTP 422)\n  \
         /to: No such number. (not_possible)\n  \
         /text: At most 20000 characters. (too_long)\n  request: req_7\n"
    );
    let script = vec![problem(404, "not_found", "No such message.", json!([]))];
    let (ran, _) = run(script, &["message", MSG, "--json"]);
    let said: Value = serde_json::from_str(&ran.err).unwrap();
    assert_eq!(
        (ran.code, &said["exit_code"], &said["problem"]["code"]),
        (1, &json!(1), &json!("not_found"))
    );
}

#[test]
fn who_is_not_authorised_is_told_where_the_secret_goes() {
    let script = vec![problem(401, "unauthorized", "No such key.", json!([]))];
    let (ran, _) = run(script, &["messages"]);
    assert_eq!(ran.code, 77);
    assert!(ran.err.contains("No such key.") && ran.err.contains("SWITCHBOARD_API_KEY"), "{ran:?}");

    // Without a secret nothing is asked at all: the address leads nowhere.
    let mut command = switchboard();
    let ran = finish(command.args(["tenants", "--url", "http://127.0.0.1:1"]), "");
    assert_eq!(ran.code, 77);
    assert!(ran.err.contains("SWITCHBOARD_ADMIN_TOKEN"), "{ran:?}");
}

#[test]
fn a_router_that_cannot_be_reached_has_its_own_exit_code() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let url = format!("http://{unused}");
    let ran = run_with(&url, &["tenants", "create", "acme"], "");
    assert_eq!(ran.code, 69);
    assert!(ran.err.contains(&url) && ran.err.contains("SWITCHBOARD_URL"), "{ran:?}");
}

#[test]
fn an_answer_of_something_else_is_told_from_a_refusal() {
    let (ran, _) = run(vec![Answer::Json(200, json!("hello"))], &["hosts"]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("is this address a Switchboard router"), "{ran:?}");
}

#[test]
fn wrong_usage_exits_with_two() {
    for arguments in [&["send"][..], &["frobnicate"], &["phones", "--timeout", "x"]] {
        assert_eq!(run_with("http://127.0.0.1:1", arguments, "").code, 2, "{arguments:?}");
    }
    let ran = run_with("ftp://127.0.0.1", &["hosts"], "");
    assert_eq!(ran.code, 2);
}

#[test]
fn wrong_usage_is_json_for_a_program() {
    for arguments in [
        &["message", "msg_short", "--json"][..],
        &["--json", "send"],
        &["--json", "frobnicate"],
        &["phones", "--json", "--timeout", "x"],
    ] {
        let ran = run_with("http://127.0.0.1:1", arguments, "");
        assert_eq!((ran.code, ran.out.as_str()), (2, ""), "{arguments:?}");
        let error: Value = serde_json::from_str(&ran.err).unwrap();
        assert_eq!(error["exit_code"], 2);
        assert!(!error["error"].as_str().unwrap().is_empty() && error["remedy"].is_string());
    }
    // Help stays help.
    let ran = run_with("http://127.0.0.1:1", &["phones", "--json", "--help"], "");
    assert!(ok(&ran).contains("Usage:"), "{ran:?}");
}

#[test]
fn an_empty_secret_is_none() {
    let router = Router::new(vec![page(json!([]))]);
    let mut command = switchboard();
    command.env("SWITCHBOARD_URL", &router.url);
    command.env("SWITCHBOARD_ADMIN_TOKEN", ADMIN).env("SWITCHBOARD_API_KEY", "");
    let ran = finish(command.arg("messages"), "");
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(router.done()[0].line.starts_with("GET /v1/admin/messages"));

    let mut command = switchboard();
    command.env("SWITCHBOARD_ADMIN_TOKEN", " ");
    let ran = finish(command.args(["tenants", "--url", "http://127.0.0.1:1"]), "");
    assert_eq!(ran.code, 77);
    assert!(ran.err.contains("needs the operator's token"), "{ran:?}");
}

#[test]
fn a_secret_that_no_header_can_carry_is_wrong_usage_and_is_not_shown() {
    let mut command = switchboard();
    command.env("SWITCHBOARD_ADMIN_TOKEN", format!("{ADMIN}\nx"));
    let ran = finish(command.args(["tenants", "--url", "http://127.0.0.1:1"]), "");
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("newline"), "{ran:?}");
}

#[test]
fn waiting_shows_the_steps_and_tells_success_from_failure() {
    let arguments = ["send", "--to", "+12025550143", "--text", "x", "--wait"];
    let script = |last: Value| {
        vec![
            Answer::Json(202, message("queued", 1)),
            Answer::Json(200, message("dispatching", 2)),
            Answer::Json(200, last),
        ]
    };
    let (ran, asked) = run(script(message("delivered", 5)), &arguments);
    let steps: Vec<&str> =
        ok(&ran).lines().map(|line| line.split_whitespace().nth(3).unwrap()).collect();
    assert_eq!(steps, ["queued", "dispatching", "delivered"]);
    assert_eq!(asked[1].line, format!("GET /v1/messages/{MSG}"));

    let mut failed = message("failed", 5);
    failed["reason"] = json!("no_phone_available");
    let (ran, _) = run(script(failed), &arguments);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("was not sent: failed (no_phone_available)"), "{ran:?}");
}

#[test]
fn waiting_ends() {
    let script = vec![
        Answer::Json(202, message("queued", 1)),
        Answer::Json(200, message("queued", 1)),
        Answer::Json(200, message("queued", 1)),
        Answer::Json(200, message("queued", 1)),
    ];
    let router = Router::new(script);
    let arguments = ["send", "--to", "+12025550143", "--text", "x", "--wait=1s", "--json"];
    let ran = run_with(&router.url, &arguments, "");
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("still queued after 1 s"), "{ran:?}");
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()["id"], MSG);
}

#[test]
fn messages_are_listed_with_filters() {
    let arguments = ["messages", "--status", "delivered", "--limit", "2"];
    let (ran, asked) = run(vec![page(json!([message("delivered", 5)]))], &arguments);
    assert_eq!(asked[0].line, "GET /v1/messages?limit=2&status=delivered");
    assert_eq!(
        ok(&ran),
        "MESSAGE                         CREATED               WAY  OTHER SIDE    OURS          CHANNEL  STATUS     TEXT\n\
         msg_0000000000000000000000000g  2026-11-22 12:00:00Z  to   +12025550143  +12025550190  -        delivered  Your code is 4711\n"
    );
}

#[test]
fn the_operator_sees_everybodys_messages() {
    let (ran, asked) = run_as_operator(vec![page(json!([]))], &["messages"]);
    assert_eq!(ok(&ran), "there is no message\n");
    assert_eq!(asked[0].line, "GET /v1/admin/messages?limit=20");
}

#[test]
fn the_operator_follows_everybodys_messages() {
    let row = |status: &str, sequence: u64| {
        let mut row = message(status, sequence);
        row["tenant"] = json!(TEN);
        page(json!([row]))
    };
    let script = vec![
        row("queued", 1),
        row("sent", 4),
        problem(401, "unauthenticated", "The token has been changed.", json!([])),
    ];
    let (ran, asked) = run_as_operator(script, &["messages", "--follow", "--status", "sent"]);
    assert_eq!((ran.code, ran.out.lines().count()), (77, 2), "{ran:?}");
    assert!(ran.err.contains("SWITCHBOARD_ADMIN_TOKEN"), "{ran:?}");
    let line = "GET /v1/admin/messages?limit=100&status=sent";
    assert!(asked.iter().all(|asked| asked.line == line), "{asked:?}");
}

#[test]
fn the_operator_sees_and_withdraws_any_message() {
    let events = || {
        let at = "2026-11-22T12:00:00.000Z";
        page(json!([{ "id": EVT, "message": MSG, "sequence": 1, "type": "queued", "at": at }]))
    };
    let script = vec![Answer::Json(200, message("queued", 1)), events()];
    let (ran, asked) = run_as_operator(script, &["message", MSG]);
    let as_operator = ok(&ran).to_owned();
    assert_eq!(asked[0].line, format!("GET /v1/admin/messages/{MSG}"));
    assert_eq!(asked[1].line, format!("GET /v1/admin/messages/{MSG}/events"));

    let script = vec![Answer::Json(200, message("canceled", 2))];
    let (ran, asked) = run_as_operator(script, &["cancel", MSG]);
    assert!(ok(&ran).contains("canceled"), "{ran:?}");
    assert_eq!(asked[0].line, format!("POST /v1/admin/messages/{MSG}/cancel"));

    let script = vec![problem(404, "not_found", "No such message.", json!([]))];
    let (ran, _) = run_as_operator(script, &["message", MSG]);
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    let script = vec![problem(409, "not_cancelable", "It has been sent.", json!([]))];
    let (ran, _) = run_as_operator(script, &["cancel", MSG]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("It has been sent."), "{ran:?}");
    // Not repeated: whether the first request was understood is not known.
    let (ran, asked) = run_as_operator(vec![Answer::Break], &["cancel", MSG]);
    assert_eq!((ran.code, asked.len()), (69, 1));

    // With a tenant's key it is the tenant who asks, and sees the same.
    let (ran, asked) =
        run(vec![Answer::Json(200, message("queued", 1)), events()], &["message", MSG]);
    assert_eq!(ok(&ran), as_operator);
    assert_eq!(asked[0].line, format!("GET /v1/messages/{MSG}"));
    assert_eq!(asked[0].header("authorization"), Some(format!("Bearer {KEY}").as_str()));
}

#[test]
fn without_any_secret_messages_name_both_that_would_do() {
    for arguments in [&["messages", "--follow"][..], &["message", MSG], &["cancel", MSG]] {
        let mut command = switchboard();
        command.args(arguments).args(["--url", "http://127.0.0.1:1"]);
        let ran = finish(&mut command, "");
        assert_eq!(ran.code, 77, "{ran:?}");
        for name in ["SWITCHBOARD_API_KEY", "SWITCHBOARD_ADMIN_TOKEN"] {
            assert!(ran.err.contains(name), "{ran:?}");
        }
    }
    // Sending is always in a tenant's name.
    let mut command = switchboard();
    command.env("SWITCHBOARD_ADMIN_TOKEN", ADMIN).args(["--url", "http://127.0.0.1:1"]);
    let ran = finish(command.args(["send", "--to", "+12025550143", "--text", "x"]), "");
    assert_eq!(ran.code, 77);
    assert!(!ran.err.contains("SWITCHBOARD_ADMIN_TOKEN"), "{ran:?}");
}

#[test]
fn following_shows_what_changes_and_nothing_twice() {
    let script = vec![
        page(json!([message("queued", 1)])),
        page(json!([message("queued", 1)])),
        page(json!([message("sent", 4)])),
        problem(401, "unauthorized", "The key has been revoked.", json!([])),
    ];
    let (ran, _) = run(script, &["messages", "--follow", "--json"]);
    assert_eq!(ran.code, 77);
    let steps: Vec<Value> = ran
        .out
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["status"].clone())
        .collect();
    assert_eq!(steps, ["queued", "sent"]);
}

#[test]
fn following_outlives_a_restart_of_the_router_even_before_the_first_message() {
    let script = vec![
        page(json!([])),
        problem(503, "draining", "The router is stopping.", json!([])),
        problem(503, "draining", "The router is stopping.", json!([])),
        problem(503, "draining", "The router is stopping.", json!([])),
        problem(503, "draining", "The router is stopping.", json!([])),
        page(json!([message("queued", 1)])),
        problem(401, "unauthorized", "The key has been revoked.", json!([])),
    ];
    let (ran, _) = run(script, &["messages", "--follow", "--json"]);
    assert_eq!(ran.code, 77);
    assert_eq!(ran.out.lines().count(), 1, "{ran:?}");
    assert!(ran.err.contains("The router is stopping."), "{ran:?}");
}

#[test]
fn a_message_has_a_story_with_the_time_between_its_steps() {
    let event = |sequence: u64, kind: &str, at: &str, more: Value| {
        let mut event = json!({
            "id": EVT, "message": MSG, "sequence": sequence, "type": kind,
            "at": format!("2026-11-22T12:{at}Z"),
        });
        for (name, value) in more.as_object().unwrap() {
            event[name] = value.clone();
        }
        event
    };
    let events = json!([
        event(1, "queued", "00:00.000", json!({})),
        event(2, "dispatching", "00:00.012", json!({ "attempt": 1, "phone": PHO })),
        event(
            3,
            "fallback",
            "00:01.500",
            json!({ "attempt": 1, "channel": "sms", "detail": "x\u{1b}[2J" })
        ),
        event(4, "sent", "01:02.500", json!({ "attempt": 1, "channel": "sms" })),
    ]);
    let mut shown = message("sent", 4);
    shown["channel_used"] = json!("sms");
    let (ran, asked) = run(vec![Answer::Json(200, shown), page(events)], &["message", MSG]);
    assert_eq!(asked[1].line, format!("GET /v1/messages/{MSG}/events"));
    assert_eq!(
        ok(&ran),
        "\
msg_0000000000000000000000000g  sent
  from        +12025550190
  to          +12025550143
  phone       pho_0000000000000000000000000g
  channel     sms (asked: auto)
  class       otp
  attempts    1
  created     2026-11-22 12:00:00Z
  | Your code
  | is 4711
#  AT                    AFTER       EVENT        ABOUT
1  2026-11-22 12:00:00Z  +0 ms       queued
2  2026-11-22 12:00:00Z  +12 ms      dispatching  attempt 1  pho_0000000000000000000000000g
3  2026-11-22 12:00:01Z  +1.4 s      fallback     attempt 1  sms  x[2J
4  2026-11-22 12:01:02Z  +1 min 1 s  sent         attempt 1  sms
"
    );
}

#[test]
fn a_message_can_be_withdrawn() {
    let mut canceled = message("canceled", 2);
    canceled["reason"] = json!("canceled");
    let (ran, asked) = run(vec![Answer::Json(200, canceled)], &["cancel", MSG]);
    assert_eq!(ok(&ran), format!("2026-11-22 12:00:01Z  {MSG}  canceled  to +12025550143\n"));
    assert_eq!(asked[0].line, format!("POST /v1/messages/{MSG}/cancel"));
    let script = vec![problem(409, "not_cancelable", "It has been sent.", json!([]))];
    let (ran, _) = run(script, &["cancel", MSG]);
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("switchboard message ID"), "{ran:?}");
}

#[test]
fn webhooks_are_added_listed_and_looked_into() {
    let endpoint = json!({
        "id": WHK, "url": "https://a.example/hook", "events": ["message.sent"],
        "created_at": "2026-11-22T12:00:00.000Z",
    });
    let mut created = endpoint.clone();
    created["secret"] = json!("whsec_new");
    let arguments = ["webhooks", "add", "https://a.example/hook", "--event", "message.sent"];
    let (ran, asked) = run(vec![Answer::Json(201, created)], &arguments);
    assert!(ok(&ran).contains("whsec_new"), "{ran:?}");
    assert_eq!(
        asked[0].body,
        json!({ "url": "https://a.example/hook", "events": ["message.sent"] })
    );

    let (ran, _) = run(vec![page(json!([endpoint]))], &["webhooks", "list"]);
    assert!(ok(&ran).contains("message.sent  enabled"), "{ran:?}");

    let deliveries = json!([{
        "id": DLV, "endpoint": WHK, "event": EVT, "type": "message.sent", "state": "pending",
        "attempts": [{ "at": "2026-11-22T12:00:00.000Z", "status": 500, "duration_ms": 31 }],
        "next_at": "2026-11-22T12:00:05.000Z", "created_at": "2026-11-22T12:00:00.000Z",
    }]);
    let (ran, asked) = run(vec![page(deliveries)], &["webhooks", "deliveries", WHK]);
    assert_eq!(asked[0].line, format!("GET /v1/webhook_endpoints/{WHK}/deliveries"));
    let row = ok(&ran).lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(
        row,
        format!("{DLV} message.sent pending 1 500 31 ms 2026-11-22 12:00:05Z 2026-11-22 12:00:00Z")
    );

    let ran =
        run_with("http://127.0.0.1:1", &["webhooks", "add", "https://a", "--event", "sent"], "");
    assert_eq!(ran.code, 2);
}

#[test]
fn opt_outs_are_listed() {
    let rows = json!([{
        "recipient": "+12025550143", "method": "keyword", "at": "2026-11-22T12:00:00.000Z", "message": MSG,
    }]);
    let (ran, _) = run(vec![page(rows)], &["opt-outs"]);
    assert!(ok(&ran).lines().nth(1).unwrap().starts_with("+12025550143  keyword"), "{ran:?}");
}

#[test]
fn opt_outs_are_added_and_imported_in_chunks_and_lifted_with_evidence() {
    let done = |added: u32| Answer::Json(200, json!({"added": added, "already": 1, "stopped": 2}));
    let arguments =
        ["opt-outs", "add", "+12025550143", "--source", "a call", "--tenant", "everybody"];
    let (ran, asked) = run(vec![done(1)], &arguments);
    assert_eq!(ok(&ran), "1 opted out, 1 had already; 2 messages on their way were stopped\n");
    assert_eq!(asked[0].line, "POST /v1/admin/tenants/everybody/opt_outs");
    assert_eq!(asked[0].body, json!({"recipients": ["+12025550143"], "source": "a call"}));

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("list.csv");
    let rows: Vec<String> = (0..501).map(|number| format!("+1202555{number:04}")).collect();
    std::fs::write(&file, format!("number\n{}\n", rows.join("\n"))).unwrap();
    let (ran, asked) =
        run(vec![done(500), done(1)], &["opt-outs", "import", file.to_str().unwrap()]);
    assert_eq!(ok(&ran), "501 opted out, 2 had already; 4 messages on their way were stopped\n");
    assert_eq!(asked.len(), 2);
    assert_eq!(asked[1].body, json!({"recipients": ["+12025550500"], "source": "list.csv"}));
    assert!(asked.iter().all(|one| one.header("idempotency-key").is_some()));
    std::fs::write(&file, "+12025550143\n2025550143\n").unwrap();
    let ran = run_with("http://127.0.0.1:1", &["opt-outs", "import", file.to_str().unwrap()], "");
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("line 2"), "{ran:?}");

    let arguments = [
        "opt-outs",
        "lift",
        "+12025550143",
        "--source",
        "form",
        "--at",
        "2026-11-01T00:00:00Z",
        "--text",
        "yes",
    ];
    let (ran, asked) = run(vec![Answer::Empty(204)], &arguments);
    assert_eq!(ok(&ran), "+12025550143 may be written to again\n");
    assert_eq!(asked[0].line, "POST /v1/opt_outs/+12025550143/lift");
}

#[test]
fn rules_are_shown_and_set_from_a_file() {
    let rules = json!({
        "hours": "strict", "transactional_hours": true, "unknown_zone": "us50", "stop_words": ["alto"],
        "confirm_opt_out": true, "first_message_links": false,
    });
    let (ran, asked) = run(vec![Answer::Json(200, rules.clone())], &["rules", "show", TEN]);
    assert_eq!(asked[0].line, format!("GET /v1/admin/tenants/{TEN}/rules"));
    assert!(ok(&ran).contains("strict") && ok(&ran).contains("alto"), "{ran:?}");
    let router = Router::new(vec![Answer::Json(200, rules)]);
    let ran = run_with(&router.url, &["rules", "set", TEN, "-"], "{\"hours\": \"strict\"}");
    ok(&ran);
    let asked = router.done();
    assert_eq!(asked[0].line, format!("PUT /v1/admin/tenants/{TEN}/rules"));
    assert_eq!(asked[0].body, json!({"hours": "strict"}));
    let ran = run_with("http://127.0.0.1:1", &["rules", "set", TEN, "-"], "{");
    assert_eq!(ran.code, 2);
}

#[test]
fn a_message_is_checked_rule_by_rule() {
    let checked = json!({
        "verdict": "hold", "reason": "quiet_hours", "next_allowed_at": "2026-11-29T15:00:00.000Z", "class": "marketing",
        "rules": [
            {"rule": "opt_out", "verdict": "send"},
            {"rule": "quiet_hours", "verdict": "hold", "reason": "quiet_hours", "until": "2026-11-29T15:00:00.000Z"},
        ],
        "time_zones": ["America/Chicago", "America/New_York"],
        "content": {"characters": 5, "encoding": "gsm7", "segments": 1, "links": false},
        "route": [], "rules_version": "v",
    });
    let (ran, asked) = run(
        vec![Answer::Json(200, checked)],
        &["check", "--to", "+18505550143", "--text", "Hello"],
    );
    assert_eq!(asked[0].line, "POST /v1/messages:check");
    let out = ok(&ran);
    assert!(out.contains("5 characters, gsm7, 1 SMS segments; judged as marketing"), "{out}");
    assert!(
        out.contains(
            "hold: It is night where the recipient may be. It may go at 2026-11-29 15:00:00Z."
        ),
        "{out}"
    );
}

const CONFIG: &str = r#"
state_dir = "state"
[[phones]]
number = "+12025550190"
label = "desk"
chat_db = "/tmp/chat.db"
[[phones]]
number = "+12025550191"
chat_db = "/tmp/chat2.db"
[router]
url = "ROUTER"
"#;

fn enrolled() -> Answer {
    Answer::Json(
        200,
        json!({ "host": HST, "phones": [{ "phone": PHO, "number": "+12025550190" }] }),
    )
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn enrolment_leaves_a_private_key_and_may_be_repeated() {
    let token = || {
        Answer::Json(201, json!({ "token": "sbe_once", "expires_at": "2026-11-22T13:00:00.000Z" }))
    };
    let router = Router::new(vec![token(), enrolled(), token(), enrolled()]);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("supervisor.toml");
    // The link's scheme in the configuration must do as well.
    let url = router.url.replace("http:", "ws:");
    std::fs::write(&config, CONFIG.replace("ROUTER", &url)).unwrap();
    let enroll = || {
        let mut command = switchboard();
        command.env("SWITCHBOARD_ADMIN_TOKEN", ADMIN);
        command.args(["host", "enroll", "--name", "mini", "--config"]).arg(&config);
        finish(&mut command, "")
    };
    let state = dir.path().join("state");
    let first = enroll();
    assert!(ok(&first).contains("with a new key"), "{first:?}");
    assert!(first.out.contains(PHO) && !first.out.contains("sbe_once"), "{first:?}");
    assert_eq!(mode(&state), 0o700);
    let key = std::fs::read_to_string(state.join("host.key")).unwrap();
    for file in ["host.key", "enrolment.json"] {
        assert_eq!(mode(&state.join(file)), 0o600, "{file}");
    }
    let (enrolment, loaded) = router_client::enrolment::load(&state).unwrap();
    assert_eq!(enrolment.host.as_str(), HST);
    assert_eq!(enrolment.router, router.url);
    assert_eq!(enrolment.phones.len(), 1);

    let second = enroll();
    assert!(ok(&second).contains("with the key it had"), "{second:?}");
    assert_eq!(std::fs::read_to_string(state.join("host.key")).unwrap(), key);

    let asked = router.done();
    assert_eq!(asked[0].line, "POST /v1/admin/enrolment_tokens");
    assert_eq!(asked[0].header("authorization"), Some(format!("Bearer {ADMIN}").as_str()));
    assert_eq!(asked[1].line, "POST /v1/hosts/enroll");
    assert_eq!(asked[1].header("authorization"), None);
    assert_eq!(
        asked[1].body,
        json!({
            "token": "sbe_once",
            "name": "mini",
            "public_key": loaded.public_base64url(),
            "phones": [{ "number": "+12025550190", "label": "desk" }, { "number": "+12025550191" }],
        })
    );
    assert_eq!(asked[3].body["public_key"], asked[1].body["public_key"]);
}

#[test]
fn a_one_time_token_enrols_without_the_operators() {
    let router = Router::new(vec![enrolled()]);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("supervisor.toml");
    std::fs::write(&config, CONFIG).unwrap();
    let mut command = switchboard();
    command.args(["host", "enroll", "--token", "sbe_mine", "--json", "--url", &router.url]);
    let ran = finish(command.arg("--config").arg(&config), "");
    let said: Value = serde_json::from_str(ok(&ran)).unwrap();
    assert_eq!((&said["host"], &said["new_key"]), (&json!(HST), &json!(true)));
    assert_eq!(router.done()[0].body["token"], "sbe_mine");
}

#[test]
fn a_phone_is_enrolled_with_the_channels_of_its_bridge() {
    let router = Router::new(vec![enrolled(), enrolled()]);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("supervisor.toml");
    let enroll = |channels: &str| {
        let text = CONFIG.replacen(
            "[[phones]]\nnumber = \"+12025550191\"",
            &format!(
                "[phones.bridge]\nosascript_deadline_ms = 9000\ndefault_channels = {channels}\n\
                 [[phones]]\nnumber = \"+12025550191\""
            ),
            1,
        );
        std::fs::write(&config, text).unwrap();
        let mut command = switchboard();
        command.args(["host", "enroll", "--token", "sbe_mine", "--url", &router.url]);
        finish(command.arg("--config").arg(&config), "")
    };
    for (wrong, part) in [("[]", "at least one channel"), ("[\"fax\"]", "fax"), ("\"sms\"", "")] {
        let ran = enroll(wrong);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.err.contains("line 9") && ran.err.contains(part), "{ran:?}");
    }
    assert!(router.asked().is_empty() && !dir.path().join("state").exists());

    ok(&enroll("[\"imessage\"]"));
    // After a change it is enrolled again.
    ok(&enroll("[\"rcs\", \"sms\", \"rcs\"]"));
    let asked = router.done();
    let channels = |asked: &Asked, phone: usize| asked.body["phones"][phone]["channels"].clone();
    assert_eq!(channels(&asked[0], 0), json!(["imessage"]));
    assert_eq!(channels(&asked[1], 0), json!(["rcs", "sms"]));
    // Where nothing is set, the router has its own default.
    assert_eq!(channels(&asked[1], 1), Value::Null);
}

#[test]
fn a_used_token_is_not_authorised_and_leaves_no_enrolment() {
    let script = vec![problem(401, "invalid_enrolment_token", "Used up.", json!([]))];
    let router = Router::new(script);
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("supervisor.toml");
    std::fs::write(&config, CONFIG).unwrap();
    let mut command = switchboard();
    command.args(["host", "enroll", "--token", "sbe_old", "--url", &router.url]);
    let ran = finish(command.arg("--config").arg(&config), "");
    assert_eq!(ran.code, 77);
    assert!(ran.err.contains("switchboard host token") && !ran.err.contains("sbe_old"), "{ran:?}");
    assert!(!dir.path().join("state/enrolment.json").exists());
}

#[test]
fn a_wrong_configuration_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("supervisor.toml");
    for (text, part) in [
        ("state_dir = \"s\"\n\n[[phones]]\nnumber = \"12\"\n", "line 4"),
        ("state_dir = \"s\"\n[router]\nurl = \"http://x\"\n", "[[phones]]"),
        ("state_dir = \"s\"\n[[phones]]\nnumber = \"+12025550190\"\n", "[router]"),
    ] {
        std::fs::write(&config, text).unwrap();
        let mut command = switchboard();
        command.env("SWITCHBOARD_ADMIN_TOKEN", ADMIN).args(["host", "enroll", "--config"]);
        let ran = finish(command.arg(&config), "");
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.err.contains(part) && ran.err.contains("supervisor.toml"), "{ran:?}");
    }
    let mut command = switchboard();
    let ran = finish(command.args(["host", "enroll", "--config", "/nonexistent/x.toml"]), "");
    assert_eq!(ran.code, 2);
}

#[test]
fn a_host_token_is_printed_alone_on_its_line() {
    let made = json!({ "token": "sbe_new", "expires_at": "2026-11-22T13:00:00.000Z" });
    let (ran, _) = run(vec![Answer::Json(201, made)], &["host", "token"]);
    assert_eq!(ok(&ran), "sbe_new\ngood for one host, until 2026-11-22 13:00:00Z\n");
}

#[test]
fn completions_and_manual_pages_are_written() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run_with("http://127.0.0.1:1", &["completions", shell], "");
        assert!(ok(&ran).contains("opt-outs"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    let ran = run_with("http://127.0.0.1:1", &["man", dir.path().to_str().unwrap()], "");
    ok(&ran);
    let keys = std::fs::read_to_string(dir.path().join("switchboard-keys-create.1")).unwrap();
    assert!(keys.contains("queued, sent, delivered"), "{keys}");
    let page = std::fs::read_to_string(dir.path().join("switchboard-send.1")).unwrap();
    assert!(page.contains("idempotency"), "{page}");
    let words = ["man", dir.path().to_str().unwrap(), "--json"];
    let ran = run_with("http://127.0.0.1:1", &words, "");
    assert!(serde_json::from_str::<Value>(ok(&ran)).unwrap()["dir"].is_string());
}

#[test]
fn no_colours_reach_a_file() {
    let (ran, _) =
        run(vec![Answer::Json(200, message("sent", 4)), page(json!([]))], &["message", MSG]);
    assert!(!ok(&ran).contains('\u{1b}'));
}

#[test]
fn a_reader_that_stops_reading_is_no_error() {
    let rows: Vec<Value> = (0..100).map(|sequence| message("sent", sequence)).collect();
    let router = Router::new(vec![page(json!(rows))]);
    let mut command = switchboard();
    command.env("SWITCHBOARD_URL", &router.url).env("SWITCHBOARD_API_KEY", KEY);
    command.args(["messages", "--limit", "100"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
}
