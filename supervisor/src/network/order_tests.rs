use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::helper::tests::{House, own_uid};

const BEFORE: &str = "Ethernet\nA; touch stolen\niPhone USB\n";
const SWITCHED: &str = "iPhone USB\nA; touch stolen\nEthernet\n";

fn orders(house: &House, ours: &[&str]) -> Orders {
    let ours = ours.iter().map(|name| (*name).to_owned()).collect();
    Orders::load(house.helper.clone(), house.dir.path().join("left"), ours)
}

fn file(house: &House) -> PathBuf {
    house.dir.path().join("left")
}

const OURS: [&str; 3] = ["Ethernet", "iPhone USB", "LTE"];

#[tokio::test]
async fn a_switch_is_written_down_survives_a_crash_and_is_undone_by_the_way_back() {
    let house = House::new(own_uid()).await;
    let mut first = orders(&house, &OURS);
    let look = first.look().await.unwrap();
    let seat = |name: &str| Seat::Interface(name.to_owned());
    assert_eq!(
        look,
        Look { seats: vec![seat("en1"), seat("en3"), Seat::Nowhere], chosen: Some(0) }
    );
    first.put_first(1).await.unwrap();
    assert_eq!(house.file("order"), SWITCHED);
    let mode = std::fs::metadata(file(&house)).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    drop(first);
    // The next life goes on from there.
    let mut next = orders(&house, &OURS);
    assert!(next.has_changed());
    assert_eq!(next.look().await.unwrap().chosen, Some(1));
    assert_eq!(house.file("order"), SWITCHED, "a restart in an outage stays where the internet is");
    next.put_first(0).await.unwrap();
    assert_eq!(house.file("order"), BEFORE);
    assert!(!file(&house).exists() && !next.has_changed());
}

#[tokio::test]
async fn what_was_changed_for_other_uplinks_is_undone_at_the_start() {
    for ours in [&[][..], &["Ethernet"]] {
        let house = House::new(own_uid()).await;
        orders(&house, &OURS).put_first(1).await.unwrap();
        let mut next = orders(&house, ours);
        next.look().await.unwrap();
        assert_eq!(house.file("order"), BEFORE, "{ours:?}");
        assert!(!file(&house).exists());
    }
}

#[tokio::test]
async fn a_hand_is_stronger() {
    let house = House::new(own_uid()).await;
    let mut orders = orders(&house, &OURS);
    orders.put_first(1).await.unwrap();
    let theirs = "A; touch stolen\niPhone USB\nEthernet\n";
    std::fs::write(house.dir.path().join("order"), theirs).unwrap();
    assert_eq!(orders.look().await.unwrap().chosen, Some(1));
    assert_eq!(house.file("order"), theirs);
    assert!(!file(&house).exists());
    // And what it was is now theirs.
    orders.put_first(0).await.unwrap();
    assert_eq!(house.file("order"), "A; touch stolen\nEthernet\niPhone USB\n");
    orders.put_first(1).await.unwrap();
    assert_eq!(house.file("order"), theirs);
    assert!(!file(&house).exists());
}

#[tokio::test]
async fn a_switch_that_fails_leaves_nothing_behind() {
    let house = House::new(own_uid()).await;
    let mut orders = orders(&house, &OURS);
    let error = orders.put_first(2).await.unwrap_err();
    assert!(matches!(error, OrderError::NoService(name) if name == "LTE"));
    assert!(!file(&house).exists());
    std::fs::write(house.dir.path().join("fails"), "").unwrap();
    let error = orders.put_first(1).await.unwrap_err();
    assert!(error.to_string().contains("requires admin privileges"), "{error}");
    assert_eq!(house.file("order"), BEFORE);
    // It was written down, and nothing came of it: that is seen at the next look.
    assert!(file(&house).exists());
    assert_eq!(orders.look().await.unwrap().chosen, Some(0));
    assert!(!file(&house).exists());
    // Where nothing can be written down, nothing is changed.
    std::fs::remove_file(house.dir.path().join("fails")).unwrap();
    std::fs::create_dir(file(&house)).unwrap();
    assert!(matches!(orders.put_first(1).await.unwrap_err(), OrderError::File(_)));
    assert_eq!(house.file("order"), BEFORE);
}

#[tokio::test]
async fn what_cannot_be_read_of_an_earlier_life_changes_nothing() {
    let house = House::new(own_uid()).await;
    std::fs::write(file(&house), "{\"before\":1}").unwrap();
    let mut orders = orders(&house, &OURS);
    assert!(!orders.has_changed());
    orders.look().await.unwrap();
    assert_eq!(house.file("order"), BEFORE);
}
