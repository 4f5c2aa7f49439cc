//! Where a webhook may go: the public internet, unless the operator says otherwise.
//!
//! A tenant chooses the URL, and the router stands where a tenant does not: next to databases and the cloud's
//! metadata service. The check is made when the connection is made, on the addresses that are then connected to,
//! so that a name that changes its mind between check and use gains nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use protocol::address::is_public;
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
