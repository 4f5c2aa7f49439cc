use proptest::prelude::*;

use super::*;

const SEND: &str = include_str!("../../../bridge/src/scripts/send.applescript");
const ACCOUNT: &str = include_str!("../../../bridge/src/scripts/account.applescript");
const PROBE: &str = include_str!("../../../bridge/src/scripts/probe.applescript");

/// Writes down what it is asked.
#[derive(Default)]
struct Recorder {
    events: Vec<String>,
    error: Option<i32>,
    quit: bool,
    /// What `chat id` answers.
    no_chat: Option<i32>,
    no_file: bool,
}

impl Recorder {
    fn event(&mut self, event: String) -> Result<(), EventError> {
        self.events.push(event);
        self.error.map_or(Ok(()), |number| Err(EventError::new(number)))
    }
}

fn said(content: Content<'_>) -> String {
    match content {
        Content::Text(text) => text.to_owned(),
        Content::File(path) => format!("file {path}"),
    }
}

impl Messages for Recorder {
    fn account(&mut self, service: &str, timeout_s: Option<u64>) -> Result<(), EventError> {
        match crate::outcome::Service::named(service) {
            Some(_) => self.event(format!("account {service} {timeout_s:?}")),
            None => Err(EventError::new(-2753)),
        }
    }

    fn connection_status(&mut self, service: &str, _: Option<u64>) -> Result<String, EventError> {
        self.event(format!("status {service}"))?;
        Ok("connected".into())
    }

    fn count_accounts(&mut self, _: Option<u64>) -> Result<i64, EventError> {
        self.event("count".into())?;
        Ok(3)
    }

    fn is_running(&mut self) -> bool {
        self.events.push("running".into());
        !self.quit
    }

    fn send_to_participant(
        &mut self,
        service: &str,
        address: &str,
        content: Content<'_>,
        _: Option<u64>,
    ) -> Result<(), EventError> {
        self.event(format!("send {service} {address} {}", said(content)))
    }

    fn send_to_chat(
        &mut self,
        guid: &str,
        content: Content<'_>,
        _: Option<u64>,
    ) -> Result<(), EventError> {
        self.event(format!("chat {guid} {}", said(content)))
    }

    fn is_file(&mut self, _: &str) -> bool {
        !self.no_file
    }

    fn chat(&mut self, guid: &str, _: Option<u64>) -> Result<(), EventError> {
        self.events.push(format!("known {guid}"));
        self.no_chat.map_or(Ok(()), |number| Err(EventError::new(number)))
    }

    fn quit(&mut self, _: Option<u64>) -> Result<(), EventError> {
        self.event("quit".into())
    }

    fn close_windows(&mut self, _: Option<u64>) -> Result<(), EventError> {
        self.event("close windows".into())
    }

    fn log(&mut self, line: &str) {
        self.events.push(format!("log {line}"));
    }
}

fn run_with(
    script: &str,
    argv: &[&str],
    recorder: &mut Recorder,
) -> Result<Option<String>, ScriptError> {
    let argv: Vec<String> = argv.iter().map(|arg| (*arg).to_owned()).collect();
    run(script, &argv, recorder)
}

/// The events of a script that succeeds, and its result.
fn played(script: &str, argv: &[&str]) -> (Vec<String>, Option<String>) {
    let mut recorder = Recorder::default();
    let result = run_with(script, argv, &mut recorder).expect(script);
    (recorder.events, result)
}

/// The number of the error of a script that fails, and whether it is a syntax error.
fn failed(script: &str, argv: &[&str]) -> (i32, bool) {
    let mut recorder = Recorder::default();
    let error = run_with(script, argv, &mut recorder).expect_err(script);
    assert!(!error.syntax || recorder.events.is_empty(), "a syntax error runs nothing: {script}");
    (error.number, error.syntax)
}

#[test]
fn the_bridges_scripts_do_what_they_say() {
    for (service, account) in [("iMessage", "iMessage"), ("RCS", "RCS"), ("SMS", "SMS")] {
        let argv = [service, "+12025550100", "", "text", "a \"b\" --c"];
        let (events, result) = played(SEND, &argv);
        let send = format!("send {account} +12025550100 a \"b\" --c");
        assert_eq!(events, [format!("account {account} None"), send]);
        assert_eq!(result, None);
    }
    let (events, result) = played(SEND, &["iMessage", "", "any;+;chat1", "text", "x\ny"]);
    assert_eq!(events, ["known any;+;chat1", "chat any;+;chat1 x\ny"]);
    assert_eq!(result, None);
    let (events, _) =
        played(SEND, &["SMS", "+12025550100", "SMS;-;+12025550100", "file", "/a b.png"]);
    assert_eq!(events[1..], ["chat SMS;-;+12025550100 file /a b.png"]);
    let (events, result) = played(PROBE, &[]);
    assert_eq!(events, ["account iMessage Some(5)", "status iMessage"]);
    assert_eq!(result.as_deref(), Some("connected"));
    for service in ["iMessage", "RCS", "SMS"] {
        let (events, result) = played(ACCOUNT, &[service]);
        let asked = [format!("account {service} Some(5)"), format!("status {service}")];
        assert_eq!(events, ["running".to_owned()].into_iter().chain(asked).collect::<Vec<_>>());
        assert_eq!(result.as_deref(), Some("connected"));
    }
}

#[test]
fn what_cannot_be_resolved_goes_to_the_address_or_says_that_nothing_was_sent() {
    let send = |argv: &[&str], recorder: Recorder| {
        let mut recorder = recorder;
        let result = run_with(SEND, argv, &mut recorder).unwrap();
        (recorder.events, result)
    };
    for number in [-1728, -1712, -609, 1002] {
        let unknown = || Recorder { no_chat: Some(number), ..Recorder::default() };
        let argv = ["iMessage", "+12025550100", "iMessage;-;+12025550100", "text", "x"];
        let (events, result) = send(&argv, unknown());
        let by_address = ["account iMessage None", "send iMessage +12025550100 x"];
        assert_eq!(events[1..], by_address);
        assert_eq!(result, None);
        let (events, result) = send(&["iMessage", "", "any;+;chat1", "text", "x"], unknown());
        assert_eq!(events, ["known any;+;chat1"]);
        assert_eq!(result, Some(format!("unsent chat {number}")));
    }
    let missing = Recorder { no_file: true, ..Recorder::default() };
    let (events, result) = send(&["iMessage", "+12025550100", "", "file", "/x"], missing);
    assert_eq!((events.len(), result.as_deref()), (0, Some("unsent file -43")));
}

#[test]
fn an_error_of_the_send_itself_ends_the_script_with_its_number() {
    for number in [-1712, -609, -1728, 1002] {
        for guid in ["", "any;-;+12025550100"] {
            let mut recorder = Recorder { error: Some(number), ..Recorder::default() };
            let argv = ["iMessage", "+12025550100", guid, "text", "x"];
            assert_eq!(run_with(SEND, &argv, &mut recorder).unwrap_err().number, number);
            let sends =
                recorder.events.iter().filter(|e| e.starts_with("send") || e.starts_with("chat"));
            assert!(sends.count() <= 1, "{:?}", recorder.events);
        }
    }
}

#[test]
fn errors_are_caught_where_a_script_says_so() {
    for (script, result) in [
        ("try\nreturn nothing\non error number n\nreturn \"no \" & n\nend try", "no -2753"),
        ("try\nreturn nothing\non error\nreturn \"no\"\nend try", "no"),
        ("try\nreturn 1\non error number n\nreturn 2\nend try", "1"),
        ("try\nreturn nothing\nend try\nreturn 3", "3"),
        ("return \"a\" & 1 & \"b\"", "a1b"),
        ("return \"a\" as text & \"b\"", "ab"),
    ] {
        assert_eq!(played(script, &[]).1.as_deref(), Some(result), "{script}");
    }
}

#[test]
fn whether_messages_runs_is_asked_without_an_event_that_would_start_it() {
    let mut recorder = Recorder { quit: true, ..Recorder::default() };
    let result = run_with(ACCOUNT, &["iMessage"], &mut recorder).unwrap();
    assert_eq!(
        (recorder.events, result.as_deref()),
        (vec!["running".to_owned()], Some("not running"))
    );
    // A refusal comes only with the question itself.
    let mut denied = Recorder { error: Some(-1743), ..Recorder::default() };
    assert_eq!(run_with(ACCOUNT, &["SMS"], &mut denied).unwrap_err().number, -1743);
    let script =
        "if application \"Messages\" is running then\nreturn \"yes\"\nend if\nreturn \"no\"";
    assert_eq!(played(script, &[]).1.as_deref(), Some("yes"));
    for script in [
        "if application \"Mail\" is running then\nend if",
        "if application is running then\nend if",
        "if application \"Messages\" running then\nend if",
        "if application \"Messages\" is not then\nend if",
    ] {
        assert!(failed(script, &[]).1, "{script}");
    }
}

#[test]
fn a_script_that_is_cut_off_never_sends() {
    for script in [SEND, PROBE, ACCOUNT] {
        let whole = script.trim_end();
        // The end of the handler may be left at `end`; before that nothing may run.
        let handler_ends = whole.len() - " run".len();
        for (cut, _) in script.char_indices().filter(|(cut, _)| *cut < handler_ends) {
            let mut recorder = Recorder::default();
            let part = &script[..cut];
            let argv = ["iMessage", "+1", "", "text", "x"];
            let result = run_with(part, &argv, &mut recorder);
            assert_eq!(recorder.events, Vec::<String>::new(), "{part}");
            if part.contains("on run") {
                assert_eq!(result.expect_err(part).number, -2741);
            }
        }
    }
}

#[test]
fn nothing_is_a_script_too() {
    for script in ["", "\n\n", "-- only\n# comments", "(* one (* in *) another *)"] {
        assert_eq!(played(script, &[]), (vec![], None), "{script}");
    }
}

#[test]
fn scripts_have_values() {
    for (script, result) in [
        ("return \"a\"", Some("a")),
        ("\"a\\\"\\\\b\"", Some("a\"\\b")),
        ("return", None),
        ("on run argv\nreturn item 2 of argv\nend run", Some("two")),
        ("on run\nreturn 7 as text as text as string\nend run", Some("7")),
        ("set X to \"v\"\nreturn x", Some("v")),
        ("set x to 1\nif x is 1 then\nreturn \"y\"\nend if\nreturn \"n\"", Some("y")),
        ("set x to \"IMESSAGE\"\nif x = \"iMessage\" then\nreturn 1\nend if", Some("1")),
        ("set x to 1\nif x is not 1 then\nreturn 1\nelse\nreturn 2\nend if", Some("2")),
        ("tell application \"Messages\" to count accounts", Some("3")),
        ("tell application \"messages\"\nreturn count of accounts\nend tell", Some("3")),
        ("return ¬\n \"continued\"", Some("continued")),
        ("return (((\"deep\")))", Some("deep")),
        ("return 1 -- comment\n\n", Some("1")),
    ] {
        assert_eq!(played(script, &["one", "two"]).1.as_deref(), result, "{script}");
    }
}

#[test]
fn what_is_logged_is_told() {
    assert_eq!(played("log \"here\"", &[]).0, ["log here"]);
}

#[test]
fn what_is_not_known_is_a_syntax_error() {
    for script in [
        "do shell script \"rm -rf /\"",
        "tell application \"Finder\"\nend tell",
        "tell application \"Messages\"",
        "send \"x\" to chat id \"y\"",
        "tell application \"Messages\" to send \"x\" to \"y\"",
        "tell application \"Messages\" to send \"x\" to participant \"y\"",
        "count accounts",
        "set item to 1",
        "set x 1",
        "set x to",
        "if 1 is 1 then\nend",
        "if 1 then\nend if\nend if",
        "if 1 is 1\nend if",
        "on run argv\nend run\nreturn 1",
        "on open x\nend open",
        "return \"unterminated",
        "return \"bad \\q escape\"",
        "(* unterminated",
        "return (1",
        "return 1 2",
        "2nd",
        "99999999999999999999999",
        "with timeout of 5 seconds\nreturn 1\nend tell",
        "return “typographic”",
        "return 1 ¬ 2",
        "end run",
        "repeat\nend repeat",
        "\u{0}",
    ] {
        // `if … end` without `if` is complete in AppleScript, and here.
        if script == "if 1 is 1 then\nend" {
            played(script, &[]);
            continue;
        }
        assert_eq!(failed(script, &[]), (-2741, true), "{script}");
    }
}

#[test]
fn what_cannot_be_done_is_an_execution_error() {
    let told = |body: &str| format!("tell application \"Messages\"\n{body}\nend tell");
    for (script, number) in [
        ("return nothing".to_owned(), -2753),
        ("on run argv\nreturn item 3 of argv\nend run".to_owned(), -1728),
        ("on run argv\nreturn item 0 of argv\nend run".to_owned(), -1728),
        ("on run argv\nreturn argv as text\nend run".to_owned(), -1700),
        ("return item 1 of 5".to_owned(), -1728),
        (told("send \"x\" to participant \"y\" of \"z\""), -1700),
        (told("return connection status of 5"), -1728),
        (told("return 1st account whose service type = Pigeon"), -2753),
        ("with timeout of \"x\" seconds\nend timeout".to_owned(), -1700),
    ] {
        assert_eq!(failed(&script, &["one", "two"]), (number, false), "{script}");
    }
}

#[test]
fn an_error_is_printed_as_osascript_prints_it() {
    let mut recorder = Recorder { error: Some(-1728), ..Recorder::default() };
    let script = "tell application \"Messages\" to send \"ü\" to chat id \"y\"";
    let error = run_with(script, &[], &mut recorder).expect_err(script);
    assert_eq!(
        error.to_string(),
        "31:54: execution error: Messages got an error: Can’t get object. (-1728)"
    );
    let error = run_with("tell me", &[], &mut recorder).expect_err("syntax");
    assert_eq!(
        error.to_string(),
        "5:7: syntax error: Expected “application” but found “me”. (-2741)"
    );
}

#[test]
fn no_nesting_exhausts_the_stack() {
    for script in [
        "(".repeat(100_000),
        "if 1 is 1 then\n".repeat(100_000),
        "item 1 of ".repeat(100_000),
        "tell application \"Messages\" to ".repeat(100_000),
        format!("return 1{}", " as text".repeat(100_000)),
        "(*".repeat(100_000),
        "with timeout of 1 seconds\n".repeat(100_000),
        "try\n".repeat(100_000),
        format!("return 1{}", " & 1".repeat(100_000)),
        "POSIX file ".repeat(100_000),
    ] {
        // Refused before it runs, or so flat that it is nothing.
        if let Err(error) = run_with(&script, &[], &mut Recorder::default()) {
            assert!(error.syntax, "{error}");
        }
    }
}

proptest! {
    #[test]
    fn no_text_panics(script in "\\PC*", argv in prop::collection::vec("\\PC*", 0..3)) {
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        run_with(&script, &argv, &mut Recorder::default()).map_or_else(drop, drop);
    }

    #[test]
    fn no_heap_of_words_panics(words in prop::collection::vec(prop::sample::select(vec![
        "on", "run", "argv", "end", "\n", "set", "to", "x", "tell", "application", "\"Messages\"",
        "if", "is", "not", "then", "else", "item", "1", "of", "1st", "account", "whose", "service",
        "type", "=", "iMessage", "send", "participant", "chat", "id", "return", "(", ")", "as",
        "text", "with", "timeout", "seconds", "count", "accounts", "connection", "status", "log",
        "\"", "--", "(*", "*)", "¬", "≠", "\\", "try", "error", "number", "&", "POSIX", "file", "alias",
    ]), 0..60)) {
        run_with(&words.join(" "), &["a", "b"], &mut Recorder::default()).map_or_else(drop, drop);
    }

    #[test]
    fn a_text_arrives_as_it_is(text in "\\PC*") {
        let (events, _) = played(SEND, &["SMS", "", "g", "text", &text]);
        prop_assert_eq!(events, vec!["known g".to_owned(), format!("chat g {text}")]);
    }
}

#[test]
fn a_keeper_of_messages_is_understood() {
    let script = "on run argv\n\tif application \"Messages\" is not running then\n\t\treturn \"not running\"\n\tend if\n\
                  \twith timeout of 5 seconds\n\t\ttell application \"Messages\"\n\t\t\tquit\n\t\t\tclose windows\n\
                  \t\tend tell\n\tend timeout\nend run\n";
    let mut recorder = Recorder::default();
    assert_eq!(run_with(script, &[], &mut recorder), Ok(None));
    assert_eq!(recorder.events, ["running", "quit", "close windows"]);
    // Outside of its `tell` both are names of nothing.
    assert!(run_with("quit\n", &[], &mut Recorder::default()).is_err());
}
