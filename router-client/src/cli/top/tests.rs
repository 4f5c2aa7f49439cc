//! Frames, drawn where nobody sees them.

use std::time::Duration;

use protocol::UnixMs;
use protocol::api::{Host, Phone};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyModifiers};
use ratatui::style::Color;
use serde_json::json;

use super::state::{Held, Mode, Next, Snapshot, Sort, State};
use super::view::{View, text_of};

/// Noon.
const NOW: UnixMs = UnixMs(1_795_348_800_000);

fn hosts() -> Vec<Host> {
    let host = |id: &str, name: &str, online: bool, seen: i64| {
        serde_json::from_value(json!({
            "id": format!("hst_{id:0>25}g"), "name": name, "online": online,
            "last_seen_at": NOW.plus_ms(-seen), "version": "0.1.0", "phones": [], "created_at": NOW,
        }))
        .unwrap()
    };
    vec![host("0", "shelf-a", true, 2_000), host("1", "shelf-b\u{1b}[2J", false, 700_000)]
}

/// Phones of the first host, by number and state; the second one stands by for them and is down.
fn phones(all: &[(&str, &str, u64)]) -> Vec<Phone> {
    let one = |(n, (number, state, today)): (usize, &(&str, &str, u64))| {
        let hosts = hosts();
        let standby = json!({
            "host": hosts[1].id, "active": false, "online": false, "state": "ready", "reasons": [],
        });
        serde_json::from_value(json!({
            "id": format!("pho_{n:025}g"), "number": number, "host": hosts[0].id,
            "hosts": if n == 0 { vec![standby] } else { vec![] }, "online": true, "state": state,
            "reasons": if *state == "not_ready" { vec!["database_permission"] } else { vec![] },
            "channels": ["imessage"], "epoch": 4, "lease_until": NOW.plus_ms(12_000),
            "messages_today": today, "in_flight": 1,
        }))
        .unwrap()
    };
    all.iter().enumerate().map(one).collect()
}

const SHELF: &[(&str, &str, u64)] = &[
    ("+12025550101", "ready", 10),
    ("+12025550102", "ready", 30),
    ("+12025550103", "not_ready", 20),
    ("+12025550104", "parked", 0),
];

fn state() -> State {
    let mut state = State::new("http://router".to_owned(), Duration::from_secs(1), String::new());
    let held = Held::of([protocol::Reason::NoPhoneAvailable].into_iter(), true);
    let first = Snapshot { hosts: hosts(), phones: phones(SHELF), held: Some(held) };
    let mut later = Snapshot { held: None, ..first.clone() };
    later.phones[1].messages_today += 6;
    state.came(Ok(first), NOW.plus_ms(-30_000));
    state.came(Ok(later), NOW);
    state
}

fn frame(state: &State, width: u16, height: u16) -> (String, ratatui::buffer::Buffer) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let drawn = terminal.draw(|frame| {
        let area = frame.area();
        frame.render_widget(View { state, keys: true }, area);
    });
    let buffer = drawn.unwrap().buffer.clone();
    (text_of(&buffer), buffer)
}

#[test]
fn a_frame_of_the_smallest_terminal_says_what_is_wrong_first() {
    let (text, _) = frame(&state(), 80, 24);
    let expected = "\
switchboard  http://router  2026-11-22 12:00:00Z
hosts 1/2 up   phones 2/4 able   today 66   12.0/min   open 4   held 1+ (no_phon
!! host shelf-b[2J is down, last heard of 11m ago
!! +12025550103 on shelf-a: not_ready: database_permission
!! +12025550104 on shelf-a: parked
 ! +12025550101 has nobody ready to stand by

HOST                                     LINK    SEEN  PHONES STBY  VERSION
shelf-b[2J                               DOWN    11m   0      0     0.1.0
shelf-a                                  up      2s    0      0     0.1.0
by alarms
PHONE            STATE                 HOST        STBY LEASE /MIN   TODAY  OPEN
+12025550103     not_ready: database_p shelf-a     -    12s   0.0    20     1
+12025550104     parked                shelf-a     -    12s   0.0    0      1
+12025550101     ready                 shelf-a     0/1  12s   0.0    10     1
+12025550102     ready                 shelf-a     -    12s   12.0   36     1";
    let body: Vec<&str> = text.lines().take_while(|line| !line.starts_with("q end")).collect();
    assert_eq!(body.join("\n").trim_end(), expected, "{text}");
    assert!(text.lines().count() == 24 && text.ends_with("? help"), "{text}");
}

#[test]
fn a_tunnel_that_is_not_up_is_told_with_its_age() {
    let mut hosts = hosts();
    let tunnel = |state: &str| json!({"state": state, "why": "token_missing", "since": NOW.plus_ms(-180_000), "restarts": 2});
    hosts[0].tunnel = serde_json::from_value(tunnel("waiting")).unwrap();
    hosts[1].tunnel = serde_json::from_value(tunnel("ready")).unwrap();
    let mut state = state();
    state.came(Ok(Snapshot { hosts: hosts.clone(), phones: Vec::new(), held: None }), NOW);
    let (text, _) = frame(&state, 80, 24);
    assert!(text.contains(" ! the tunnel of shelf-a is waiting for 3m: token_missing"), "{text}");
    // What a newer supervisor calls a state is no reason to show nothing.
    hosts[0].tunnel = serde_json::from_value(tunnel("resting")).unwrap();
    state.came(Ok(Snapshot { hosts: hosts.clone(), phones: Vec::new(), held: None }), NOW);
    assert!(frame(&state, 80, 24).0.contains("the tunnel of shelf-a is unknown for 3m"));
    hosts[0].tunnel = serde_json::from_value(tunnel("ready")).unwrap();
    state.came(Ok(Snapshot { hosts, phones: Vec::new(), held: None }), NOW);
    assert!(!frame(&state, 80, 24).0.contains("tunnel"));
}

#[test]
fn colours_are_for_terminals_that_want_them() {
    let mut state = state();
    let red = |state: &State| {
        let (_, buffer) = frame(state, 80, 24);
        buffer.content.iter().any(|cell| cell.fg == Color::Red)
    };
    assert!(!red(&state));
    state.colours = true;
    assert!(red(&state));
}

#[test]
fn a_router_that_is_gone_is_told_and_what_was_seen_stays() {
    let mut state = state();
    state.came(Err("connection refused".to_owned()), NOW.plus_ms(7_000));
    let (text, _) = frame(&state, 100, 24);
    assert!(
        text.contains("NO ANSWER: what is shown is 7s old") && text.contains("refused"),
        "{text}"
    );
    assert!(text.contains("+12025550104"), "{text}");
    // Leases end on the screen because nobody renews them there: no alarm.
    state.came(Err("connection refused".to_owned()), NOW.plus_ms(60_000));
    assert!(!state.alarms().iter().any(|(_, what)| what.contains("no lease")));
    let snapshot = Snapshot { hosts: hosts(), phones: phones(SHELF), held: None };
    state.came(Ok(snapshot), NOW.plus_ms(61_000));
    let (text, _) = frame(&state, 100, 24);
    assert!(!text.contains("NO ANSWER") && text.contains("+12025550101 has no lease"), "{text}");
}

#[test]
fn keys_move_sort_filter_and_end() {
    let mut state = state();
    let press = |state: &mut State, keys: &[KeyCode]| {
        for key in keys {
            assert_eq!(state.key(*key, KeyModifiers::NONE), Next::GoOn, "{key:?}");
        }
    };
    let numbers = |state: &State| -> Vec<String> {
        state.rows().iter().map(|phone| phone.number.to_string()[9..].to_owned()).collect()
    };
    assert_eq!(numbers(&state), ["103", "104", "101", "102"]);
    press(&mut state, &[KeyCode::Down, KeyCode::End, KeyCode::Down]);
    assert_eq!(state.selected, 3);
    press(&mut state, &[KeyCode::PageUp, KeyCode::Up, KeyCode::Home, KeyCode::Char('s')]);
    assert_eq!((state.selected, state.sort), (0, Sort::Number));
    assert_eq!(numbers(&state), ["101", "102", "103", "104"]);
    press(&mut state, &[KeyCode::Char('r')]);
    assert_eq!(numbers(&state), ["104", "103", "102", "101"]);
    press(&mut state, &[KeyCode::Char('s'), KeyCode::Char('s')]);
    assert_eq!((state.sort, numbers(&state)[0].as_str()), (Sort::Rate, "102"));
    // What is typed is text: a `q` in it ends nothing.
    press(&mut state, &[KeyCode::Char('/'), KeyCode::Char('q'), KeyCode::Backspace]);
    press(&mut state, &['P', 'A', 'R', 'K'].map(KeyCode::Char));
    assert_eq!(numbers(&state), ["104"]);
    press(&mut state, &[KeyCode::Enter]);
    assert!(frame(&state, 80, 24).0.contains("filter: PARK"));
    press(&mut state, &[KeyCode::Esc, KeyCode::Char('?')]);
    assert_eq!(numbers(&state).len(), 4);
    assert!(frame(&state, 80, 24).0.contains("any key closes this"));
    press(&mut state, &[KeyCode::Char('x')]);
    assert!(!frame(&state, 80, 24).0.contains("any key closes this"));
    assert_eq!(state.key(KeyCode::Char('q'), KeyModifiers::NONE), Next::End);
    assert_eq!(state.key(KeyCode::Char('c'), KeyModifiers::CONTROL), Next::End);
}

#[test]
fn no_size_is_too_small_and_many_phones_scroll() {
    let many: Vec<(String, &str, u64)> =
        (0..200).map(|n| (format!("+1202555{n:04}"), "ready", n)).collect();
    let many: Vec<(&str, &str, u64)> =
        many.iter().map(|(number, state, today)| (number.as_str(), *state, *today)).collect();
    let mut state = state();
    state.came(Ok(Snapshot { hosts: hosts(), phones: phones(&many), held: None }), NOW);
    state.mode = Mode::Help;
    for (width, height) in [(1, 1), (3, 2), (20, 5), (80, 8), (300, 100)] {
        frame(&state, width, height);
    }
    state.mode = Mode::Looking;
    state.key(KeyCode::End, KeyModifiers::NONE);
    let (text, _) = frame(&state, 80, 24);
    assert!(text.contains("+12025550199") && !text.contains("+12025550005 "), "{text}");
}
