//! Where a webhook may go: the public internet, unless the operator says otherwise.
//!
//! A tenant chooses the URL, and the router stands where a tenant does not: next to databases and the cloud's
//! metadata service. The check is made when the connection is made, on the addresses that are then connected to,
//! so that a name that changes its mind between check and use gains nothing.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use protocol::address::is_public;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

use crate::network::Network;

/// A URL that is not to be called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Not something that can be posted to.
    #[error("not an http or https URL with a host")]
    NotHttp,
    /// Not encrypted.
    #[error("not https")]
    NotHttps,
    /// It names an address, and the address is neither public nor allowed.
    #[error("its address is not public")]
    NotPublic,
    /// Everything its name resolves to is not public.
    #[error("its name has no public address")]
    NoPublicAddress,
}

/// Where a webhook may go, as the operator has set it up.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Anywhere, and without TLS: for tests and a router on a desk.
    pub allow_private: bool,
    /// Also to these networks, though they are not public.
    pub networks: Arc<[Network]>,
}

/// Where clouds keep the credentials of their machines: no webhook goes there, whatever else is allowed.
const METADATA: [IpAddr; 3] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x0ec2, 0, 0, 0, 0, 0, 0x0254)),
];

impl Policy {
    fn allows(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        !METADATA.contains(&ip)
            && (self.allow_private
                || is_public(ip)
                || self.networks.iter().any(|network| network.holds(ip)))
    }
}

/// Checks what can be checked before the name is resolved.
pub fn check_url(url: &str, policy: &Policy) -> Result<Url, Refused> {
    let url = Url::parse(url).map_err(|_not_a_url| Refused::NotHttp)?;
    match url.scheme() {
        "https" => {}
        "http" if policy.allow_private => {}
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
        Some(ip) if !policy.allows(ip) => Err(Refused::NotPublic),
        Some(_) | None => Ok(url),
    }
}

/// Resolves names for the delivery client and leaves out every address that is not public.
#[derive(Debug, Clone)]
pub struct PublicResolver {
    policy: Policy,
}

impl PublicResolver {
    /// By this policy.
    pub fn new(policy: Policy) -> Arc<Self> {
        Arc::new(Self { policy })
    }

    fn keep(&self, found: impl Iterator<Item = SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        let kept: Vec<SocketAddr> =
            found.filter(|address| self.policy.allows(address.ip())).collect();
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

    fn policy(allow_private: bool, networks: &[&str]) -> Policy {
        let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
        Policy { allow_private, networks }
    }

    fn strict() -> Policy {
        policy(false, &[])
    }

    #[test]
    fn a_literal_address_is_seen_through_its_disguises() {
        for url in [
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://0177.0.0.1/",
            "https://[::1]/",
            "https://[::ffff:10.0.0.1]/",
            "https://[::ffff:7f00:1]/",
            "https://127.1:443/x",
            "https://10.0.0.1/",
            "https://172.16.9.9/",
            "https://192.168.0.1/",
            "https://169.254.1.1/",
            "https://100.64.0.1/",
            "https://0.0.0.0/",
            "https://[fe80::1]/",
            "https://[fd12::1]/",
            "https://[64:ff9b::7f00:1]/",
        ] {
            assert_eq!(check_url(url, &strict()), Err(Refused::NotPublic), "{url}");
            assert!(check_url(url, &policy(true, &[])).is_ok(), "{url}");
        }
    }

    #[test]
    fn the_clouds_metadata_is_out_of_reach_whatever_is_allowed() {
        for url in [
            "https://169.254.169.254/latest/meta-data/",
            "https://[::ffff:169.254.169.254]/",
            "https://2852039166/",
            "https://100.100.100.200/",
            "https://[fd00:ec2::254]/",
        ] {
            for policy in [strict(), policy(true, &[]), policy(false, &["0.0.0.0/0", "::/0"])] {
                assert_eq!(check_url(url, &policy), Err(Refused::NotPublic), "{url} {policy:?}");
            }
        }
    }

    #[test]
    fn a_network_that_is_allowed_is_allowed_alone_and_with_tls() {
        let desk = policy(false, &["10.1.0.0/16", "::1"]);
        for url in ["https://10.1.2.3/", "https://[::ffff:10.1.2.3]/", "https://[::1]/"] {
            assert!(check_url(url, &desk).is_ok(), "{url}");
        }
        assert_eq!(check_url("https://10.2.0.1/", &desk), Err(Refused::NotPublic));
        assert_eq!(check_url("http://10.1.2.3/", &desk), Err(Refused::NotHttps));
        let resolver = PublicResolver { policy: desk };
        let found: Vec<SocketAddr> =
            ["10.2.0.1:0", "10.1.0.1:0"].map(|address| address.parse().unwrap()).to_vec();
        assert_eq!(resolver.keep(found.into_iter()).unwrap(), ["10.1.0.1:0".parse().unwrap()]);
    }

    #[test]
    fn only_https_with_a_host_is_called() {
        assert_eq!(check_url("http://example.com/", &strict()), Err(Refused::NotHttps));
        assert!(check_url("http://example.com/", &policy(true, &[])).is_ok());
        for url in [
            "",
            "file:///etc/passwd",
            "ftp://example.com/",
            "gopher://example.com/",
            "/relative",
            "https://",
        ] {
            assert_eq!(check_url(url, &policy(true, &[])), Err(Refused::NotHttp), "{url}");
        }
        assert!(check_url("https://example.com/hook?x=1", &strict()).is_ok());
    }

    #[test]
    fn a_name_that_resolves_to_private_addresses_only_is_refused() {
        let strict = PublicResolver { policy: strict() };
        let private: Vec<SocketAddr> =
            vec!["127.0.0.1:0".parse().unwrap(), "[::1]:0".parse().unwrap()];
        assert_eq!(strict.keep(private.clone().into_iter()), Err(Refused::NoPublicAddress));
        let mixed = private.iter().copied().chain(["8.8.8.8:0".parse().unwrap()]);
        assert_eq!(strict.keep(mixed).unwrap(), ["8.8.8.8:0".parse().unwrap()]);
        let open = PublicResolver { policy: policy(true, &[]) };
        assert_eq!(open.keep(private.clone().into_iter()).unwrap(), private);
    }
}
