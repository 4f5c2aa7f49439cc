use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use protocol::pipe::{Heartbeat, NotReady};

use super::*;

#[expect(clippy::unnecessary_wraps, reason = "it stands among those that are not")]
fn printed(code: i32, text: &str, complaint: &str) -> Result<Printed, RunError> {
    Ok(Printed {
        status: ExitStatus::from_raw(code << 8),
        text: text.to_owned(),
        complaint: (!complaint.is_empty()).then(|| complaint.to_owned()),
    })
}

#[test]
fn what_osascript_says_tells_a_silent_messages_from_a_forbidden_one() {
    let cases = [
        (printed(0, "3\n", ""), Answer::Fine),
        (printed(0, "not running\n", ""), Answer::NotRunning),
        (printed(1, "", "-:1:2: execution error: Messages got an error: … (-1728)"), Answer::Fine),
        (printed(1, "", "execution error: Anwendung läuft nicht. (-600)"), Answer::NotRunning),
        (printed(1, "", "execution error: Connection is invalid. (-609)"), Answer::Lost),
        (printed(1, "", "execution error: AppleEvent timed out. (-1712)"), Answer::Hung),
        (printed(1, "", "execution error: Not authorized … (-1743)"), Answer::Denied),
        (printed(1, "", "execution error: … (-1744)"), Answer::Denied),
        (printed(1, "", "dyld: something is missing"), Answer::Unasked),
        (printed(1, "", ""), Answer::Unasked),
        (Err(RunError::Late { program: "/o".into(), within: OSASCRIPT_WITHIN }), Answer::Withheld),
        (Err(RunError::Odd { program: "/o".into(), what: "x".to_owned() }), Answer::Unasked),
    ];
    for (done, wanted) in cases {
        assert_eq!(answer(&done), wanted, "{done:?}");
    }
}

#[test]
fn nobody_found_is_told_from_nobody_looked() {
    let cases = [
        (printed(0, "4711\n", ""), Some(vec!["4711"])),
        (printed(0, "4711\n4712\n", ""), Some(vec!["4711", "4712"])),
        (printed(1, "", ""), Some(vec![])),
        (printed(2, "", "usage: pgrep"), None),
        // Never everybody, whatever is printed.
        (printed(0, "-1\n0 1\n", ""), None),
        (printed(0, "", ""), None),
        (Err(RunError::Late { program: "/p".into(), within: TOOL_WITHIN }), None),
    ];
    for (done, wanted) in cases {
        let wanted = wanted.map(|pids| pids.into_iter().map(str::to_owned).collect::<Vec<_>>());
        assert_eq!(pids(&done), wanted, "{done:?}");
    }
}

fn report(state: PhoneState, heartbeat: Option<Heartbeat>, reasons: &[Reason]) -> Report {
    Report {
        state,
        not_ready: reasons
            .iter()
            .map(|reason| NotReady { reason: *reason, remedy: String::new() })
            .collect(),
        waits_for: None,
        bridge: None,
        heartbeat,
        restarts: 0,
        tries: 0,
        last_exit: None,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "a report may have none")]
fn beat(paused: bool, osascript_age_ms: Option<u64>) -> Option<Heartbeat> {
    Some(Heartbeat { paused, osascript_age_ms, ..Heartbeat::default() })
}

#[test]
fn a_bridge_is_still_when_it_has_said_so_and_nothing_of_it_runs() {
    use PhoneState::{Backoff, Draining, NotReady, Parked, Ready, Starting, Stopped};
    let deadline = Duration::from_secs(65);
    // State, heartbeat → quiet, still.
    let cases = [
        (Ready, beat(false, None), true, false),
        (Ready, beat(false, Some(5)), false, false),
        (NotReady, beat(true, Some(5)), false, false),
        (NotReady, beat(true, None), true, true),
        // Past its own deadline: nobody waits for it any more.
        (NotReady, beat(true, Some(65_001)), true, true),
        (Ready, beat(false, Some(65_001)), true, false),
        (Ready, None, false, false),
        (Starting, None, false, false),
        (Draining, None, false, false),
        (Backoff, None, false, false),
        (Parked, None, true, true),
        (Stopped, None, true, true),
    ];
    for (state, heartbeat, quiet, still) in cases {
        let view = of_phone(&report(state, heartbeat.clone(), &[]), deadline);
        assert_eq!((view.quiet, view.still), (quiet, still), "{state:?} {heartbeat:?}");
        assert!(!view.suspected);
    }
    for (age, stuck) in [(None, false), (Some(9_999), false), (Some(10_000), true)] {
        assert_eq!(
            of_phone(&report(Ready, beat(false, age), &[]), deadline).stuck,
            stuck,
            "{age:?}"
        );
    }
    let waits =
        Report { waits_for: Some(crate::restart::Cause::Permission), ..report(Backoff, None, &[]) };
    assert!(of_phone(&waits, deadline).still);
    for (reason, suspected) in [
        (Reason::MessagesTimeout, true),
        (Reason::MessagesNotRunning, true),
        (Reason::MessagesConnectionLost, true),
        (Reason::MessagesRestarting, false),
        (Reason::AccountOffline, false),
        (Reason::DiskLow, false),
    ] {
        let view = of_phone(&report(NotReady, beat(false, None), &[reason]), deadline);
        assert_eq!(view.suspected, suspected, "{reason}");
    }
}

#[test]
fn a_bridges_own_deadline_counts() {
    let table: toml::Table = toml::from_str("osascript_deadline_ms = 1500").unwrap();
    assert_eq!(deadline(&table), Duration::from_millis(6_500));
    assert_eq!(deadline(&toml::Table::new()), BRIDGE_DEADLINE + KILLED_WITHIN);
}

#[test]
fn what_an_earlier_life_has_written_down_is_read_without_what_is_old_or_odd() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(RESTARTS_FILE);
    let now = UnixMs(1_795_000_000_000);
    assert_eq!(load(&file, now), []);
    let day = 24 * 60 * 60 * 1_000;
    let text = format!("{}\nodd\n{}\n\n{}", now.0 - 1_000, now.0 - day, now.0 - 5_000);
    std::fs::write(&file, text).unwrap();
    assert_eq!(load(&file, now), [UnixMs(now.0 - 5_000), UnixMs(now.0 - 1_000)]);
    assert_eq!(age(UnixMs(now.0 + 9), now), Duration::ZERO);
}
