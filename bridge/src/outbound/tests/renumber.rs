//! A chat.db whose rows have other numbers.

use super::*;

/// A send whose row says that it was sent.
fn begun(world: &mut World, n: u8, rowid: i64) {
    world.send(command(n));
    world.start(n, rowid - 1);
    world.ended();
    world.rows(n, vec![sent(rowid)]);
}

fn rowid(world: &World, n: u8) -> i64 {
    let Some(Phase::Found { rowid, .. }) = world.phase(n) else { panic!("{:?}", world.phase(n)) };
    rowid
}

#[test]
fn rows_that_are_tracked_are_found_again_by_guid_also_after_a_crash() {
    let mut world = World::new();
    begun(&mut world, 1, 11);
    begun(&mut world, 2, 12);
    let tracked = world.outbound.tracked();
    let guids = [(attempt(1), "GUID-11".to_owned()), (attempt(2), "GUID-12".to_owned())];
    assert_eq!(tracked, guids);
    // They have changed places.
    world.step(Event::Renumbered(vec![(attempt(1), 12), (attempt(2), 11)]));
    assert_eq!((rowid(&world, 1), rowid(&world, 2)), (12, 11));
    world.revive();
    let read = |rowid: i64, guid: &str| RowState {
        guid: guid.to_owned(),
        delivered: true,
        read_at: Some(at(5).wall),
        ..sent(rowid)
    };
    world.step(Event::States(vec![read(12, "GUID-11")]));
    assert_eq!(world.kinds()[6..], ["delivered", "read"]);
    // The first is over; the second, at the number that the first had, is not.
    world.step(Event::States(vec![read(11, "GUID-12")]));
    assert_eq!(world.kinds()[6..], ["delivered", "read", "delivered", "read"]);
}

#[test]
fn a_row_that_is_gone_leaves_its_number_to_others() {
    let mut world = World::new();
    begun(&mut world, 1, 11);
    world.wait(2_000);
    begun(&mut world, 2, 12);
    world.step(Event::Renumbered(vec![(attempt(2), 11)]));
    // The first is over by time, and with it nothing of the second.
    let wall = world.now.wall.plus_ms(TRACK_MS - 1_000);
    world.now = Now { wall, ..world.now };
    world.step(Event::Tick);
    assert_eq!(world.outbound.tracked(), [(attempt(2), "GUID-12".to_owned())]);
    let guid = "GUID-12".to_owned();
    world.step(Event::States(vec![RowState { guid, delivered: true, ..sent(11) }]));
    assert_eq!(world.kinds().last(), Some(&"delivered"));
}

#[test]
fn a_send_in_doubt_is_looked_for_at_every_number() {
    let mut world = World::new();
    world.send(command(1));
    world.start(1, 10);
    world.ended();
    world.take_effects();
    world.step(Event::Renumbered(Vec::new()));
    world.step(Event::DatabaseChanged);
    let marks: Vec<i64> = world
        .take_effects()
        .iter()
        .filter_map(
            |effect| if let Effect::Find { mark, .. } = effect { Some(*mark) } else { None },
        )
        .collect();
    assert_eq!(marks, [0]);
    world.rows(1, vec![sent(4)]);
    assert_eq!(world.kinds(), ["accepted", "started", "sent"]);
}
