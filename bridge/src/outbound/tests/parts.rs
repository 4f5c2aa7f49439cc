//! Messages of several parts.

use std::path::PathBuf;

use super::*;

/// Two files and a text.
fn with_files(n: u8) -> Send {
    Send {
        attachments: vec![file("https://example.com/a"), file("https://example.com/b")],
        ..command(n)
    }
}

fn paths(n: u8) -> Vec<PathBuf> {
    vec![PathBuf::from(format!("/staged/{n}/0/a")), PathBuf::from(format!("/staged/{n}/1/b"))]
}

fn fetched(world: &mut World, n: u8) {
    world.step(Event::Fetched { attempt: attempt(n), files: Ok(paths(n)) });
}

/// What osascript would be given next.
fn contents(world: &mut World) -> Vec<Content> {
    world
        .take_effects()
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Prepare { content, .. } => Some(content),
            Effect::Fetch { .. }
            | Effect::StopFetch { .. }
            | Effect::Confirm { .. }
            | Effect::HandOver { .. }
            | Effect::Abandon
            | Effect::KillOsascript
            | Effect::Find { .. }
            | Effect::ReadStates { .. }
            | Effect::Seek(_)
            | Effect::CheckOrphan
            | Effect::EndOrphan { .. } => None,
        })
        .collect()
}

/// One part from the queue to a row that says that it was sent.
fn send_part(world: &mut World, n: u8, rowid: i64) {
    world.start(n, rowid - 1);
    world.ended();
    world.rows(n, vec![sent(rowid)]);
}

fn begun(n: u8) -> World {
    let mut world = World::new();
    world.send(with_files(n));
    fetched(&mut world, n);
    contents(&mut world);
    send_part(&mut world, n, 11);
    world
}

fn last_failure(world: &World) -> (Reason, bool, String) {
    let Some(Fact::Failed(about)) = world.told.last() else { panic!("{:?}", world.told.last()) };
    (about.reason, about.retryable, about.detail.clone())
}

#[test]
fn files_are_fetched_first_then_sent_one_by_one_and_the_text_last() {
    let mut world = World::new();
    world.send(with_files(1));
    let wanted = with_files(1).attachments;
    assert_eq!(world.take_effects(), [Effect::Fetch { attempt: attempt(1), files: wanted }]);
    world.step(Event::Tick);
    assert_eq!(contents(&mut world), [], "nothing starts before all is here");

    fetched(&mut world, 1);
    let [first, second]: [PathBuf; 2] = paths(1).try_into().unwrap();
    assert_eq!(contents(&mut world), [Content::File(first)]);
    world.start(1, 10);
    world.ended();
    world.rows(1, vec![row(11)]);
    assert_eq!(contents(&mut world), [], "a row that is not sent yet is followed by nothing");
    world.step(Event::States(vec![sent(11)]));
    assert_eq!(contents(&mut world), [Content::File(second)]);
    send_part(&mut world, 1, 12);
    assert_eq!(contents(&mut world), [Content::Text("text 1".to_owned())]);
    assert_eq!(world.outbound.in_flight(), 1);
    send_part(&mut world, 1, 13);
    assert_eq!(world.kinds(), ["accepted", "started", "started", "started", "sent"]);
    let Some(Fact::Sent { guid, .. }) = world.told.last() else { panic!() };
    assert_eq!(guid, "GUID-13", "the last part is what receipts come for");
}

#[test]
fn files_without_a_text_end_with_the_last_file() {
    let mut world = World::new();
    world.send(Send { text: " ".to_owned(), ..with_files(1) });
    fetched(&mut world, 1);
    send_part(&mut world, 1, 11);
    send_part(&mut world, 1, 12);
    assert_eq!(world.kinds().last(), Some(&"sent"));
}

#[test]
fn a_file_that_cannot_be_had_fails_the_message_before_anything_is_sent() {
    let mut world = World::new();
    world.send(with_files(1));
    let failure = Failure {
        reason: Reason::AttachmentUnavailable,
        detail: "attachments[1]: its server answered 404".to_owned(),
        retryable: true,
    };
    world.step(Event::Fetched { attempt: attempt(1), files: Err(failure.clone()) });
    assert_eq!(world.kinds(), ["accepted", "failed"]);
    assert_eq!(last_failure(&world), (failure.reason, true, failure.detail));
}

#[test]
fn two_are_fetched_at_a_time_and_texts_do_not_wait_for_them() {
    let mut world = World::new();
    for n in 1..=3 {
        world.send(with_files(n));
    }
    world.send(command(4));
    let fetches = |world: &mut World| {
        let is_fetch = |effect: &Effect| matches!(effect, Effect::Fetch { .. });
        world.effects.iter().filter(|effect| is_fetch(effect)).count()
    };
    assert_eq!(fetches(&mut world), 2);
    assert_eq!(contents(&mut world), [Content::Text("text 4".to_owned())]);
    fetched(&mut world, 2);
    assert_eq!(fetches(&mut world), 1);
}

#[test]
fn a_message_that_is_withdrawn_stops_its_fetch() {
    let mut world = World::new();
    world.send(with_files(1));
    world.take_effects();
    world.step(Event::Cancel { attempt: attempt(1), known: None });
    assert_eq!(world.kinds(), ["accepted", "canceled"]);
    assert_eq!(world.take_effects(), [Effect::StopFetch { attempt: attempt(1) }]);
    fetched(&mut world, 1);
    assert_eq!(contents(&mut world), []);
}

#[test]
fn a_fetch_that_a_crash_has_ended_begins_anew_and_what_is_here_stays() {
    let mut world = World::new();
    world.send(with_files(1));
    world.take_effects();
    world.revive();
    let is_fetch = |effect: &Effect| matches!(effect, Effect::Fetch { .. });
    assert!(world.take_effects().iter().any(is_fetch));
    fetched(&mut world, 1);
    world.revive();
    assert!(!world.effects.iter().any(is_fetch), "{:?}", world.effects);
    assert_eq!(contents(&mut world).len(), 1);
}

#[test]
fn what_stops_between_parts_ends_as_partly_sent_and_is_never_tried_again() {
    let stops: [(&str, Happening, &str); 4] = [
        (
            "withdrawn",
            |world| world.step(Event::Cancel { attempt: attempt(1), known: None }),
            "canceled",
        ),
        ("expired", |world| world.wait(700_000), "expired"),
        (
            "superseded",
            |world| {
                world.lease(2);
                world.step(Event::Tick);
            },
            "stale_epoch",
        ),
        (
            "unregistered",
            |world| {
                world.start(1, 11);
                world.ended();
                world.rows(1, vec![unregistered(12)]);
                world.wait(1_500);
                world.step(Event::States(vec![unregistered(12)]));
                world.rows(1, vec![]);
            },
            "not_registered: chat.db error 22",
        ),
    ];
    for (name, happening, why) in stops {
        let mut world = begun(1);
        if name != "unregistered" {
            // The second part is prepared, and cannot start any more.
            world.step(Event::NotPrepared { attempt: attempt(1), why: NotPrepared::Held });
        }
        happening(&mut world);
        let (reason, retryable, detail) = last_failure(&world);
        assert_eq!((reason, retryable), (Reason::PartlySent, false), "{name}");
        assert_eq!(detail, format!("1 of 3 parts were sent, then {why}"), "{name}");
        assert!(!world.kinds().contains(&"fallback"), "{name}");
    }
}

#[test]
fn a_part_whose_fate_was_doubted_is_followed_by_nothing() {
    let mut world = World::new();
    world.send(with_files(1));
    fetched(&mut world, 1);
    world.start(1, 10);
    world.ended();
    world.wait(11_000);
    world.rows(1, vec![]);
    assert_eq!(world.kinds().last(), Some(&"unknown"));
    world.take_effects();
    world.rows(1, vec![sent(11)]);
    assert_eq!(last_failure(&world).0, Reason::PartlySent);
    assert_eq!(contents(&mut world), []);
}

#[test]
fn nothing_comes_between_the_parts_of_a_message_to_the_same_recipient() {
    let mut world = World::new();
    world.send(with_files(1));
    fetched(&mut world, 1);
    let same = Send { to: command(1).to, class: Class::Otp, ..command(2) };
    world.send(same);
    let other = Send { class: Class::Marketing, ..command(3) };
    world.send(other);
    contents(&mut world);
    // The first part's row is there, and not sent yet: the lane is free.
    world.start(1, 10);
    world.ended();
    world.rows(1, vec![row(11)]);
    assert_eq!(world.prepares(), [(attempt(3), Channel::Imessage)]);
    send_part(&mut world, 3, 12);
    world.step(Event::States(vec![sent(11)]));
    assert_eq!(world.prepares(), [(attempt(1), Channel::Imessage)]);
}

#[test]
fn a_drain_finishes_the_message_that_has_begun_and_a_stop_leaves_it_to_the_next_life() {
    let mut world = begun(1);
    world.step(Event::Drain { deadline_ms: 60_000 });
    assert!(!world.outbound.is_done());
    send_part(&mut world, 1, 12);
    assert!(!world.outbound.is_done());
    send_part(&mut world, 1, 13);
    assert_eq!(world.kinds().last(), Some(&"sent"));
    assert!(world.outbound.is_done());

    let mut world = begun(1);
    world.step(Event::NotPrepared { attempt: attempt(1), why: NotPrepared::Held });
    world.step(Event::Stop { deadline_ms: 2_000 });
    assert!(world.outbound.is_done());
    world.revive();
    let [_, second]: [PathBuf; 2] = paths(1).try_into().unwrap();
    assert_eq!(contents(&mut world), [Content::File(second)]);
}

#[test]
fn a_drain_does_not_wait_longer_than_it_may() {
    let mut world = begun(1);
    world.step(Event::NotPrepared { attempt: attempt(1), why: NotPrepared::Held });
    world.step(Event::Drain { deadline_ms: 5_000 });
    assert!(!world.outbound.is_done());
    world.wait(5_500);
    assert!(world.outbound.is_done());
}
