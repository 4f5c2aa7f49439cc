//! The launchd templates are well-formed and say what the programs' own periods rely on.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails loudly")]

use std::collections::BTreeMap;

const SUPERVISOR: &str = include_str!("../../../launchd/org.switchboard.supervisor.plist");
const HELPER: &str = include_str!("../../../launchd/org.switchboard.helper.plist");

/// A property list, as far as the templates need it.
#[derive(Debug, PartialEq)]
enum Plist {
    Text(String),
    Number(u64),
    Flag(bool),
    List(Vec<Plist>),
    Table(BTreeMap<String, Plist>),
}

/// What is left to read: tags and texts between them, comments taken out.
struct Tokens<'a>(&'a str);

impl<'a> Tokens<'a> {
    /// The next tag, without its brackets.
    fn tag(&mut self) -> &'a str {
        self.0 = self.0.trim_start();
        let rest = self.0.strip_prefix('<').unwrap_or_else(|| panic!("no tag at {:.40}", self.0));
        let (tag, rest) = rest.split_once('>').unwrap();
        self.0 = rest;
        tag
    }

    fn text(&mut self, end: &str) -> String {
        let (text, rest) = self.0.split_once('<').unwrap();
        self.0 = rest.strip_prefix(end).unwrap_or_else(|| panic!("no <{end} after {text}"));
        assert!(!text.contains('&') || text.contains(';'), "{text}");
        text.to_owned()
    }

    fn value(&mut self, tag: &str) -> Plist {
        match tag {
            "string" => Plist::Text(self.text("/string>")),
            "integer" => Plist::Number(self.text("/integer>").parse().unwrap()),
            "true/" => Plist::Flag(true),
            "false/" => Plist::Flag(false),
            "array" => {
                let mut list = Vec::new();
                loop {
                    match self.tag() {
                        "/array" => return Plist::List(list),
                        tag => list.push(self.value(tag)),
                    }
                }
            }
            "dict" => {
                let mut table = BTreeMap::new();
                loop {
                    match self.tag() {
                        "/dict" => return Plist::Table(table),
                        "key" => {
                            let key = self.text("/key>");
                            let tag = self.tag();
                            let value = self.value(tag);
                            assert!(table.insert(key.clone(), value).is_none(), "{key} twice");
                        }
                        other => panic!("<{other}> in a dict"),
                    }
                }
            }
            other => panic!("<{other}>"),
        }
    }
}

fn without_comments(mut text: &str) -> String {
    let mut kept = String::new();
    while let Some((before, comment)) = text.split_once("<!--") {
        kept.push_str(before);
        let (inside, after) = comment.split_once("-->").unwrap();
        assert!(!inside.contains("--"), "XML forbids two hyphens in a comment: {inside}");
        text = after;
    }
    kept.push_str(text);
    kept
}

fn template(text: &str) -> BTreeMap<String, Plist> {
    let text = without_comments(text);
    let mut tokens = Tokens(&text);
    assert!(tokens.tag().starts_with("?xml"));
    assert!(tokens.tag().starts_with("!DOCTYPE plist"));
    assert_eq!(tokens.tag(), "plist version=\"1.0\"");
    let tag = tokens.tag();
    let Plist::Table(table) = tokens.value(tag) else { panic!("not a dict") };
    assert_eq!(tokens.tag(), "/plist");
    assert!(tokens.0.trim().is_empty());
    table
}

#[test]
fn the_agent_runs_at_the_screen_and_for_ever() {
    let plist = template(SUPERVISOR);
    let text = |text: &str| Plist::Text(text.to_owned());
    let table = [
        ("LimitLoadToSessionType", text("Aqua")),
        ("RunAtLoad", Plist::Flag(true)),
        ("KeepAlive", Plist::Flag(true)),
        ("ProcessType", text("Interactive")),
        ("LegacyTimers", Plist::Flag(true)),
        ("ThrottleInterval", Plist::Number(5)),
        ("Umask", text("0077")),
        ("Program", text("@PROGRAM@")),
    ];
    for (key, wanted) in table {
        assert_eq!(plist.get(key), Some(&wanted), "{key}");
    }
    // Our own stop takes 20 s at the most; launchd must not be quicker.
    assert!(matches!(plist.get("ExitTimeOut"), Some(Plist::Number(25))));
}

#[test]
fn the_arguments_start_with_the_program_and_no_path_has_a_tilde() {
    let plist = template(SUPERVISOR);
    let Some(Plist::List(arguments)) = plist.get("ProgramArguments") else {
        panic!("no arguments")
    };
    assert_eq!(arguments.first(), plist.get("Program"));
    assert!(!without_comments(SUPERVISOR).contains('~'));
}

#[test]
fn the_helper_is_a_daemon_that_is_started_with_arguments_that_it_knows() {
    let plist = template(HELPER);
    let text = |text: &str| Plist::Text(text.to_owned());
    let table = [
        ("Label", text("org.switchboard.helper")),
        ("RunAtLoad", Plist::Flag(true)),
        ("KeepAlive", Plist::Flag(true)),
        ("ProcessType", text("Interactive")),
        ("Umask", text("0077")),
        ("Program", text("@HELPER@")),
        // An order that is half-way takes 20 s at the most.
        ("ExitTimeOut", Plist::Number(25)),
    ];
    for (key, wanted) in table {
        assert_eq!(plist.get(key), Some(&wanted), "{key}");
    }
    // A daemon has no session, and these keys would give it one, or another user.
    for key in ["LimitLoadToSessionType", "UserName", "SessionCreate"] {
        assert_eq!(plist.get(key), None, "{key}");
    }
    let Some(Plist::List(arguments)) = plist.get("ProgramArguments") else {
        panic!("no arguments")
    };
    let arguments: Vec<&str> = arguments
        .iter()
        .map(|argument| {
            let Plist::Text(text) = argument else { panic!("{argument:?}") };
            text.as_str()
        })
        .collect();
    assert_eq!(arguments[0], "@HELPER@");
    // The program takes them: it gets as far as the socket, in whose place something else stands.
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    std::fs::write(&socket, "").unwrap();
    let socket = socket.display().to_string();
    let arguments = arguments[1..].iter().map(|argument| match *argument {
        "@UID@" => "501",
        "/var/run/org.switchboard.helper.sock" => &socket,
        other => other,
    });
    #[expect(clippy::disallowed_methods, reason = "a test of the program itself")]
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_switchboard-helper"))
        .args(arguments)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("something else is there"), "{said}");
}
