//! The way to the router through an HTTP proxy: which one, and the request that opens the tunnel (`CONNECT`, RFC 9110
//! section 9.3.6).
//!
//! A proxy is named in the configuration, or by `HTTPS_PROXY` and `NO_PROXY` as other programs understand them. What it
//! answers comes from whoever owns the network, so it is bounded and only its status is believed.

use std::{fmt, net::IpAddr, str::FromStr};

use data_encoding::BASE64;
use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::{Duration, timeout},
};
use url::Url;

/// What a proxy may answer before the tunnel begins; real ones need some hundred bytes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// The proxy makes its own connection to the router within this; what is left of the attempt is for TLS.
const ANSWER_WITHIN: Duration = Duration::from_secs(6);
/// Port of a proxy whose address names none.
const PORT_DEFAULT: u16 = 80;

/// Which proxy is used, as it is configured.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proxies {
    /// `HTTPS_PROXY`, unless `NO_PROXY` names the router. It counts for TLS only, and never for this machine itself.
    #[default]
    Environment,
    /// None, whatever the environment says.
    Direct,
    /// This one, always.
    Through(Proxy),
}

/// A proxy that speaks HTTP. Neither `Debug` nor `Display` shows its credentials.
#[derive(Clone)]
pub struct Proxy {
    host: String,
    port: u16,
    credentials: Option<Credentials>,
}

#[derive(Clone)]
struct Credentials {
    user: String,
    password: SecretString,
}

/// What is wrong with a proxy's address. The address is not repeated: a password may be in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyError {
    /// Not an address at all.
    #[error("is no address of a proxy, such as http://proxy.example:3128")]
    NotAnAddress,
    /// Another kind of proxy.
    #[error("names a proxy that is not spoken to by plain HTTP: only http:// is supported")]
    Scheme,
    /// The credentials are percent-encoded, and what comes out is not text.
    #[error("has credentials that are not percent-encoded UTF-8")]
    Credentials,
}

/// Why there is no tunnel through a proxy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProxyFailure {
    /// It cannot be reached.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// It answered with another status than 2xx.
    #[error("answered HTTP {status}{}", remedy(*status))]
    Refused {
        /// The status.
        status: u16,
    },
    /// It broke off, was too slow, or said what no proxy says.
    #[error("{0}: is it an HTTP proxy that allows CONNECT?")]
    Odd(String),
}

/// What can be done about a refused tunnel.
fn remedy(status: u16) -> &'static str {
    match status {
        407 => {
            ": it wants other credentials; put them into its address, http://USER:PASSWORD@HOST:PORT, percent-encoded"
        }
        400 | 403 | 405 | 501 => {
            ": it does not open tunnels to the router; let it allow CONNECT to the router's host and port, or name the \
             router in NO_PROXY"
        }
        502..=504 => ": it cannot reach the router itself",
        _ => "",
    }
}

impl ProxyFailure {
    /// True when only a person can change the answer, and asking again soon could lock an account.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { status: 403 | 407 })
    }
}

impl FromStr for Proxies {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "environment" => Ok(Self::Environment),
            "none" => Ok(Self::Direct),
            address => address.parse().map(Self::Through),
        }
    }
}

impl FromStr for Proxy {
    type Err = ProxyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        // Many write the host and port alone.
        let whole = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
        let Ok(url) = whole.parse::<Url>() else { return Err(ProxyError::NotAnAddress) };
        if url.scheme() != "http" {
            return Err(ProxyError::Scheme);
        }
        let host = url.host_str().ok_or(ProxyError::NotAnAddress)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let port = url.port().unwrap_or(PORT_DEFAULT);
        let plain = |text| percent_decoded(text).ok_or(ProxyError::Credentials);
        let credentials = match (url.username(), url.password()) {
            ("", None) => None,
            (user, password) => Some(Credentials {
                user: plain(user)?,
                password: plain(password.unwrap_or_default())?.into(),
            }),
        };
        Ok(Self { host, port, credentials })
    }
}

/// `%41` is `A`. `Url` has encoded what was not, so whatever else is there is ASCII.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        bytes.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
    }
    String::from_utf8(bytes).ok()
}

impl PartialEq for Proxy {
    fn eq(&self, other: &Self) -> bool {
        (&self.host, self.port, self.authorization())
            == (&other.host, other.port, other.authorization())
    }
}

impl Eq for Proxy {}

impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&authority(&self.host, self.port))
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("address", &self.to_string())
            .field("has_credentials", &self.credentials.is_some())
            .finish_non_exhaustive()
    }
}

/// `host:port`, as `CONNECT` wants it.
fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

impl Proxies {
    /// The proxy on the way to a router. `variable` looks into the environment. A wrong address there is told with the
    /// variable's name.
    pub fn toward(
        &self,
        host: &str,
        port: u16,
        secure: bool,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Proxy>, (&'static str, ProxyError)> {
        match self {
            Self::Direct => return Ok(None),
            Self::Through(proxy) => return Ok(Some(proxy.clone())),
            Self::Environment => {}
        }
        let set = |name: &'static str| {
            variable(name).filter(|value| !value.trim().is_empty()).map(|value| (name, value))
        };
        let either = |upper, lower| set(upper).or_else(|| set(lower));
        let Some((name, address)) = either("HTTPS_PROXY", "https_proxy") else { return Ok(None) };
        let excepted = either("NO_PROXY", "no_proxy").map(|(_, list)| list).unwrap_or_default();
        if !secure || is_this_machine(host) || is_excepted(&excepted, host, port) {
            return Ok(None);
        }
        address.parse().map(Some).map_err(|error| (name, error))
    }
}

fn is_this_machine(host: &str) -> bool {
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether `NO_PROXY` names a host: `*`, a name with everything below it, an address, a network (`10.0.0.0/8`); each but
/// `*` may end with a port.
fn is_excepted(list: &str, host: &str, port: u16) -> bool {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    let address = host.parse::<IpAddr>().ok();
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        let (name, only) = split_port(entry);
        if only.is_some_and(|only| only != port) {
            return false;
        }
        match (address, name.split_once('/')) {
            (Some(address), Some((network, bits))) => {
                network.parse().is_ok_and(|network| is_within(address, network, bits))
            }
            (Some(address), None) => name.parse() == Ok(address),
            (None, Some(_)) => false,
            (None, None) => {
                let name = name.trim_start_matches("*.").trim_matches('.').to_ascii_lowercase();
                !name.is_empty()
                    && (host == name
                        || host.strip_suffix(&name).is_some_and(|above| above.ends_with('.')))
            }
        }
    })
}

/// An entry without its port. `::1` has none, `[::1]:443` has.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    let bare = |name: &'_ str| name.len() - name.trim_start_matches('[').len();
    if let Some((name, rest)) = entry.rsplit_once(']') {
        let name = name.get(bare(name)..).unwrap_or_default();
        return (name, rest.strip_prefix(':').and_then(|port| port.parse().ok()));
    }
    match entry.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') => match port.parse() {
            Ok(port) => (name, Some(port)),
            Err(_) => (entry, None),
        },
        Some(_) | None => (entry, None),
    }
}

fn is_within(address: IpAddr, network: IpAddr, bits: &str) -> bool {
    let Ok(bits) = bits.parse::<u32>() else { return false };
    let same = |address: u128, network: u128, width: u32| {
        bits <= width && (bits == 0 || (address ^ network) >> (width - bits) == 0)
    };
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            same(u32::from(address).into(), u32::from(network).into(), 32)
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => same(address.into(), network.into(), 128),
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
    }
}

impl Proxy {
    /// Where it is.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// At which port.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its address, user and password, for a library that wants them apart.
    pub fn parts(&self) -> (String, Option<(&str, &str)>) {
        let credentials = self.credentials.as_ref();
        let credentials = credentials.map(|it| (it.user.as_str(), it.password.expose_secret()));
        (format!("http://{self}"), credentials)
    }

    fn authorization(&self) -> Option<String> {
        let Credentials { user, password } = self.credentials.as_ref()?;
        let plain = format!("{user}:{}", password.expose_secret());
        Some(format!("Basic {}", BASE64.encode(plain.as_bytes())))
    }

    fn request(&self, host: &str, port: u16) -> String {
        let target = authority(host, port);
        let credentials = self
            .authorization()
            .map(|value| format!("Proxy-Authorization: {value}\r\n"))
            .unwrap_or_default();
        format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n{credentials}\r\n")
    }

    /// Asks for a tunnel over a connection to the proxy. Not one byte of the tunnel itself is taken.
    pub(crate) async fn tunnel<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        host: &str,
        port: u16,
    ) -> Result<(), ProxyFailure> {
        let ask = async {
            stream.write_all(self.request(host, port).as_bytes()).await?;
            stream.flush().await?;
            let mut answer = Vec::new();
            while !answer.ends_with(b"\r\n\r\n") {
                if answer.len() >= ANSWER_BYTES_MAX {
                    return Ok(None);
                }
                // Byte by byte: what follows belongs to the router.
                answer.push(stream.read_u8().await?);
            }
            Ok(Some(answer))
        };
        let answer: std::io::Result<_> = timeout(ANSWER_WITHIN, ask).await.map_err(|_late| {
            ProxyFailure::Odd(format!("gave no answer within {} ms", ANSWER_WITHIN.as_millis()))
        })?;
        match answer {
            Ok(Some(answer)) => match status(&answer) {
                Some(200..=299) => Ok(()),
                Some(status) => Err(ProxyFailure::Refused { status }),
                None => Err(ProxyFailure::Odd("gave an answer that is not HTTP".to_owned())),
            },
            Ok(None) => {
                Err(ProxyFailure::Odd(format!("answered with more than {ANSWER_BYTES_MAX} bytes")))
            }
            Err(error) => Err(ProxyFailure::Odd(format!("broke off before it answered ({error})"))),
        }
    }
}

/// The status of an answer, from its first line: `HTTP/1.1 200 Connection established`.
fn status(answer: &[u8]) -> Option<u16> {
    let line = answer.split(|byte| *byte == b'\r').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let rest = line.strip_prefix("HTTP/1.")?.get(1..)?.strip_prefix(' ')?;
    let digits = rest.split(' ').next()?;
    (digits.len() == 3).then(|| digits.parse().ok()).flatten()
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
