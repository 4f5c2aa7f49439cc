//! One tenant never meets another's data: over every route of the document, and over every statement of the store.
#![expect(
    clippy::indexing_slicing,
    reason = "JSON without the field asked for fails the test, as it should"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::api_support::{ADMIN, Answer, Router, Tenant};
use protocol::Channel;
use reqwest::Method;
use router::store::capabilities;
use serde_json::{Value, json};

/// What stands in a path for an id of each kind, by what stands before it. A route with a part that is not here fails
/// the test: whoever adds one says what belongs there.
async fn belongings(router: &Router, tenant: &Tenant) -> BTreeMap<&'static str, String> {
    let key = &tenant.live;
    let id = |made: &Answer| {
        assert!((200..300).contains(&made.status), "{made:?}");
        made.body["id"].as_str().expect("it has an id").to_owned()
    };
    let body = json!({"to": "+12025550143", "text": "a", "class": "otp"});
    let message = id(&router.post("/v1/messages", key, &body).await);
    let dead = id(&router.post("/v1/messages", key, &body).await);
    router.dead_letter(&dead).await;
    let hook = json!({"url": "http://127.0.0.1:1/"});
    let endpoint = id(&router.post("/v1/webhook_endpoints", key, &hook).await);
    let test = format!("/v1/webhook_endpoints/{endpoint}/test");
    let delivery = id(&router.post(&test, key, &Value::Null).await);
    let path = format!("/v1/webhook_deliveries/{delivery}");
    router.until(async || router.get(&path, key).await.body["attempts"] != json!([])).await;
    let opted = json!({"recipients": ["+12025550144"], "source": "by telephone"});
    let opted = router.post("/v1/opt_outs", key, &opted).await;
    assert!((200..300).contains(&opted.status), "{opted:?}");
    let contact = json!({"time_zone": "America/New_York"});
    let request = router.client.put(format!("{}/v1/contacts/+12025550145", router.url));
    let put = router.send(request.bearer_auth(key).json(&contact)).await;
    assert!((200..300).contains(&put.status), "{put:?}");
    let batch = json!({"name": "a", "text": "a"});
    let batch = id(&router.post("/v1/batches", key, &batch).await);
    let template = json!({"name": "a", "text": "a"});
    let template = id(&router.post("/v1/templates", key, &template).await);
    let history = router.get("/v1/opt_outs/history", key).await.body;
    let event = history["data"][0]["id"].as_str().expect("an opt-out has a history").to_owned();
    let (whose, who) =
        (tenant.id.parse().expect("an id"), "+12025550146".parse().expect("a number"));
    let now = router.app.clock.now();
    router
        .app
        .store
        .write(move |tx| capabilities::learn(tx, (&whose, false), &who, (Channel::Sms, true), now))
        .await
        .expect("it is written");
    BTreeMap::from([
        ("messages", message),
        ("dead-letters", dead),
        ("webhook_endpoints", endpoint),
        ("webhook_deliveries", delivery),
        ("opt_outs", "+12025550144".to_owned()),
        ("history", event),
        ("contacts", "+12025550145".to_owned()),
        ("templates", template),
        ("capabilities", "+12025550146".to_owned()),
        ("batches", batch),
    ])
}

/// Bodies that are good, so that a refusal is about the id and nothing else.
fn body_of(path: &str, method: &str) -> Value {
    match (path, method) {
        ("/v1/webhook_endpoints/{id}/replay", _) => json!({"since": "2020-01-01T00:00:00Z"}),
        ("/v1/opt_outs/{recipient}/lift", _) => {
            json!({"source": "a form", "at": "2026-01-01T00:00:00Z", "text": "yes"})
        }
        ("/v1/contacts/{recipient}", "put") => json!({"time_zone": "America/Chicago"}),
        (_, "post" | "patch" | "put" | "delete") => json!({}),
        (_, _) => Value::Null,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_foreign_id_is_not_found_on_any_route_of_the_document() {
    let router = Router::start().await;
    let (owner, stranger) = (router.tenant("Owner").await, router.tenant("Stranger").await);
    let own = belongings(&router, &owner).await;
    let document = router.get("/openapi.json", "").await.body;
    let mut tried = 0;
    for (path, item) in document["paths"].as_object().expect("it has paths") {
        for (method, operation) in item.as_object().expect("a path has methods") {
            let of_tenants = operation["security"][0]["api_key"].is_array();
            if !of_tenants || !path.contains('{') {
                continue;
            }
            let mut before = "";
            let mut filled = String::new();
            for part in path.split('/').skip(1) {
                let part = if part.starts_with('{') {
                    own.get(before)
                        .unwrap_or_else(|| panic!("{path}: what is a {part} of {before}?"))
                } else {
                    before = part;
                    part
                };
                filled = format!("{filled}/{part}");
            }
            // What a tenant says of a recipient is its own, whoever else knows that one: a PUT makes it.
            let makes = path == "/v1/contacts/{recipient}" && method == "put";
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).expect("a method");
            let body = body_of(path, method.as_str().to_lowercase().as_str());
            for key in [&stranger.live, &stranger.test] {
                let request = router
                    .client
                    .request(method.clone(), format!("{}{filled}", router.url))
                    .bearer_auth(key);
                let request = if body.is_null() { request } else { request.json(&body) };
                let answer = router.send(request).await;
                if makes {
                    assert_eq!(answer.status, 200, "{method} {path}: {answer:?}");
                } else {
                    assert_eq!(answer.status, 404, "{method} {path}: {answer:?}");
                    assert_eq!(answer.problem(), "not_found", "{method} {path}");
                }
            }
            tried += 1;
            if makes {
                let undone = router.delete(&filled, &stranger.live).await;
                assert_eq!(undone.status, 204, "{undone:?}");
            }
        }
    }
    assert!(tried >= 18, "{tried}");
    // Nothing of it was changed by that, and no list of the stranger's has any of it.
    for (kind, path) in [
        ("messages", "/v1/messages"),
        ("dead-letters", "/v1/dead-letters"),
        ("webhook_endpoints", "/v1/webhook_endpoints"),
        ("opt_outs", "/v1/opt_outs"),
        ("history", "/v1/opt_outs/history"),
        ("contacts", "/v1/contacts"),
        ("templates", "/v1/templates"),
        ("capabilities", "/v1/capabilities"),
        ("batches", "/v1/batches"),
    ] {
        let id = own[kind].as_str();
        let has = |page: &Value| page["data"].to_string().contains(id);
        let mine = router.get(path, &owner.live).await;
        assert!(has(&mine.body), "{path}: {mine:?}");
        let theirs = router.get(path, &stranger.live).await;
        assert_eq!((theirs.status, &theirs.body["data"]), (200, &json!([])), "{path}: {theirs:?}");
    }
    router.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_does_with_tenants_data_is_written_down_before_it_is_done() {
    let router = Router::start().await;
    let (one, other) = (router.tenant("One").await, router.tenant("Other").await);
    let body = json!({"to": "+12025550143", "text": "a", "class": "otp"});
    let sent = router.post("/v1/messages", &one.live, &body).await.body;
    let id = sent["id"].as_str().expect("it has an id");
    let entries = async |filter: &str| {
        let page = router.get(&format!("/v1/admin/audit_log?limit=100{filter}"), ADMIN).await;
        assert_eq!(page.status, 200, "{page:?}");
        page.body["data"].as_array().expect("a page").clone()
    };
    // Making the tenants and their keys stands there already; looking at hosts and phones is a look at nobody's data.
    let before = entries("").await.len();
    router.get("/v1/admin/hosts", ADMIN).await;
    router.get("/v1/admin/phones", ADMIN).await;
    router.get("/v1/admin/messages", "wrong-token-of-somebody").await;
    assert_eq!(entries("").await.len(), before);

    let read = router.get(&format!("/v1/admin/messages/{id}"), ADMIN).await;
    router.get(&format!("/v1/admin/messages?tenant={}&to=%2B12025550143", one.id), ADMIN).await;
    router.get("/v1/admin/messages", ADMIN).await;
    router.get("/v1/admin/messages/msg_00000000000000000000000000", ADMIN).await;
    router.post(&format!("/v1/admin/messages/{id}/cancel"), ADMIN, &Value::Null).await;
    router.get(&format!("/v1/admin/tenants/{}/rules", other.id), ADMIN).await;
    let mut written = entries("").await;
    written.truncate(written.len() - before);
    written.reverse();
    let told: Vec<(&str, Option<&str>, u64)> = written
        .iter()
        .map(|entry| {
            (
                entry["action"].as_str().expect("an action"),
                entry["tenant"].as_str(),
                entry["status"].as_u64().expect("it was answered"),
            )
        })
        .collect();
    let of_one = Some(one.id.as_str());
    assert_eq!(
        told,
        [
            ("GET /v1/admin/messages/{id}", of_one, 200),
            ("GET /v1/admin/messages", of_one, 200),
            ("GET /v1/admin/messages", None, 200),
            ("GET /v1/admin/messages/{id}", None, 404),
            ("POST /v1/admin/messages/{id}/cancel", of_one, 200),
            ("GET /v1/admin/tenants/{id}/rules", Some(other.id.as_str()), 200),
        ]
    );
    assert_eq!(written[0]["target"], format!("/v1/admin/messages/{id}"));
    assert_eq!(written[0]["request_id"], read.headers["x-request-id"].to_str().expect("text"));
    assert_eq!(written[0]["address"], "127.0.0.1");
    assert!(written[1]["target"].as_str().expect("a path").contains("to=%2B12025550143"));
    let of_other = entries(&format!("&tenant={}", other.id)).await;
    // Its two keys, and the look at its rules.
    assert_eq!(of_other.len(), 3, "{of_other:?}");

    // Which phones send whose messages is not changed unseen.
    let (own, pooled) = (phone_of(&router, 1, false).await, phone_of(&router, 2, false).await);
    let before = entries("").await.len();
    let path = format!("/v1/admin/phones/{own}");
    let patch = router.client.patch(format!("{}{path}", router.url)).bearer_auth(ADMIN);
    let reserved = router.send(patch.json(&json!({"exclusive_to": one.id}))).await;
    assert_eq!(reserved.status, 200, "{reserved:?}");
    router.get(&path, ADMIN).await;
    router.post(&format!("{path}/replace"), ADMIN, &json!({"by": pooled})).await;
    router.post(&format!("{path}/failover"), ADMIN, &json!({})).await;
    router.post("/v1/admin/hosts/hst_00000000000000000000000000/drain", ADMIN, &json!({})).await;
    let mut written = entries("").await;
    written.truncate(written.len() - before);
    written.reverse();
    let told: Vec<_> = written.iter().map(|entry| (&entry["action"], &entry["tenant"])).collect();
    assert_eq!(
        told,
        [
            (&json!("PATCH /v1/admin/phones/{id}"), &json!(one.id)),
            (&json!("POST /v1/admin/phones/{id}/replace"), &json!(one.id)),
            (&json!("POST /v1/admin/phones/{id}/failover"), &json!(one.id)),
            (&json!("POST /v1/admin/hosts/{id}/drain"), &Value::Null),
        ]
    );

    // What cannot be written down is not done.
    router
        .app
        .store
        .write(|tx| tx.execute("DROP TABLE audit_log", router::params![]))
        .await
        .expect("it is dropped");
    let refused = router.get(&format!("/v1/admin/messages/{id}"), ADMIN).await;
    assert_eq!((refused.status, refused.problem()), (500, "internal"));
    assert!(refused.body.get("text").is_none());
    let body = json!({"tenant": one.id, "name": "unseen"});
    assert_eq!(router.post("/v1/admin/keys", ADMIN, &body).await.status, 500);
    let made = router
        .app
        .store
        .read(|tx| {
            tx.query_row(
                "SELECT count(*) FROM api_keys WHERE name = 'unseen'",
                router::params![],
                |row| row.int(0),
            )
        })
        .await
        .expect("it is read");
    assert_eq!(made, 0);
    router.stop().await;
}

/// A phone whose host is there, of the pool or of the sandbox.
async fn phone_of(router: &Router, number: u8, sandbox: bool) -> String {
    let id = protocol::PhoneId::new(i64::from(number), [number; 10]);
    let phone = id.clone();
    router
        .app
        .store
        .write(move |tx| {
            let host = protocol::HostId::new(1, [1; 10]);
            tx.execute(
                "INSERT INTO hosts (id, name, public_key, session, created_at) VALUES (?1, 'secret-host', 'k', 'h', 0)
                 ON CONFLICT DO NOTHING",
                router::params![host],
            )?;
            tx.execute(
                "INSERT INTO phones (id, number, host_id, state, reasons, channels, warming_priority, messages_today,
                     day, created_at, updated_at, sandbox)
                 VALUES (?1, ?2, ?3, 'ready', '[]', '[\"imessage\"]', 100, 0, 0, 0, 0, ?4)",
                router::params![phone, format!("+1202555010{number}"), host, sandbox],
            )
        })
        .await
        .expect("it is written");
    id.to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_sees_the_phones_that_it_may_use_and_nothing_of_the_operators() {
    let router = Router::start().await;
    let (one, other) = (router.tenant("One").await, router.tenant("Other").await);
    let mut phones = Vec::new();
    for number in 1..=5 {
        phones.push(phone_of(&router, number, number == 4).await);
    }
    let of_one = one.id.clone();
    router
        .app
        .store
        .write(move |tx| {
            tx.execute(
                "UPDATE phones SET exclusive_tenant_id = ?1 WHERE number = '+12025550101'",
                router::params![of_one],
            )?;
            // One that cannot be given anything, and one whose place another has taken.
            tx.execute(
                "UPDATE phones SET blocked_at = 1 WHERE number = '+12025550103'",
                router::params![],
            )?;
            tx.execute(
                "UPDATE phones SET replaced_by = 'phn_x' WHERE number = '+12025550105'",
                router::params![],
            )
        })
        .await
        .expect("it is written");
    let seen = async |key: &str| {
        let page = router.get("/v1/phones", key).await;
        assert_eq!(page.status, 200, "{page:?}");
        let text = page.body.to_string();
        assert!(!text.contains("secret-host") && !text.contains("host"), "{text}");
        page.body["data"].clone()
    };
    let pooled = |at: usize, ready: bool| {
        json!({"id": phones[at], "number": format!("+1202555010{}", at + 1), "exclusive": false, "ready": ready,
            "channels": ["imessage"]})
    };
    let mut own = pooled(0, true);
    own["exclusive"] = json!(true);
    assert_eq!(seen(&one.live).await, json!([pooled(2, false), pooled(1, true), own]));
    assert_eq!(seen(&other.live).await, json!([pooled(2, false), pooled(1, true)]));
    let mut sandbox = pooled(3, true);
    sandbox["sandbox"] = json!(true);
    assert_eq!(seen(&one.test).await, json!([sandbox]));
    let page = router.get("/v1/phones?limit=2", &one.live).await.body;
    assert_eq!((&page["data"][1]["id"], &page["has_more"]), (&json!(phones[1]), &json!(true)));
    let cursor = page["next_cursor"].as_str().expect("there is more");
    let rest = router.get(&format!("/v1/phones?limit=2&cursor={cursor}"), &one.live).await.body;
    assert_eq!((&rest["data"], &rest["has_more"]), (&json!([own]), &json!(false)));
    assert_eq!(router.get("/v1/phones", "").await.status, 401);
    router.stop().await;
}

/// A statement of the store's code, and where it stands.
#[derive(Debug)]
struct Statement {
    /// File and the function or constant around it.
    place: String,
    sql: String,
}

/// The string literals of a file with the item that each stands in, its tests left out.
fn literals(source: &str) -> Vec<(String, Option<String>, String)> {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
    let mut found = Vec::new();
    let (mut function, mut constant) = (String::new(), None);
    let mut rest = source;
    while let Some(next) = rest.find(['"', '/', '\'']) {
        let words: Vec<&str> = rest[..next].split_whitespace().collect();
        for (at, word) in words.iter().enumerate() {
            let name = words.get(at + 1).copied().unwrap_or_default();
            let name = || name.split(['(', '<', ':']).next().unwrap_or_default().to_owned();
            match *word {
                "fn" | "macro_rules!" => (function, constant) = (name(), None),
                "const" => constant = Some(name()),
                // It was a number, or its text was taken already.
                word if word.ends_with(';') => constant = None,
                _ => {}
            }
        }
        rest = &rest[next..];
        if rest.starts_with("//") {
            // The words of a comment are no code; those of the code before it were seen.
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
        } else if rest.starts_with('"') {
            let mut literal = String::new();
            let mut characters = rest.char_indices().skip(1);
            let mut end = rest.len();
            while let Some((at, character)) = characters.next() {
                match character {
                    '"' => {
                        end = at + 1;
                        break;
                    }
                    '\\' => drop(characters.next()),
                    other => literal.push(other),
                }
            }
            let item = constant.clone().unwrap_or_else(|| function.clone());
            found.push((item, constant.take(), literal));
            rest = &rest[end..];
        } else if let Some(quoted) = ["'\"'", "'/'", "'\\''"].iter().find(|q| rest.starts_with(**q))
        {
            rest = &rest[quoted.len()..];
        } else {
            rest = &rest[1..];
        }
    }
    found
}

/// Every file of the router's source, but those of tests alone.
fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") && name != "tests.rs" {
            found.push((name, std::fs::read_to_string(&path).expect("text")));
        }
    }
}

fn statements() -> Vec<Statement> {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let mut statements = Vec::new();
    for (file, source) in files {
        let all = literals(&source);
        let constants: BTreeMap<&str, &str> = all
            .iter()
            .filter_map(|(_, constant, text)| Some((constant.as_deref()?, text.as_str())))
            .collect();
        for (item, constant, text) in &all {
            // What is only a part of others is judged in them.
            let part = constant.as_ref().is_some_and(|name| {
                all.iter().any(|(.., other)| other.contains(&format!("{{{name}}}")))
            });
            let mut sql = text.clone();
            // A part may have parts.
            for _ in 0..2 {
                for (name, value) in &constants {
                    sql = sql.replace(&format!("{{{name}}}"), value);
                }
            }
            if !part && is_statement(&sql) {
                statements.push(Statement { place: format!("{file} {item}"), sql });
            }
        }
    }
    statements
}

/// It reads or writes rows, or, where it begins with something that is put in, might.
fn is_statement(sql: &str) -> bool {
    let words: Vec<&str> = sql.split_whitespace().collect();
    let first = words.first().copied().unwrap_or_default();
    ["SELECT", "INSERT", "REPLACE", "UPDATE", "DELETE", "WITH"].contains(&first) && words.len() > 2
        || first.starts_with('{') && words.contains(&"WHERE")
}

/// Tables whose rows belong to tenants, by the schema itself.
fn tenant_tables() -> BTreeSet<String> {
    let mut schema = rusqlite::Connection::open_in_memory().expect("a database in memory");
    router::store::migrate(&mut schema).expect("the schema");
    let mut tables = schema
        .prepare(
            "SELECT m.name FROM sqlite_master m JOIN pragma_table_info(m.name) c ON c.name = 'tenant_id'
             WHERE m.type = 'table'",
        )
        .expect("a query");
    let names = tables.query_map([], |row| row.get(0)).expect("rows");
    names.map(|name| name.expect("a name")).collect()
}

fn tables_of(sql: &str) -> BTreeSet<&str> {
    let spaced = sql.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ',');
    let words: Vec<&str> = spaced.filter(|word| !word.is_empty()).collect();
    let mut tables = BTreeSet::new();
    // Between FROM and what ends it a comma is followed by another table.
    let mut listed = false;
    for pair in words.windows(2) {
        let (word, next) = (pair[0], pair[1].trim_matches(','));
        match word {
            "FROM" => listed = true,
            "WHERE" | "SELECT" | "SET" | "ORDER" | "GROUP" | "ON" | "VALUES" => listed = false,
            _ => {}
        }
        let names = matches!(word, "FROM" | "JOIN" | "UPDATE" | "INTO");
        if names || listed && (word.ends_with(',') || pair[1].starts_with(',')) {
            tables.insert(next);
        }
    }
    tables
}

/// The statement says whose rows it means: by a parameter, or by another row's tenant that it is bound to. What it writes
/// there says nothing of which rows it writes to, and a copy of rows has to say whose they are.
fn names_the_tenant(sql: &str) -> bool {
    let sql = sql.trim_start();
    if sql.starts_with("INSERT")
        && let Some((columns, _values)) = sql.split_once("VALUES")
        && columns.contains("tenant_id")
        && !columns.contains("SELECT")
    {
        return true;
    }
    let asked = if sql.starts_with("UPDATE") {
        sql.split_once("WHERE").map_or("", |(_, asked)| asked)
    } else {
        sql
    };
    asked.match_indices("tenant_id = ").any(|(at, found)| {
        let value = &asked[at + found.len()..];
        let word = value.split(|c: char| c.is_whitespace() || c == ')').next().unwrap_or_default();
        word.starts_with('?') || word.ends_with(".tenant_id")
    })
}

/// Statements on tenants' tables that mean no single tenant's rows, each with its reason.
const EXCEPTIONS: &[(&str, &str)] = &[
    ("accounts.rs PAID_BY", "asks for whom a tenant pays, for the operator"),
    ("accounts.rs WITHOUT", "every tenant's account, when the router starts"),
    ("accounts.rs OTHERWISE", "every tenant's account, when the router starts"),
    ("accounts.rs PLANS", "every tenant's account, when the router starts"),
    ("admin.rs list_phones", "counts a phone's open attempts, for the operator"),
    ("admin.rs phone", "counts a phone's open attempts, for the operator"),
    ("audit.rs end", "ends the entry that was begun by the same request"),
    ("audit.rs list", "the operator's list of everybody's"),
    ("capabilities.rs answered", "who has asked a phone that answers now"),
    ("batches.rs AT_WORK", "the worker looks after all tenants' batches"),
    ("dead_letters.rs OF_ALL", "the operator's list of everybody's"),
    ("dead_letters.rs owner", "asks whose it is, for the operator"),
    ("dispatch.rs OVERDUE", "the dispatcher looks after all tenants' queue"),
    ("dispatch.rs WAKE_HELD", "the dispatcher looks after all tenants' queue"),
    ("dispatch.rs recall", "asks whose the message is that is asked back"),
    ("dispatch.rs recalls_sql", "what is to be asked back from a phone, whoever's"),
    ("dispatch.rs WAKE_SOME", "the dispatcher looks after all tenants' queue"),
    ("dispatch.rs IN_FLIGHT", "a phone's open attempts, whoever's"),
    (
        "dispatch.rs give_back",
        "the attempt's day, by the message that the caller has as its tenant's",
    ),
    ("dispatch.rs offer_sql", "what is to be offered to a phone, whoever's"),
    ("dispatch.rs offer_again", "an attempt that was just offered, by its key"),
    ("dispatch.rs unanswered_phones", "phones that owe an answer, to whomever"),
    ("dispatch.rs former_hosts", "an attempt that was just offered, by its key"),
    ("dispatch.rs FORMER_HOSTS", "what a former host has in hand, whoever's"),
    ("dispatch.rs given_sql", "what is to be offered to a phone, whoever's"),
    ("dispatch.rs recalls", "an attempt that was just asked back, by its key"),
    ("dispatch.rs attempt", "asks whose the attempt is that a phone speaks of"),
    ("dispatch.rs adopt", "asks whose the message is that a phone speaks of"),
    ("dispatch.rs set_attempt_state", "the attempt that a phone has answered, by its key"),
    ("doubts.rs LIST", "what is looked for on every phone, whoever's"),
    ("doubts.rs ASKED", "an attempt that was just asked about, by its key"),
    ("doubts.rs owner_of_guid", "a phone's own guids, whoever's the message was"),
    ("inbound.rs take_guid", "a phone's own guids, whoever's the message was"),
    ("inbound.rs TALKED_WITH", "asks who has talked with somebody on a phone"),
    (
        "inbound.rs ACQUAINTED",
        "asks who may have something on its way to somebody, for the operator",
    ),
    ("inbound.rs BY_GUID", "asks whose the message is that a phone speaks of"),
    ("inbound.rs RECEIVED_AS", "a phone's own guids, whoever's the message was"),
    ("keys.rs by_prefix", "asks whose a key is: that is what authentication finds out"),
    ("keys.rs owner", "asks whose it is, for the operator"),
    ("keys.rs list", "the operator's list of everybody's"),
    ("messages.rs owner", "asks whose it is, for the operator"),
    ("messages.rs finish", "made of conditions, of which `list` gives the tenant as the first"),
    ("providers.rs SMS_BY_DAY", "counts what all tenants send: a condition of the operator's"),
    ("providers.rs WAITING", "counts what waits for a provider, whoever's"),
    ("providers.rs BY_PROVIDER_ID", "asks whose the attempt is that a provider speaks of"),
    ("providers.rs BY_OWN_ID", "asks whose the attempt is that a provider speaks of"),
    ("queue.rs WAITS", "the queue takes turns among all tenants"),
    ("queue.rs SUSPECT", "the queue takes turns among all tenants"),
    ("queue.rs take_over", "a job that a dead router had in hand, by its key"),
    ("queue.rs LANES", "the queue takes turns among all tenants"),
    ("queue.rs promote", "a message of a job that was just found due, by its key"),
    ("queue.rs PROMOTE", "the queue takes turns among all tenants"),
    ("queue.rs NEXT_DUE", "the queue takes turns among all tenants"),
    ("stripe.rs OF_CUSTOMER", "asks whose a customer of Stripe's is"),
    ("usage.rs BEFORE", "the operator's list of everybody's: the next tenant"),
    ("retention.rs DEAD_LETTERS", "deletes by age, whoever's"),
    ("providers.rs look_no_more", "of one provider, whoever's"),
    ("retention.rs QUESTIONS", "deletes by age, whoever's"),
    ("retention.rs BATCHES_OVER", "deletes by age, whoever's"),
    ("retention.rs RECIPIENTS", "deletes by age, whoever's"),
    ("retention.rs FORGOTTEN", "deletes by age, whoever's"),
    ("retention.rs OLD_CHARGES", "deletes by age, whoever's"),
    ("retention.rs AUDIT", "deletes by age, whoever's"),
    ("retention.rs IDLE_BATCHES", "withdraws by age, whoever's"),
    ("retention.rs KNOWN", "looks through everybody's by age"),
    ("retention.rs UNSEEN", "deletes by age, whoever's"),
    ("retention.rs ATTEMPTS", "deletes by age, whoever's"),
    ("retention.rs DELIVERIES", "deletes by age, whoever's"),
    ("rules.rs record", "the decision before, of the message that the caller has as its tenant's"),
    ("standby.rs replace", "counts what waits for a phone's number, for the operator"),
    ("tally.rs DUE", "counts for the operator's metrics"),
    ("tally.rs HELD", "counts for the operator's metrics"),
    ("tally.rs PENDING", "counts for the operator's metrics"),
    ("webhook_jobs.rs WAITING", "the delivery worker looks after all tenants' endpoints"),
    ("webhook_jobs.rs next", "an endpoint that the worker found waiting"),
    ("webhook_jobs.rs NEXT", "jobs of an endpoint that the worker found waiting"),
    ("webhook_jobs.rs finish", "a job that the worker has made, by its key"),
    (
        "webhook_jobs.rs fail_damaged",
        "jobs that the worker has found and cannot read, by their row",
    ),
    ("webhook_endpoints.rs deleted", "the sweeper looks after all tenants' endpoints"),
    ("webhook_endpoints.rs sweep", "an endpoint that its tenant has deleted"),
    ("webhook_endpoints.rs SWEEP_ATTEMPTS", "jobs of an endpoint that its tenant has deleted"),
    ("webhook_endpoints.rs SWEEP_JOBS", "jobs of an endpoint that its tenant has deleted"),
    ("webhook_jobs.rs is_there", "an endpoint that the worker has posted to"),
    ("webhook_jobs.rs works", "an endpoint that the worker has posted to"),
    ("webhook_jobs.rs fails", "an endpoint that the worker has posted to"),
    ("webhook_jobs.rs pause", "an endpoint that the worker has posted to"),
    ("webhook_jobs.rs disable", "an endpoint that the worker has posted to"),
    ("webhook_jobs.rs FAIL_PENDING", "jobs of an endpoint that is off"),
];

#[test]
fn no_statement_on_a_tenants_table_forgets_the_tenant() {
    let (tables, statements) = (tenant_tables(), statements());
    assert!(tables.len() >= 13 && tables.contains("messages"), "{tables:?}");
    let on_tenants: Vec<&Statement> = statements
        .iter()
        .filter(|statement| tables_of(&statement.sql).iter().any(|table| tables.contains(*table)))
        .collect();
    // A reader that misses statements would find nothing wrong with them.
    assert!(
        statements.len() > 150 && on_tenants.len() > 100,
        "{} {}",
        statements.len(),
        on_tenants.len()
    );
    let without: Vec<&Statement> =
        on_tenants.into_iter().filter(|statement| !names_the_tenant(&statement.sql)).collect();
    let places: BTreeSet<&str> = without.iter().map(|statement| statement.place.as_str()).collect();
    let excepted: BTreeSet<&str> = EXCEPTIONS.iter().map(|(place, _)| *place).collect();
    let forgotten: Vec<&&Statement> =
        without.iter().filter(|statement| !excepted.contains(statement.place.as_str())).collect();
    assert!(forgotten.is_empty(), "whose rows? {forgotten:#?}");
    let idle: Vec<&&str> = excepted.difference(&places).collect();
    assert!(idle.is_empty(), "exceptions that nothing needs any more: {idle:?}");
    assert!(EXCEPTIONS.iter().all(|(_, reason)| reason.len() > 10));
}

#[test]
fn a_statement_that_forgets_the_tenant_is_seen() {
    let source = "const COLUMNS: &str = \"SELECT id FROM messages\";
        // fn comment: \"SELECT 1 FROM jobs\"
        pub fn get() { format!(\"{COLUMNS} WHERE id = ?1\"); let c = '\"'; }
        fn good() { \"DELETE FROM jobs WHERE tenant_id = ?1\" }
        #[cfg(test)]\nmod tests { fn ignored() { \"DELETE FROM jobs\" } }";
    let found = literals(source);
    let places: Vec<(&str, Option<&str>)> =
        found.iter().map(|(item, constant, _)| (item.as_str(), constant.as_deref())).collect();
    assert_eq!(places, [("COLUMNS", Some("COLUMNS")), ("get", None), ("good", None)]);
    assert_eq!(tables_of("UPDATE a SET x = 1 FROM b JOIN c"), BTreeSet::from(["a", "b", "c"]));
    assert_eq!(tables_of("SELECT 1 FROM a, b x, c WHERE d, e"), BTreeSet::from(["a", "b", "c"]));
    for (text, is_one) in [
        ("{COLUMNS_OF_ANOTHER_FILE} WHERE id = ?1", true),
        ("DELETE FROM jobs", true),
        ("SELECT", false),
        ("where {name} stands", false),
    ] {
        assert_eq!(is_statement(text), is_one, "{text}");
    }
    for (sql, named) in [
        ("SELECT 1 FROM jobs WHERE tenant_id = ?1", true),
        ("SELECT 1 FROM jobs j JOIN messages m ON m.tenant_id = j.tenant_id", true),
        ("INSERT INTO jobs (id, tenant_id) VALUES (?1, ?2)", true),
        ("INSERT INTO jobs (id) VALUES (?1)", false),
        ("SELECT tenant_id FROM jobs WHERE id = ?1", false),
        ("UPDATE jobs SET tenant_id = 'x'", false),
        ("UPDATE jobs SET tenant_id = ?2 WHERE id = ?1", false),
        ("UPDATE jobs SET state = ?2 WHERE tenant_id = ?1", true),
        (
            "INSERT INTO jobs (id, tenant_id) SELECT id, tenant_id FROM messages WHERE id = ?1",
            false,
        ),
        ("INSERT INTO jobs (id, tenant_id) SELECT id, ?2 FROM messages WHERE tenant_id = ?2", true),
    ] {
        assert_eq!(names_the_tenant(sql), named, "{sql}");
    }
}
