//! Where a file may be fetched: the public internet, by HTTPS. The bridge stands in somebody's office,
//! beside printers and routers with pages of their own.
//!
//! Names are checked when the connection is made, on the addresses that are then connected to, so that a
//! name that changes its mind between check and use gains nothing.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use protocol::address::is_public;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// A URL that is not called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("not an https URL with a host")]
    NotHttps,
    #[error("not https")]
    NotEncrypted,
    #[error("has a user or a password in it")]
    Credentials,
    #[error("its address is not public")]
    NotPublic,
    #[error("its name has no public address")]
    NoPublicAddress,
}

/// Checks what can be checked before the name is resolved.
pub(crate) fn check_url(url: &str, allow_private: bool) -> Result<Url, Refused> {
    let url = Url::parse(url).map_err(|_not_a_url| Refused::NotHttps)?;
    check_parsed(&url, allow_private)?;
    Ok(url)
}

/// The same for a URL that a server points to.
pub(crate) fn check_parsed(url: &Url, allow_private: bool) -> Result<(), Refused> {
    match url.scheme() {
        "https" => {}
        "http" if allow_private => {}
        "http" => return Err(Refused::NotEncrypted),
        _ => return Err(Refused::NotHttps),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Refused::Credentials);
    }
    let literal = match url.host() {
        None => return Err(Refused::NotHttps),
        Some(Host::Domain(_)) => None,
        // The parser has by now turned 0x7f.1, 2130706433 and their like into what they mean.
        Some(Host::Ipv4(ip)) => Some(IpAddr::V4(ip)),
        Some(Host::Ipv6(ip)) => Some(IpAddr::V6(ip)),
    };
    match literal {
        Some(ip) if !allow_private && !is_public(ip) => Err(Refused::NotPublic),
        Some(_) | None => Ok(()),
    }
}

/// Resolves names and leaves out every address that is not public.
#[derive(Debug, Clone)]
pub(crate) struct PublicResolver {
    allow_private: bool,
}

impl PublicResolver {
    pub(crate) fn new(allow_private: bool) -> Arc<Self> {
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
            let addresses: Addrs = Box::new(this.keep(found)?.into_iter());
            Ok(addresses)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_in_disguise_is_seen_through() {
        for url in [
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0x7f.1/",
            "https://[::1]/",
            "https://[::ffff:169.254.169.254]/",
            "https://192.168.1.1:8443/admin",
        ] {
            assert_eq!(check_url(url, false), Err(Refused::NotPublic), "{url}");
            assert!(check_url(url, true).is_ok(), "{url}");
        }
    }

    #[test]
    fn a_name_with_private_addresses_only_is_refused_and_others_lose_them() {
        let strict = PublicResolver { allow_private: false };
        let private: Vec<SocketAddr> =
            vec!["127.0.0.1:0".parse().unwrap(), "[fd00::1]:0".parse().unwrap()];
        assert_eq!(strict.keep(private.iter().copied()), Err(Refused::NoPublicAddress));
        let public: SocketAddr = "8.8.8.8:0".parse().unwrap();
        assert_eq!(strict.keep(private.into_iter().chain([public])).unwrap(), [public]);
    }
}
