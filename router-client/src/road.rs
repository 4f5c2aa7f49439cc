//! The way to the other end of a link: the address, the proxy before it, TLS, the upgrade. Whoever dials goes it.

use std::sync::Arc;

use protocol::{
    limits,
    link::{Authorization, CLOCK_SKEW, CLOCK_SKEW_MAX_S, HELLO_WITHIN_MS, PATH, PROBLEM_HEADER},
};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::{Duration, timeout},
};
use tokio_rustls::TlsConnector;
use tokio_tungstenite::{
    WebSocketStream, client_async_with_config,
    tungstenite::{
        self,
        client::IntoClientRequest,
        http::{HeaderMap, HeaderValue, Uri, header},
        protocol::WebSocketConfig,
    },
};
use url::{Host, Url};

use crate::{
    link::LinkConfigError,
    proxy::{Proxies, Proxy, ProxyFailure},
    session::Ended,
    tls::{self, TlsRoots},
};

/// From the first packet to the answered upgrade.
pub const OPEN_WITHIN: Duration = Duration::from_millis(HELLO_WITHIN_MS);
/// One address of the other end; the next is tried when this one is deaf, as IPv6 is in some networks.
const ADDRESS_WITHIN: Duration = Duration::from_secs(3);
/// The library's write buffer at most: one frame and control frames. Its own default has no bound.
const WRITE_BUFFER_BYTES_MAX: usize = 4 * limits::FRAME_BYTES_MAX;
/// Of a stranger's words, so many are shown.
const SHOWN_CHARS_MAX: usize = 200;

/// Something that carries a WebSocket.
pub trait Carrier: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Carrier for T {}

/// An open WebSocket over whatever carries it.
pub type Opened = WebSocketStream<Box<dyn Carrier>>;

/// The way to one address.
pub struct Road {
    uri: Uri,
    host: String,
    port: u16,
    proxy: Option<Proxy>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl std::fmt::Debug for Road {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Road")
            .field("uri", &self.uri)
            .field("proxy", &self.proxy)
            .finish_non_exhaustive()
    }
}

impl Road {
    /// The way to the link that is served at `url`.
    pub fn new(url: &Url, roots: &TlsRoots, proxies: &Proxies) -> Result<Self, LinkConfigError> {
        let bad = |detail| LinkConfigError::Router { url: url.to_string(), detail };
        let secure = match url.scheme() {
            "https" | "wss" => true,
            "http" | "ws" => false,
            _ => return Err(bad("the scheme must be https, wss, http or ws")),
        };
        let host = match url.host() {
            Some(Host::Domain(domain)) => domain.to_owned(),
            Some(Host::Ipv4(ip)) => ip.to_string(),
            Some(Host::Ipv6(ip)) => ip.to_string(),
            None => return Err(bad("there is no host in it")),
        };
        let port = url.port().unwrap_or(if secure { 443 } else { 80 });
        let uri = upgrade_uri(url, secure).ok_or_else(|| bad("it cannot be dialled"))?;
        let proxy = proxies
            .toward(&host, port, secure, |name| std::env::var(name).ok())
            .map_err(|(variable, source)| LinkConfigError::Proxy { variable, source })?;
        if let Some(proxy) = &proxy {
            tracing::info!(%proxy, host, "dialled through a proxy");
        }
        let tls = if secure {
            let Ok(name) = ServerName::try_from(host.clone()) else {
                return Err(bad("its host is not a name that a certificate can carry"));
            };
            Some((TlsConnector::from(Arc::new(tls::client_config(roots)?)), name))
        } else {
            None
        };
        Ok(Self { uri, host, port, proxy, tls })
    }

    /// Goes it once, with these headers on the upgrade request. Gives the headers of the answer, too. The caller says how
    /// long that may take.
    pub async fn open(&self, headers: HeaderMap) -> Result<(Opened, HeaderMap), Ended> {
        let mut stream = match &self.proxy {
            None => connect(&self.host, self.port).await.map_err(Ended::Connect)?,
            Some(proxy) => connect(proxy.host(), proxy.port())
                .await
                .map_err(|why| through(proxy, ProxyFailure::Unreachable(why)))?,
        };
        // Small frames must not wait for each other.
        stream.set_nodelay(true).map_err(|error| Ended::Connect(error.to_string()))?;
        if let Some(proxy) = &self.proxy {
            let tunnel = proxy.tunnel(&mut stream, &self.host, self.port).await;
            tunnel.map_err(|why| through(proxy, why))?;
        }
        let carrier: Box<dyn Carrier> = match &self.tls {
            None => Box::new(stream),
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), stream).await;
                Box::new(tls.map_err(|error| Ended::Tls(tls::explain(&error)))?)
            }
        };
        upgrade(carrier, &self.uri, headers).await
    }
}

pub(crate) fn upgrade_uri(url: &Url, secure: bool) -> Option<Uri> {
    let scheme = if secure { "wss" } else { "ws" };
    let host = url.host_str()?;
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let base = url.path().trim_end_matches('/');
    format!("{scheme}://{host}{port}{base}{PATH}").parse().ok()
}

fn through(proxy: &Proxy, why: ProxyFailure) -> Ended {
    Ended::Proxy { proxy: proxy.to_string(), why }
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let addresses =
        tokio::net::lookup_host((host, port)).await.map_err(|error| format!("{host}: {error}"))?;
    let mut last = format!("{host} has no address");
    for address in addresses {
        match timeout(ADDRESS_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = format!("{address}: {error}"),
            Err(_) => last = format!("{address}: no answer"),
        }
    }
    Err(last)
}

pub(crate) async fn upgrade<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    uri: &Uri,
    headers: HeaderMap,
) -> Result<(WebSocketStream<S>, HeaderMap), Ended> {
    let broken = |error: tungstenite::Error| Ended::Handshake(error.to_string());
    let signed_s = headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok()?.parse::<Authorization>().ok())
        .map(|authorization| authorization.ts);
    let mut request = uri.into_client_request().map_err(broken)?;
    request.headers_mut().extend(headers);
    match client_async_with_config(request, stream, Some(web_socket_config())).await {
        Ok((socket, response)) => Ok((socket, response.into_parts().0.headers)),
        Err(tungstenite::Error::Http(response)) => {
            let status = response.status();
            if status.is_success() || status.is_redirection() {
                return Err(Ended::Intercepted {
                    status: status.as_u16(),
                    location: response.headers().get(header::LOCATION).and_then(shown),
                });
            }
            let skewed = clock_skew(status.as_u16(), response.headers(), signed_s);
            Err(skewed.unwrap_or(Ended::Upgrade { status: status.as_u16() }))
        }
        Err(error) => Err(broken(error)),
    }
}

/// Whether a refusal is for the time that was signed. An older other side does not say so; the date of its answer does.
fn clock_skew(status: u16, answer: &HeaderMap, signed_s: Option<i64>) -> Option<Ended> {
    let named = |name: &str| answer.get(name).and_then(|value| value.to_str().ok());
    let date_s = named(header::DATE.as_str())
        .and_then(|date| jiff::fmt::rfc2822::parse(date).ok())
        .map(|date| date.timestamp().as_second());
    let ahead_s = signed_s.zip(date_s).map(|(signed_s, date_s)| signed_s.saturating_sub(date_s));
    let far = ahead_s.is_some_and(|s| s.unsigned_abs() > CLOCK_SKEW_MAX_S.unsigned_abs());
    let said = named(PROBLEM_HEADER) == Some(CLOCK_SKEW);
    (status == 401 && (said || far)).then_some(Ended::ClockSkew { ahead_s })
}

/// What a stranger says, for a log: short and without what could make lines or colours of its own.
fn shown(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    Some(text.chars().filter(|char| !char.is_control()).take(SHOWN_CHARS_MAX).collect())
}

fn web_socket_config() -> WebSocketConfig {
    WebSocketConfig::default()
        .max_message_size(Some(limits::FRAME_BYTES_MAX))
        .max_frame_size(Some(limits::FRAME_BYTES_MAX))
        .max_write_buffer_size(WRITE_BUFFER_BYTES_MAX)
}

/// A header's value that no log shows.
pub fn secret(value: &str) -> Result<HeaderValue, Ended> {
    let mut value =
        HeaderValue::from_str(value).map_err(|error| Ended::Handshake(error.to_string()))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_for_the_time_is_told_from_others() {
        type Case = (u16, &'static [(&'static str, &'static str)], Option<i64>, Option<Ended>);
        // 2026-11-28 05:00:00 UTC.
        const AT_S: i64 = 1_795_842_000;
        const DATE: (&str, &str) = ("date", "Sat, 28 Nov 2026 05:00:00 GMT");
        const SAID: (&str, &str) = (PROBLEM_HEADER, CLOCK_SKEW);
        let skew = |ahead_s| Some(Ended::ClockSkew { ahead_s });
        let cases: [Case; 9] = [
            (401, &[DATE], Some(AT_S), None),
            (401, &[DATE], Some(AT_S - 60), None),
            (401, &[DATE], Some(AT_S - 61), skew(Some(-61))),
            (401, &[DATE], Some(AT_S + 3_600), skew(Some(3_600))),
            (401, &[DATE, SAID], Some(AT_S), skew(Some(0))),
            (401, &[SAID], Some(AT_S), skew(None)),
            (401, &[(PROBLEM_HEADER, "unauthorized")], Some(AT_S), None),
            (401, &[("date", "yesterday")], Some(0), None),
            (503, &[DATE, SAID], Some(0), None),
        ];
        for (status, headers, signed_s, expected) in cases {
            let mut answer = HeaderMap::new();
            for (name, value) in headers {
                answer.insert(*name, HeaderValue::from_static(value));
            }
            assert_eq!(clock_skew(status, &answer, signed_s), expected, "{headers:?} {signed_s:?}");
        }
        assert!(skew(Some(-61)).unwrap().to_string().contains("61 s behind"));
    }

    #[test]
    fn addresses_that_cannot_be_dialled_are_refused_with_a_reason() {
        let road = |address: &str| {
            let pem = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/ca.pem");
            Road::new(&address.parse().unwrap(), &TlsRoots::File(pem.into()), &Proxies::Direct)
        };
        let refused = road("ftp://x").unwrap_err();
        assert!(refused.to_string().contains("scheme"), "{refused}");
        for (address, port) in
            [("http://x", 80), ("https://x", 443), ("ws://x:1", 1), ("wss://[::1]:7070/b", 7_070)]
        {
            assert_eq!(road(address).unwrap().port, port);
        }
    }
}
