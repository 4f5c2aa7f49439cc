//! The property lists that scripts/install makes, against what launchd.plist(5) knows and what this agent needs.

#![cfg(test)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use e2e::program;
use plist::{Dictionary, Value};

/// What a key of a job may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Flag,
    Number,
    Texts,
    /// Names and texts.
    Words,
    /// A dictionary that has a shape of its own.
    Table,
}

/// The keys of launchd.plist(5) that a job of ours may use. One that is not here is a typing mistake, which launchd would
/// pass over in silence, or one that we have a reason not to use: `LowPriorityIO`, `Nice`, `SessionCreate`, `NetworkState`.
const KEYS: [(&str, Kind); 25] = [
    ("AssociatedBundleIdentifiers", Kind::Texts),
    ("EnvironmentVariables", Kind::Words),
    ("ExitTimeOut", Kind::Number),
    ("GroupName", Kind::Text),
    ("HardResourceLimits", Kind::Table),
    ("KeepAlive", Kind::Flag),
    ("Label", Kind::Text),
    ("LegacyTimers", Kind::Flag),
    ("LimitLoadToSessionType", Kind::Text),
    ("MachServices", Kind::Table),
    ("ProcessType", Kind::Text),
    ("Program", Kind::Text),
    ("ProgramArguments", Kind::Texts),
    ("RunAtLoad", Kind::Flag),
    ("Sockets", Kind::Table),
    ("SoftResourceLimits", Kind::Table),
    ("StandardErrorPath", Kind::Text),
    ("StandardInPath", Kind::Text),
    ("StandardOutPath", Kind::Text),
    ("StartCalendarInterval", Kind::Table),
    ("ThrottleInterval", Kind::Number),
    ("Umask", Kind::Text),
    ("UserName", Kind::Text),
    ("WatchPaths", Kind::Texts),
    ("WorkingDirectory", Kind::Text),
];

/// Folders of a home that macOS guards: a job whose plist names one may be kept from running.
const GUARDED: [&str; 5] =
    ["/Documents", "/Desktop", "/Downloads", "/Library/Messages", "/Library/Mobile Documents"];

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the type may grow, and what a job may hold does not"
)]
fn kind(value: &Value) -> Option<Kind> {
    let texts = |value: &Value| value.as_string().is_some();
    Some(match value {
        Value::String(_) => Kind::Text,
        Value::Boolean(_) => Kind::Flag,
        Value::Integer(_) => Kind::Number,
        Value::Array(list) if list.iter().all(texts) => Kind::Texts,
        Value::Dictionary(table) if table.values().all(texts) => Kind::Words,
        Value::Dictionary(_) => Kind::Table,
        _ => return None,
    })
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the type may grow; what is no text has none")]
fn texts(value: &Value) -> Vec<String> {
    match value {
        Value::String(text) => vec![text.clone()],
        Value::Array(list) => list.iter().flat_map(texts).collect(),
        Value::Dictionary(table) => table.values().flat_map(texts).collect(),
        _ => Vec::new(),
    }
}

/// What is wrong with a job, in a sentence each.
fn faults(job: &Dictionary) -> Vec<String> {
    let known: BTreeMap<&str, Kind> = KEYS.into();
    let mut faults = Vec::new();
    let mut must = |holds: bool, sentence: String| {
        if !holds {
            faults.push(sentence);
        }
    };
    for (key, value) in job {
        let wanted = known.get(key.as_str());
        must(wanted.is_some(), format!("{key} is no key of ours"));
        let fits = match wanted {
            Some(Kind::Table) => matches!(value, Value::Dictionary(_)),
            wanted => wanted.copied() == kind(value),
        };
        must(fits, format!("{key} must be {wanted:?}"));
    }
    let text = |key: &str| job.get(key).and_then(Value::as_string).unwrap_or_default();
    let number = |key: &str| job.get(key).and_then(Value::as_signed_integer);
    let flag = |key: &str| job.get(key).and_then(Value::as_boolean);
    // With conditions it stays ended after whatever ends it politely.
    must(flag("KeepAlive") == Some(true), "KeepAlive must be true, without conditions".to_owned());
    must(number("ThrottleInterval") == Some(5), "ThrottleInterval must be 5".to_owned());
    // The system's own is 5 s; the supervisor needs up to 20. 0 would be for ever.
    must(number("ExitTimeOut").is_some_and(|s| (21..=30).contains(&s)), "ExitTimeOut".to_owned());
    let mask = text("Umask");
    must(mask.starts_with('0') && mask.ends_with("77"), "Umask must be octal text".to_owned());
    let label = text("Label");
    must(label.starts_with("org.switchboard."), format!("Label {label}"));
    let arguments = job.get("ProgramArguments").map(texts).unwrap_or_default();
    let same = arguments.first().map(String::as_str) == Some(text("Program"));
    must(same, "ProgramArguments begin with Program".to_owned());
    for path in ["Program", "StandardOutPath", "StandardErrorPath", "WorkingDirectory"] {
        let absolute = job.get(path).is_none() || text(path).starts_with('/');
        must(absolute, format!("{path} must be absolute: launchd expands nothing"));
    }
    for word in job.values().flat_map(texts) {
        let guarded = GUARDED.iter().find(|folder| word.contains(*folder));
        must(guarded.is_none(), format!("{word} lies in a guarded folder"));
        must(!word.contains('@') && !word.contains('~'), format!("{word} is not filled in"));
    }
    let path = job.get("EnvironmentVariables").and_then(Value::as_dictionary);
    let path = path.and_then(|all| all.get("PATH")).and_then(Value::as_string);
    must(path == Some("/usr/bin:/bin:/usr/sbin:/sbin"), "PATH must be launchd's own".to_owned());
    if job.contains_key("LimitLoadToSessionType") {
        must(
            text("LimitLoadToSessionType") == "Aqua",
            "an agent of the screen's session".to_owned(),
        );
        // Timers are not put off only where the process type is Interactive.
        must(text("ProcessType") == "Interactive", "ProcessType must be Interactive".to_owned());
        must(flag("LegacyTimers") == Some(true), "LegacyTimers must be true".to_owned());
        must(flag("RunAtLoad") == Some(true), "RunAtLoad must be true".to_owned());
        for key in ["UserName", "GroupName"] {
            must(!job.contains_key(key), format!("{key} is ignored in an agent"));
        }
    }
    faults
}

/// Renders every template for a home of this name.
fn render(home: &str) -> (tempfile::TempDir, Vec<PathBuf>) {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = format!("{}:/usr/bin:/bin", repository.join("tests/standins/mac").display());
    let state = dir.path().to_str().unwrap();
    let env = [("PATH", path.as_str()), ("HOME", home), ("STANDIN", state)];
    let out = dir.path().join("out");
    let args = ["--render", out.to_str().unwrap()];
    let ended = program::foreign(&repository.join("scripts/install"), &args, &env).unwrap();
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    let entries = std::fs::read_dir(&out).unwrap();
    (dir, entries.map(|entry| entry.unwrap().path()).collect())
}

fn read(file: &Path) -> Dictionary {
    Value::from_file(file).unwrap().into_dictionary().unwrap()
}

fn agent(home: &str) -> Dictionary {
    let (_dir, files) = render(home);
    let file = files.iter().find(|file| file.ends_with("org.switchboard.supervisor.plist"));
    read(file.unwrap())
}

#[test]
fn every_template_becomes_a_job_that_launchd_understands_and_we_want() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let templates = std::fs::read_dir(repository.join("launchd")).unwrap();
    let templates = templates.filter(|entry| {
        entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "plist")
    });
    let (_dir, files) = render("/Users/shelf");
    assert_eq!(files.len(), templates.count());
    for file in files {
        let job = read(&file);
        assert_eq!(faults(&job), Vec::<String>::new(), "{}", file.display());
        let label = job["Label"].as_string().unwrap();
        assert_eq!(
            file.file_stem().unwrap().to_str(),
            Some(label),
            "the file has the label's name"
        );
    }
}

#[test]
fn the_agents_places_are_those_of_its_user() {
    let job = agent("/Users/shelf");
    let arguments = texts(&job["ProgramArguments"]);
    assert_eq!(
        arguments[..4],
        [
            "/Applications/Switchboard.app/Contents/MacOS/switchboard-supervisor",
            "run",
            "--config",
            "/Users/shelf/Library/Application Support/Switchboard/supervisor.toml",
        ]
    );
    for path in ["StandardOutPath", "StandardErrorPath"] {
        let path = job[path].as_string().unwrap();
        assert!(path.starts_with("/Users/shelf/Library/Logs/Switchboard/"), "{path}");
    }
}

#[test]
fn any_home_folder_is_written_as_xml_writes_it() {
    for home in
        ["/Users/a & b", "/Users/<x>", "/Users/a|b\\c", "/Users/Ünal \"O'Neil\"", "/Users/&amp;"]
    {
        let arguments = texts(&agent(home)["ProgramArguments"]);
        let expected = format!("{home}/Library/Application Support/Switchboard/supervisor.toml");
        assert_eq!(arguments[3], expected);
    }
}

/// Another reader, so that no kindness of one hides a mistake.
#[test]
fn pythons_reader_finds_the_same() {
    let script = "import json, plistlib, sys\n\
                  print(json.dumps(plistlib.load(open(sys.argv[1], 'rb')), sort_keys=True))";
    let (_dir, files) = render("/Users/a & b");
    for file in files {
        let env = [("PATH", std::env::var("PATH").unwrap())];
        let env: Vec<(&str, &str)> =
            env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let args = ["-c", script, file.to_str().unwrap()];
        let ended = program::foreign(Path::new("python3"), &args, &env);
        let ended = ended.expect("scripts/needs asks for python3");
        assert_eq!(ended.code, Some(0), "{}", ended.err);
        let found: serde_json::Value = serde_json::from_str(&ended.out).unwrap();
        let ours = serde_json::to_value(read(&file)).unwrap();
        assert_eq!(found, ours, "{}", file.display());
    }
}

#[test]
fn each_rule_finds_what_breaks_it() {
    let good = agent("/Users/shelf");
    let with = |key: &str, value: Value| {
        let mut job = good.clone();
        job.insert(key.to_owned(), value);
        faults(&job)
    };
    let text = |text: &str| Value::String(text.to_owned());
    let conditions =
        Value::Dictionary(Dictionary::from_iter([("SuccessfulExit", Value::from(false))]));
    for (key, value) in [
        ("KeepAlive", conditions),
        ("KeepAlive", Value::from(false)),
        ("ThrottleInterval", Value::from(1)),
        ("ThrottleInterval", text("5")),
        ("ExitTimeOut", Value::from(0)),
        ("ExitTimeOut", Value::from(5)),
        ("Umask", Value::from(77)),
        ("Umask", text("77")),
        ("ProcessType", text("Background")),
        ("LegacyTimers", Value::from(false)),
        ("LimitLoadToSessionType", text("Background")),
        ("RunAtLoad", Value::from(false)),
        ("UserName", text("shelf")),
        ("Keepalive", Value::from(true)),
        ("LowPriorityIO", Value::from(true)),
        ("Program", text("/usr/local/bin/other")),
        ("StandardErrorPath", text("~/Library/Logs/x")),
        ("StandardErrorPath", text("/Users/shelf/Documents/x")),
        ("WorkingDirectory", text("/Users/shelf/Library/Messages")),
        ("StandardOutPath", text("/Users/shelf/@LOG@")),
        ("Label", text("com.example.x")),
        ("EnvironmentVariables", Value::Dictionary(Dictionary::new())),
    ] {
        assert!(!with(key, value.clone()).is_empty(), "{key} = {value:?}");
    }
    for key in ["KeepAlive", "ThrottleInterval", "ExitTimeOut", "ProcessType", "LegacyTimers"] {
        let mut job = good.clone();
        job.remove(key);
        assert!(!faults(&job).is_empty(), "without {key}");
    }
}

#[test]
fn the_bundle_asks_for_apple_events_and_keeps_its_identifier() {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("launchd/bundle");
    let info = read(&bundle.join("Info.plist"));
    assert_eq!(info["CFBundleIdentifier"].as_string(), Some("org.switchboard"));
    assert_eq!(info["CFBundleExecutable"].as_string(), Some("switchboard-supervisor"));
    assert_eq!(info["LSUIElement"].as_boolean(), Some(true));
    assert!(
        info["NSAppleEventsUsageDescription"].as_string().is_some_and(|text| text.ends_with('.'))
    );
    let entitlements = read(&bundle.join("entitlements.plist"));
    let events = "com.apple.security.automation.apple-events";
    assert_eq!(entitlements[events].as_boolean(), Some(true));
    // The agent's record in System Settings belongs to this bundle.
    let associated = texts(&agent("/Users/shelf")["AssociatedBundleIdentifiers"]);
    assert_eq!(associated, ["org.switchboard"]);
}
