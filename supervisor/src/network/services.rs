//! The order of network services: what `networksetup -listnetworkserviceorder` prints, and what it should be. Pure.
//!
//! macOS takes the first service that has a link, whether it leads anywhere or not (facts: network fail-over), so the
//! order is what a switch changes. `-ordernetworkservices` wants every service, by its exact name.

use serde::{Deserialize, Serialize};

/// More than this no Mac has; a longer list is not one.
pub(crate) const SERVICES_MAX: usize = 64;
/// Longest name of a service that is believed.
pub(crate) const NAME_BYTES_MAX: usize = 256;

/// One network service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Service {
    /// Its exact name.
    pub(crate) name: String,
    /// The interface that it uses now; a VPN has none, and a telephone's changes from plug to plug.
    pub(crate) device: Option<String>,
    /// Whether it may be used.
    pub(crate) enabled: bool,
}

/// Why a list of services is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Odd {
    /// A line is none that is known.
    #[error("line {0} of the list of network services is none that is known")]
    Line(usize),
    /// A service without its port, or two of the same name.
    #[error("the list of network services has an entry that cannot be: {0}")]
    Entry(String),
    /// None, or too many.
    #[error("the list of network services has {0} entries")]
    Count(usize),
}

/// Reads the list. What is not wholly understood is refused: an order made of half of it would lose services.
///
/// ```text
/// An asterisk (*) denotes that a network service is disabled.
/// (1) Ethernet Adapter (en6)
/// (Hardware Port: Ethernet Adapter (en6), Device: en6)
///
/// (*) Wi-Fi
/// (Hardware Port: Wi-Fi, Device: en0)
/// ```
pub(crate) fn parse(text: &str) -> Result<Vec<Service>, Odd> {
    let mut services: Vec<Service> = Vec::new();
    let mut open: Option<(String, bool)> = None;
    for (at, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        if let Some((name, enabled)) = open.take() {
            let device = port(line).ok_or_else(|| Odd::Entry(name.clone()))?;
            let device = (!device.is_empty()).then(|| device.to_owned());
            if services.iter().any(|service| service.name == name) {
                return Err(Odd::Entry(name));
            }
            services.push(Service { name, device, enabled });
        } else if let Some(entry) = entry(line) {
            open = Some(entry);
        } else if at > 1 || !line.starts_with("An asterisk") {
            return Err(Odd::Line(at));
        }
    }
    if let Some((name, _)) = open {
        return Err(Odd::Entry(name));
    }
    if services.is_empty() || services.len() > SERVICES_MAX {
        return Err(Odd::Count(services.len()));
    }
    Ok(services)
}

/// `(3) NAME`; an asterisk stands in the place of the number, or before it, when the service is disabled.
fn entry(line: &str) -> Option<(String, bool)> {
    let (mark, name) = line.strip_prefix('(')?.split_once(") ")?;
    let digits = mark.strip_prefix('*').unwrap_or(mark);
    let known = !mark.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let fits = !name.is_empty() && name.len() <= NAME_BYTES_MAX;
    (known && fits).then(|| (name.to_owned(), !mark.starts_with('*')))
}

fn port(line: &str) -> Option<&str> {
    let inside = line.strip_prefix("(Hardware Port: ")?.strip_suffix(')')?;
    Some(inside.rsplit_once(", Device: ").map_or("", |(_, device)| device).trim())
}

/// The names in their order.
pub(crate) fn names(services: &[Service]) -> Vec<String> {
    services.iter().map(|service| service.name.clone()).collect()
}

/// `order` with the names of `wanted` in that order, in the places that they hold together; all others stay.
pub(crate) fn arranged(order: &[String], wanted: &[String]) -> Vec<String> {
    let mut next = wanted.iter().filter(|name| order.contains(name));
    order
        .iter()
        .map(|name| if wanted.contains(name) { next.next().unwrap_or(name) } else { name }.clone())
        .collect()
}

/// `order` with one of `ours` before all others of them. A VPN that stands above them all stays there.
pub(crate) fn in_front(order: &[String], ours: &[String], first: &str) -> Vec<String> {
    let rest = order.iter().filter(|name| ours.contains(name) && name.as_str() != first);
    let wanted: Vec<String> = std::iter::once(first.to_owned()).chain(rest.cloned()).collect();
    arranged(order, &wanted)
}

/// Whether two lists have the same names, each once.
pub(crate) fn same_names(one: &[String], other: &[String]) -> bool {
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort_unstable();
        names
    };
    let (one, other) = (sorted(one), sorted(other));
    one == other && one.windows(2).all(|pair| pair.first() != pair.last())
}

/// An order that a supervisor has made, kept until it is undone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Changed {
    /// What it was.
    pub(crate) before: Vec<String>,
    /// What it was made.
    pub(crate) made: Vec<String>,
}

/// What a supervisor finds of the order when it starts, or looks again.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing of ours.
    Nothing,
    /// What we made of it; it goes on from there, and back in time.
    Ours,
    /// What was made for uplinks that are no longer configured: this is what it was.
    Undo(Vec<String>),
    /// Somebody else has changed it since; their order counts.
    Theirs,
}

/// Compares the order with what a supervisor has left.
pub(crate) fn found(order: &[String], left: Option<&Changed>, ours: &[String]) -> Found {
    let Some(left) = left else { return Found::Nothing };
    // Services that have come or gone meanwhile change nothing of the rest.
    let before = arranged(order, &left.before);
    if before == order {
        return Found::Nothing;
    }
    if arranged(order, &left.made) != order {
        return Found::Theirs;
    }
    let moved = order.iter().zip(&before).filter(|(is, was)| is != was);
    if moved.into_iter().all(|(is, _)| ours.contains(is)) {
        Found::Ours
    } else {
        Found::Undo(before)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// As machines of operators print it: a disabled one, a name with brackets, VPNs without a device.
    const LIST: &str = "An asterisk (*) denotes that a network service is disabled.\n\
        (1) Tailscale\n(Hardware Port: io.tailscale.ipn.macsys, Device: )\n\n\
        (2) Ethernet Adapter (en6)\n(Hardware Port: Ethernet Adapter (en6), Device: en6)\n\n\
        (*) Thunderbolt Bridge\n(Hardware Port: Thunderbolt Bridge, Device: bridge0)\n\n\
        (4) iPhone USB\n(Hardware Port: iPhone USB, Device: en9)\n\n\
        (5) Wi-Fi\n(Hardware Port: Wi-Fi, Device: en0)\n\n";

    fn list(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_list_is_read_with_brackets_disabled_services_and_vpns() {
        let services = parse(LIST).unwrap();
        let seen: Vec<_> = services
            .iter()
            .map(|it| (it.name.as_str(), it.device.as_deref(), it.enabled))
            .collect();
        let wanted = [
            ("Tailscale", None, true),
            ("Ethernet Adapter (en6)", Some("en6"), true),
            ("Thunderbolt Bridge", Some("bridge0"), false),
            ("iPhone USB", Some("en9"), true),
            ("Wi-Fi", Some("en0"), true),
        ];
        assert_eq!(seen, wanted);
        // Some write the number behind the asterisk, and a name may begin with one.
        let text = "(*3) iPhone USB\n(Hardware Port: iPhone USB, Device: en5)\n(4) *Old (1) LAN\n(Hardware Port: Ethernet, Device: en9)\n";
        let services = parse(text).unwrap();
        assert_eq!(names(&services), ["iPhone USB", "*Old (1) LAN"]);
        assert!(!services[0].enabled && services[1].enabled);
    }

    #[test]
    fn what_is_not_wholly_understood_is_refused() {
        let table = [
            ("", Odd::Count(0)),
            ("** Error: The parameters were not valid.\n", Odd::Line(1)),
            ("(1) A\n", Odd::Entry("A".to_owned())),
            ("(1) A\n(2) B\n", Odd::Entry("A".to_owned())),
            ("(x) A\n(Hardware Port: A, Device: en0)\n", Odd::Line(1)),
            ("(1) A\n(Hardware Port: A, Device: en0)\nAn asterisk (*) denotes\n", Odd::Line(3)),
            (
                "(1) A\n(Hardware Port: A, Device: en0)\n(2) A\n(Hardware Port: A, Device: en1)\n",
                Odd::Entry("A".to_owned()),
            ),
        ];
        for (text, wanted) in table {
            assert_eq!(parse(text).unwrap_err(), wanted, "{text}");
        }
    }

    #[test]
    fn one_is_moved_to_the_front_of_ours_and_nothing_else_moves() {
        let order = list(&["VPN", "Ethernet", "Bridge", "Wi-Fi", "iPhone USB"]);
        let ours = list(&["Ethernet", "iPhone USB", "Wi-Fi"]);
        assert_eq!(
            in_front(&order, &ours, "iPhone USB"),
            list(&["VPN", "iPhone USB", "Bridge", "Ethernet", "Wi-Fi"])
        );
        assert_eq!(in_front(&order, &ours, "Ethernet"), order);
    }

    #[test]
    fn what_is_found_at_the_start_is_told_apart() {
        let before = list(&["Ethernet", "Bridge", "Wi-Fi"]);
        let made = list(&["Wi-Fi", "Bridge", "Ethernet"]);
        let left = Changed { before: before.clone(), made: made.clone() };
        let ours = list(&["Ethernet", "Wi-Fi"]);
        let with_more = list(&["Wi-Fi", "New", "Bridge", "Ethernet"]);
        let table = [
            (before.clone(), None, ours.clone(), Found::Nothing),
            (made.clone(), None, ours.clone(), Found::Nothing),
            // The crash came before the switch, or somebody has undone it.
            (before.clone(), Some(&left), ours.clone(), Found::Nothing),
            (made.clone(), Some(&left), ours.clone(), Found::Ours),
            (with_more, Some(&left), ours.clone(), Found::Ours),
            (list(&["Bridge", "Wi-Fi", "Ethernet"]), Some(&left), ours, Found::Theirs),
            (made, Some(&left), list(&["Ethernet"]), Found::Undo(before)),
        ];
        for (order, left, ours, wanted) in table {
            assert_eq!(found(&order, left, &ours), wanted, "{order:?}");
        }
    }

    proptest! {
        #[test]
        fn no_list_makes_it_panic(text in "[()*0-9A-Za-z:, \n]{0,200}") {
            let _either = parse(&text);
        }

        /// An order has the same services before and after, those of others where they were, and can be undone.
        #[test]
        fn orders_lose_nothing_and_can_be_undone(
            order in Just((0..8).map(|n| format!("s{n}")).collect::<Vec<_>>()).prop_shuffle(),
            ours in prop::sample::subsequence((0..8).map(|n| format!("s{n}")).collect::<Vec<_>>(), 1..8),
            first in any::<prop::sample::Index>(),
        ) {
            let first = &ours[first.index(ours.len())];
            let made = in_front(&order, &ours, first);
            prop_assert!(same_names(&order, &made));
            prop_assert_eq!(made.iter().find(|name| ours.contains(name)), Some(first));
            for (was, is) in order.iter().zip(&made) {
                prop_assert_eq!(ours.contains(was), ours.contains(is));
                prop_assert!(ours.contains(was) || was == is);
            }
            prop_assert_eq!(arranged(&made, &order), order.clone());
            let left = Changed { before: order.clone(), made: made.clone() };
            let wanted = if made == order { Found::Nothing } else { Found::Ours };
            prop_assert_eq!(found(&made, Some(&left), &ours), wanted);
        }
    }
}
