//! Networks by their addresses: from where a key may be used, whom to believe about who asks, where a webhook may go.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use axum::http::HeaderMap;
use ipnet::IpNet;
use serde::{Deserialize, Deserializer, de};

/// One network, such as `192.0.2.0/24`; a single address is the network of that address alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network(IpNet);

/// Text that names no network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a network such as 192.0.2.0/24, 2001:db8::/32 or 192.0.2.7")]
pub struct BadNetwork;

impl Network {
    /// Whether an address lies in it. IPv4 in IPv6's clothes is IPv4.
    pub fn holds(self, address: IpAddr) -> bool {
        self.0.contains(&address.to_canonical())
    }
}

impl FromStr for Network {
    type Err = BadNetwork;

    fn from_str(text: &str) -> Result<Self, BadNetwork> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) if bits.bytes().all(|byte| byte.is_ascii_digit()) => {
                (address, Some(bits.parse::<u8>().map_err(|_too_many| BadNetwork)?))
            }
            Some(_) => return Err(BadNetwork),
            None => (text, None),
        };
        let written: IpAddr = address.parse().map_err(|_no_address| BadNetwork)?;
        let address = written.to_canonical();
        let bits = match (written, address, bits) {
            // The bits of a mapped network count from the front of the IPv6 address.
            (IpAddr::V6(_), IpAddr::V4(_), Some(bits)) => bits.checked_sub(96).ok_or(BadNetwork)?,
            (_, _, Some(bits)) => bits,
            (_, IpAddr::V4(_), None) => 32,
            (_, IpAddr::V6(_), None) => 128,
        };
        IpNet::new(address, bits).map(|net| Self(net.trunc())).map_err(|_bits| BadNetwork)
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl<'de> Deserialize<'de> for Network {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// Addresses that a request says it was passed on by; of more than these nobody is believed.
const HOPS_MAX: usize = 32;

/// Who asks: the other end of the connection or, where that is a proxy to be believed, whom it names.
///
/// `X-Forwarded-For` is read from its end, where the proxy nearest to us has written: the first address there that is no
/// proxy of ours is the caller. What stands before that the caller may have made up. `None` where a proxy names nobody
/// that can be read: then nobody is believed to be anybody.
pub fn caller(peer: IpAddr, headers: &HeaderMap, proxies: &[Network]) -> Option<IpAddr> {
    let peer = peer.to_canonical();
    let ours = |address: IpAddr| proxies.iter().any(|proxy| proxy.holds(address));
    if !ours(peer) {
        return Some(peer);
    }
    let mut nearest = peer;
    let lines = headers.get_all("x-forwarded-for").iter().rev();
    let hops = lines.flat_map(|line| line.to_str().unwrap_or("?").rsplit(','));
    for (count, hop) in hops.enumerate() {
        if count >= HOPS_MAX {
            return None;
        }
        nearest = address(hop.trim())?;
        if !ours(nearest) {
            break;
        }
    }
    Some(nearest)
}

/// An address, with or without a port and brackets.
fn address(text: &str) -> Option<IpAddr> {
    let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    bare.parse().ok().or_else(with_port).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn what_names_no_network_is_refused() {
        for text in [
            "",
            "/",
            "/24",
            "192.0.2.0/",
            "192.0.2.0/33",
            "192.0.2.0/-1",
            "192.0.2.0/+8",
            "192.0.2/24",
            "2001:db8::/129",
            "example.com",
            "192.0.2.0/24/1",
            "::ffff:192.0.2.0/95",
            " 192.0.2.1",
        ] {
            assert_eq!(text.parse::<Network>(), Err(BadNetwork), "{text:?}");
        }
    }

    #[test]
    fn a_network_holds_its_addresses_in_either_clothes() {
        for (text, shown) in [
            ("192.0.2.77/24", "192.0.2.0/24"),
            ("192.0.2.7", "192.0.2.7/32"),
            ("::ffff:192.0.2.7", "192.0.2.7/32"),
            ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
            ("2001:DB8::1/32", "2001:db8::/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
        ] {
            assert_eq!(network(text).to_string(), shown, "{text}");
        }
        let desk = network("192.0.2.0/24");
        assert!(desk.holds(ip("192.0.2.255")) && desk.holds(ip("::ffff:192.0.2.1")));
        assert!(!desk.holds(ip("192.0.3.0")) && !desk.holds(ip("2001:db8::1")));
        assert!(!network("0.0.0.0/0").holds(ip("::1")));
    }

    fn forwarded(lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("x-forwarded-for", HeaderValue::from_str(line).unwrap());
        }
        headers
    }

    #[test]
    fn only_a_proxy_of_ours_is_believed_about_the_caller() {
        let proxies = [network("127.0.0.0/8"), network("10.0.0.0/8")];
        for (peer, lines, expected) in [
            // Whoever connects by themselves is whom they are, whatever they say.
            ("198.51.100.1", &["192.0.2.7"][..], Some("198.51.100.1")),
            ("127.0.0.1", &[], Some("127.0.0.1")),
            ("::ffff:127.0.0.1", &["192.0.2.7"], Some("192.0.2.7")),
            // What the caller wrote stands before what the proxy wrote.
            ("127.0.0.1", &["192.0.2.7, 198.51.100.1"], Some("198.51.100.1")),
            ("127.0.0.1", &["192.0.2.7", "198.51.100.1"], Some("198.51.100.1")),
            ("127.0.0.1", &["198.51.100.1, 10.1.2.3"], Some("198.51.100.1")),
            ("127.0.0.1", &["[2001:db8::1]:443"], Some("2001:db8::1")),
            ("127.0.0.1", &["192.0.2.7:55"], Some("192.0.2.7")),
            // All of them are ours: the caller is the farthest.
            ("127.0.0.1", &["10.9.9.9, 10.1.2.3"], Some("10.9.9.9")),
            ("127.0.0.1", &["unknown"], None),
            ("127.0.0.1", &[""], None),
            ("127.0.0.1", &["192.0.2.7, rubbish"], None),
        ] {
            let found = caller(ip(peer), &forwarded(lines), &proxies);
            assert_eq!(found, expected.map(ip), "{peer} {lines:?}");
        }
        let many = vec!["10.0.0.1"; HOPS_MAX + 1].join(",");
        assert_eq!(caller(ip("127.0.0.1"), &forwarded(&[&many]), &proxies), None);
    }

    proptest! {
        #[test]
        fn what_a_caller_writes_itself_changes_nothing(made_up in "[0-9a-f:., ]{0,40}") {
            let proxies = [network("127.0.0.1")];
            let line = format!("{made_up}, 198.51.100.1");
            let found = caller(ip("127.0.0.1"), &forwarded(&[&line]), &proxies);
            prop_assert_eq!(found, Some(ip("198.51.100.1")));
        }

        #[test]
        fn a_network_is_read_back_as_it_is_shown(bytes: [u8; 4], bits in 0_u8..=32) {
            let net = network(&format!("{}/{bits}", IpAddr::from(bytes)));
            prop_assert_eq!(network(&net.to_string()), net);
            prop_assert!(net.holds(IpAddr::from(bytes)));
        }
    }
}
