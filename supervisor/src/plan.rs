//! Wanted phones × running phones → actions: pure.
//!
//! Used at start (nothing runs yet), at the end (nothing is wanted any more), and wherever the set of phones changes.

use std::collections::BTreeMap;

/// What to do about one phone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Action {
    /// It is wanted and has no owner task.
    Start,
    /// It runs with settings that are no longer the wanted ones.
    Replace,
    /// It runs and is no longer wanted.
    Stop,
}

/// Compares what is wanted with what runs, both by phone with their settings, and says what to do, in a stable order:
/// stops first, so that a chat.db that moves from one phone to another is never read by two bridges.
pub(crate) fn plan<K, S>(wanted: &BTreeMap<K, S>, running: &BTreeMap<K, S>) -> Vec<(K, Action)>
where
    K: Ord + Clone,
    S: PartialEq,
{
    let stops = running
        .keys()
        .filter(|phone| !wanted.contains_key(phone))
        .map(|phone| (phone.clone(), Action::Stop));
    let replaced = wanted
        .iter()
        .filter(|(phone, settings)| running.get(phone).is_some_and(|old| old != *settings))
        .map(|(phone, _)| (phone.clone(), Action::Replace));
    let starts = wanted
        .keys()
        .filter(|phone| !running.contains_key(phone))
        .map(|phone| (phone.clone(), Action::Start));
    stops.chain(replaced).chain(starts).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(phones: &[(&'static str, u8)]) -> BTreeMap<&'static str, u8> {
        phones.iter().copied().collect()
    }

    #[test]
    fn each_difference_has_its_action() {
        let table = [
            (set(&[]), set(&[]), vec![]),
            (set(&[("a", 1)]), set(&[]), vec![("a", Action::Start)]),
            (set(&[]), set(&[("a", 1)]), vec![("a", Action::Stop)]),
            (set(&[("a", 1)]), set(&[("a", 1)]), vec![]),
            (set(&[("a", 2)]), set(&[("a", 1)]), vec![("a", Action::Replace)]),
            (
                set(&[("a", 1), ("b", 2), ("d", 1)]),
                set(&[("b", 1), ("c", 1), ("d", 1)]),
                vec![("c", Action::Stop), ("b", Action::Replace), ("a", Action::Start)],
            ),
        ];
        for (wanted, running, actions) in table {
            assert_eq!(plan(&wanted, &running), actions, "{wanted:?} {running:?}");
        }
    }

    proptest! {
        /// Carrying the actions out makes what runs equal to what is wanted, and nothing is then left to do.
        #[test]
        fn carried_out_the_plan_reaches_what_is_wanted(
            wanted in prop::collection::btree_map(0_u8..20, 0_u8..3, 0..12),
            running in prop::collection::btree_map(0_u8..20, 0_u8..3, 0..12),
        ) {
            let mut now = running.clone();
            for (phone, action) in plan(&wanted, &running) {
                match action {
                    Action::Stop => prop_assert!(now.remove(&phone).is_some()),
                    Action::Start => prop_assert!(now.insert(phone, wanted[&phone]).is_none()),
                    Action::Replace => prop_assert!(now.insert(phone, wanted[&phone]).is_some()),
                }
            }
            prop_assert_eq!(&now, &wanted);
            prop_assert!(plan(&wanted, &now).is_empty());
        }
    }
}
