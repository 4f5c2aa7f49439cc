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

/// What of a plan can be done while some phones have not ended yet, by phone with what each reads: they are left alone,
/// and nobody else is started on what they may still read.
pub(crate) fn possible<K, D>(
    plan: Vec<(K, Action)>,
    ending: &BTreeMap<K, D>,
    reads: impl Fn(&K) -> Option<D>,
) -> Vec<(K, Action)>
where
    K: Ord,
    D: PartialEq,
{
    plan.into_iter()
        .filter(|(phone, action)| match action {
            Action::Stop => !ending.contains_key(phone),
            Action::Start | Action::Replace => {
                let read = reads(phone);
                !ending.contains_key(phone)
                    && !ending.values().any(|still| read.as_ref() == Some(still))
            }
        })
        .collect()
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

    #[test]
    fn what_still_ends_is_left_alone_with_what_it_reads() {
        let plan = || {
            vec![
                ("a", Action::Stop),
                ("b", Action::Replace),
                ("c", Action::Replace),
                ("d", Action::Start),
            ]
        };
        let reads = |phone: &&'static str| match *phone {
            // What was the first one's is to be the last one's.
            "d" => Some("a.db"),
            "b" => Some("b.db"),
            _ => Some("c.db"),
        };
        let table = [
            (vec![], vec!["a", "b", "c", "d"]),
            (vec![("a", "a.db")], vec!["b", "c"]),
            (vec![("b", "b.db")], vec!["a", "c", "d"]),
            (vec![("a", "a.db"), ("b", "b.db"), ("c", "c.db")], vec![]),
        ];
        for (ending, done) in table {
            let ending: BTreeMap<_, _> = ending.into_iter().collect();
            let possible = possible(plan(), &ending, reads);
            let phones: Vec<_> = possible.into_iter().map(|(phone, _)| phone).collect();
            assert_eq!(phones, done, "{ending:?}");
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
