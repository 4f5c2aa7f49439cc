//! Where a webhook may go: the public internet, unless the operator says otherwise.
//!
//! A tenant chooses the URL, and the router stands where a tenant does not: next to databases and the cloud's
//! metadata service. The check is made when the connection is made, on the addresses that are then connected to,
//! so that a name that changes its mind between check and use gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// A URL that is not to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not something that can be posted to.
    #[error("not an http or https URL with a host")]
    NotHttp,
    /// Not encrypted.
    #[error("not https")]
    NotHttps,
    /// It names an address, and the address is not public.
    #[error("its address is not public")]
    NotPublic,
    /// Everything its name resolves to is not public.
    #[error("its name has no public address")]
    NoPublicAddress,
}

/// Checks what can be checked before the name is resolved.
pub fn check_url(url: &str, allow_private: bool) -> Result<Url, Refused> {
    let url = Url::parse(url).map_err(|_not_a_url| Refused::NotHttp)?;
    match url.scheme() {
        "https" => {}
        "http" if allow_private => {}
        "http" => return Err(Refused::NotHttps),
        _ => return Err(Refused::NotHttp),
    }
    let literal = match url.host() {
        None => return Err(Refused::NotHttp),
        Some(Host::Domain(_)) => None,
        // The URL parser has by now turned 0x7f.1, 2130706433 and their like into what they mean.
        Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
        Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
    };
    match literal {
        Some(ip) if !allow_private && !is_public(ip) => Err(Refused::NotPublic),
        Some(_) | None => Ok(url),
    }
}

/// Whether an address belongs to the public internet.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    // IANA's special-purpose registry, less what is globally reachable.
    let special = matches!(
        (a, b, c),
        (0 | 10 | 127 | 224..=255, _, _)
            | (100, 64..=127, _)
            | (169, 254, _)
            | (172, 16..=31, _)
            | (192, 0, 0 | 2)
            | (192, 88, 99)
            | (192, 168, _)
            | (198, 18 | 19, _)
            | (198, 51, 100)
            | (203, 0, 113)
    );
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    if let Some(v4) = ip.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    let [a, b, c, ..] = ip.segments();
    // Only 2000::/3 is given out; in it are documentation, benchmarks, and two transition schemes that can carry
    // any IPv4 address.
    let given_out = (0x2000..=0x3fff).contains(&a);
    let special = match a {
        0x2001 => b < 0x0200 || b == 0x0db8,
        0x2002 => !is_public_v4(embedded(b, c)),
        0x3fff => b < 0x1000,
        _ => false,
    };
    given_out && !special
}

fn embedded(high: u16, low: u16) -> Ipv4Addr {
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    Ipv4Addr::new(a, b, c, d)
}

/// Resolves names for the delivery client and leaves out every address that is not public.
#[derive(Debug, Clone)]
pub struct PublicResolver {
    allow_private: bool,
}

impl PublicResolver {
    /// With `allow_private`, nothing is left out: for tests and a router on a desk.
    pub fn new(allow_private: bool) -> Arc<Self> {
        Arc::new(Self { allow_private })
    }

    fn keep(&self, found: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        let kept: Vec<SocketAddr> =
            found.filter(|address| self.allow_private || is_public(address.ip())).collect();
        if kept.is_empty() { Err(Refused::NoPublicAddress) } else { Ok(kept) }
    }
}

impl Resolve for PublicResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let this = self.clone();
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let kept = this.keep(found)?;
            let addresses: Addrs = Box::new(kept.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_are_not_public_are_known() {
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.19.9.9",
            "198.51.100.7",
            "203.0.113.9",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::1",
            "2002:a00:1::1",
            "3fff::1",
            "::127.0.0.1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn public_addresses_are_known() {
        for text in [
            "1.1.1.1",
            "8.8.8.8",
            "100.63.0.1",
            "100.128.0.1",
            "172.15.0.1",
            "172.32.0.1",
            "192.0.1.1",
            "198.17.0.1",
            "203.0.112.1",
            "223.255.255.1",
            "2606:4700::1111",
            "2a00:1450:4001::1",
            "2002:808:808::1",
            "::ffff:8.8.8.8",
        ] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn a_literal_address_is_seen_through_its_disguises() {
        for url in [
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0177.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://127.1:443/x",
        ] {
            assert_eq!(check_url(url, false), Err(Refused::NotPublic), "{url}");
            assert!(check_url(url, true).is_ok(), "{url}");
        }
    }

    #[test]
    fn only_https_with_a_host_is_called() {
        assert_eq!(check_url("http://example.com/", false), Err(Refused::NotHttps));
        assert!(check_url("http://example.com/", true).is_ok());
        for url in [
            "",
            "file:///etc/passwd",
            "ftp://example.com/",
            "gopher://example.com/",
            "/relative",
            "https://",
        ] {
            assert_eq!(check_url(url, true), Err(Refused::NotHttp), "{url}");
        }
        assert!(check_url("https://example.com/hook?x=1", false).is_ok());
    }

    #[test]
    fn a_name_that_resolves_to_private_addresses_only_is_refused() {
        let strict = PublicResolver { allow_private: false };
        let private: Vec<SocketAddr> =
            vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
        assert_eq!(strict.keep(private.clone().into_iter()), Err(Refused::NoPublicAddress));
        let mixed = private.iter().copied().chain(["8.8.8.8:0".parse().unwrap()]);
        assert_eq!(strict.keep(mixed).unwrap(), ["8.8.8.8:0".parse().unwrap()]);
        let open = PublicResolver { allow_private: true };
        assert_eq!(open.keep(private.clone().into_iter()).unwrap(), private);
    }
}
