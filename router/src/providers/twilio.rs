//! Twilio's Programmable Messaging: `POST /2010-04-01/Accounts/{AccountSid}/Messages.json`, status callbacks and inbound
//! messages as forms with `X-Twilio-Signature`.
//!
//! Sources: Twilio's pages "Messages resource", "Outbound Message Status in Status Callbacks", "Twilio's request to your
//! incoming message webhook URL", "Webhooks security", and its error dictionary. A request that is answered with 429 "is
//! never processed" (20429). One that times out or is answered with 5xx may have been.

use std::collections::BTreeSet;

use aws_lc_rs::hmac;
use data_encoding::BASE64;
use futures_util::future::BoxFuture;
use protocol::{Reason, UnixMs};
use reqwest::RequestBuilder;
use reqwest::header::CONTENT_TYPE;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use url::form_urlencoded;

use super::http::{self, Answer, ask, short};
use super::{
    Call, Client, Disbelieved, Fault, Found, Incoming, News, Order, Outcome, Provider, Refusal,
    Report, Sought, Stage, sender,
};

/// Where the API is.
pub const BASE: &str = "https://api.twilio.com";

/// The header of a call's signature.
const SIGNATURE: &str = "x-twilio-signature";

/// Twilio keeps a message for so long at most, in seconds; and we let it for so long at least.
const VALIDITY_S: std::ops::RangeInclusive<i64> = 5..=36_000;

/// Messages to one recipient that a look-up goes through, the newest first: a page of them.
const PAGE: &str = "50";

/// An account of Twilio's, as it is used.
#[derive(Debug, Clone)]
pub struct Twilio {
    client: Client,
    account: String,
    service: Option<String>,
    secrets: Secrets,
}

/// What Twilio knows us by.
#[derive(Debug, Clone)]
pub struct Secrets {
    /// The account's token: Twilio signs with it, and it is the password where there is no API key.
    pub auth_token: SecretString,
    /// An API key: its SID and its secret.
    pub api_key: Option<(String, SecretString)>,
}

impl Twilio {
    /// `service` is a messaging service (`MG…`) that sends in the number's place.
    pub fn new(client: Client, account: String, service: Option<String>, secrets: Secrets) -> Self {
        Self { client, account, service, secrets }
    }

    fn authorized(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.secrets.api_key {
            Some((sid, secret)) => request.basic_auth(sid, Some(secret.expose_secret())),
            None => {
                request.basic_auth(&self.account, Some(self.secrets.auth_token.expose_secret()))
            }
        }
    }

    fn messages(&self) -> url::Url {
        self.client.url(&["2010-04-01", "Accounts", &self.account, "Messages.json"])
    }

    fn form(&self, order: &Order) -> String {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("To", order.to.as_str());
        match &self.service {
            Some(service) => form.append_pair("MessagingServiceSid", service),
            None => form.append_pair("From", order.from.as_str()),
        };
        let validity = order.life_s.clamp(*VALIDITY_S.start(), *VALIDITY_S.end());
        form.append_pair("Body", &order.text)
            .append_pair("ValidityPeriod", &validity.to_string())
            .append_pair("StatusCallback", order.report_to.as_str());
        form.finish()
    }

    async fn ask_to_send(&self, order: &Order) -> Outcome {
        let request = self
            .authorized(self.client.post(self.messages()))
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
            .body(self.form(order));
        match ask(request).await {
            Ok(answer) => judge(&answer),
            Err(none) => http::unanswered(none),
        }
    }

    async fn find(&self, sought: &Sought) -> Found {
        let request = if let Some(id) = &sought.id {
            let file = format!("{id}.json");
            let one = ["2010-04-01", "Accounts", &self.account, "Messages", &file];
            self.client.get(self.client.url(&one))
        } else {
            let mut url = self.messages();
            // By the day, in UTC; what was asked for just before midnight may have been sent after it.
            let day = jiff::Timestamp::from_millisecond(sought.asked_at.0)
                .map(|at| at.strftime("%Y-%m-%d").to_string())
                .unwrap_or_default();
            url.query_pairs_mut()
                .append_pair("To", sought.order.to.as_str())
                .append_pair("DateSent>", &day)
                .append_pair("PageSize", PAGE);
            self.client.get(url)
        };
        match ask(self.authorized(request)).await {
            Ok(answer) if answer.is_good() => self.found(sought, &answer.body),
            Ok(answer) if answer.status == 404 => Found::Nothing,
            Ok(answer) => Found::Failed(explain(&answer)),
            Err(none) => Found::Failed(none.detail),
        }
    }

    /// One message by its id; or the only one that can be ours among those to the recipient. Two that could be tell
    /// nothing of either.
    fn found(&self, sought: &Sought, body: &[u8]) -> Found {
        if sought.id.is_some() {
            return match serde_json::from_slice::<Message>(body) {
                Ok(message) => Found::Message(message.report()),
                Err(_) => Found::Failed("an answer that is not understood".to_owned()),
            };
        }
        let Ok(list) = serde_json::from_slice::<List>(body) else {
            return Found::Failed("an answer that is not understood".to_owned());
        };
        let ours = |message: &&Message| {
            let from_us = match &self.service {
                Some(service) => message.messaging_service_sid.as_ref() == Some(service),
                None => message.from.as_deref() == Some(sought.order.from.as_str()),
            };
            let created = message.date_created.as_deref().and_then(rfc2822);
            // Their clock and ours may differ by a little.
            let after = created.is_some_and(|at| at >= sought.asked_at.plus_ms(-CLOCKS_DIFFER_MS));
            let soon = created.is_some_and(|at| at <= sought.asked_at.plus_ms(ASKED_WITHIN_MS));
            from_us && after && soon && message.body.as_deref() == Some(&sought.order.text)
        };
        let mut ours = list.messages.iter().filter(ours);
        match (ours.next(), ours.next()) {
            (Some(one), None) => Found::Message(one.report()),
            (_, _) => Found::Nothing,
        }
    }

    async fn ask_about_account(&self) -> Result<String, String> {
        // The list of messages needs no more rights than sending does, which a restricted key may have alone.
        let mut url = self.messages();
        url.query_pairs_mut().append_pair("PageSize", "1");
        match ask(self.authorized(self.client.get(url))).await {
            Ok(answer) if answer.is_good() => Ok(format!("account {} answers", self.account)),
            Ok(answer) => Err(explain(&answer)),
            Err(none) => Err(none.detail),
        }
    }
}

/// How far two clocks may differ, and how long a request may be on its way.
const CLOCKS_DIFFER_MS: i64 = 5_000;
const ASKED_WITHIN_MS: i64 = 120_000;

impl Provider for Twilio {
    fn send<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Outcome> {
        Box::pin(self.ask_to_send(order))
    }

    fn look_up<'a>(&'a self, sought: &'a Sought) -> BoxFuture<'a, Found> {
        Box::pin(self.find(sought))
    }

    fn test(&self) -> BoxFuture<'_, Result<String, String>> {
        Box::pin(self.ask_about_account())
    }

    fn read(&self, call: &Call<'_>) -> Result<News, Disbelieved> {
        let pairs: Vec<(String, String)> = form_urlencoded::parse(call.body).into_owned().collect();
        let signature = call.headers.get(SIGNATURE).and_then(|value| value.to_str().ok());
        let signature = signature.ok_or(Disbelieved::Signature)?;
        if !signed_by(&self.secrets.auth_token, call.url, &pairs, signature) {
            return Err(Disbelieved::Signature);
        }
        news(&pairs)
    }
}

/// Whether a signature is by the holder of the token, over this address and form.
///
/// The address is the one that Twilio was given; where a port stands in it, Twilio may have left it out, and the other
/// way round.
fn signed_by(
    token: &SecretString,
    url: &url::Url,
    pairs: &[(String, String)],
    signature: &str,
) -> bool {
    let Ok(signature) = BASE64.decode(signature.as_bytes()) else { return false };
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, token.expose_secret().as_bytes());
    [url.to_string(), other_port(url)]
        .iter()
        .any(|url| hmac::verify(&key, signed_text(url, pairs).as_bytes(), &signature).is_ok())
}

/// What Twilio signs: the address, then each field's name and value, by name; a value that is there twice counts once.
fn signed_text(url: &str, pairs: &[(String, String)]) -> String {
    let sorted: BTreeSet<(&str, &str)> =
        pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let mut text = url.to_owned();
    for (name, value) in sorted {
        text.push_str(name);
        text.push_str(value);
    }
    text
}

/// The same address with its port where it has none, and without where it has one.
fn other_port(url: &url::Url) -> String {
    let Some(host) = url.host_str() else { return url.to_string() };
    let (with, without) =
        (format!("{host}:{}", url.port_or_known_default().unwrap_or(443)), host.to_owned());
    let rest = url.as_str().split_once("://").map_or("", |(_, rest)| rest);
    let path = rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("");
    let host = if url.port().is_some() { without } else { with };
    format!("{}://{host}{path}", url.scheme())
}

/// What a form says: `MessageStatus` is there of our messages, `Body` of those to us.
fn news(pairs: &[(String, String)]) -> Result<News, Disbelieved> {
    let field =
        |name: &str| pairs.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
    let id = field("MessageSid").or_else(|| field("SmsSid")).ok_or(Disbelieved::Body)?;
    if let Some(status) = field("MessageStatus")
        && !matches!(status, "receiving" | "received")
    {
        let code = field("ErrorCode").filter(|code| !code.is_empty() && *code != "0");
        let Some(stage) = stage(status, code) else { return Ok(News::Nothing) };
        let detail = code.map(|code| {
            short(&format!("{status}, error {code} {}", field("ErrorMessage").unwrap_or("")))
                .trim_end()
                .to_owned()
        });
        let id = id.to_owned();
        return Ok(News::Report(Report { id, stage, at: None, detail }));
    }
    let from = field("From").and_then(sender).ok_or(Disbelieved::Body)?;
    let to = field("To").ok_or(Disbelieved::Body)?.to_owned();
    let text = field("Body").ok_or(Disbelieved::Body)?.to_owned();
    let files = field("NumMedia").and_then(|count| count.parse().ok()).unwrap_or(0);
    Ok(News::Incoming(Incoming { id: id.to_owned(), from, to, text, at: None, files }))
}

/// The recipient has told this number or messaging service to be left alone.
const OPTED_OUT: &str = "21610";

fn stage(status: &str, code: Option<&str>) -> Option<Stage> {
    Some(match status {
        "accepted" | "scheduled" | "queued" | "sending" => Stage::Waiting,
        "sent" | "partially_delivered" => Stage::Sent,
        "delivered" => Stage::Delivered,
        "read" => Stage::Read,
        "failed" | "undelivered" | "canceled" => {
            Stage::Failed { opted_out: code == Some(OPTED_OUT) }
        }
        _ => return None,
    })
}

#[derive(Deserialize)]
struct List {
    messages: Vec<Message>,
}

/// Of a message resource, what matters here.
#[derive(Deserialize)]
struct Message {
    sid: String,
    status: String,
    from: Option<String>,
    messaging_service_sid: Option<String>,
    body: Option<String>,
    date_created: Option<String>,
    error_code: Option<i64>,
    #[serde(rename = "error_message")]
    error_words: Option<String>,
}

impl Message {
    fn report(&self) -> Report {
        let code = self.error_code.map(|code| code.to_string());
        let words = self.error_words.as_deref().unwrap_or("");
        Report {
            id: self.sid.clone(),
            // A word of tomorrow says that the message is there, and no more.
            stage: stage(&self.status, code.as_deref()).unwrap_or(Stage::Waiting),
            at: None,
            detail: code.map(|code| short(format!("error {code} {words}").trim_end())),
        }
    }
}

fn rfc2822(text: &str) -> Option<UnixMs> {
    let at = jiff::fmt::rfc2822::parse(text).ok()?;
    Some(UnixMs(at.timestamp().as_millisecond()))
}

/// Twilio's error body.
#[derive(Deserialize)]
struct Problem {
    code: Option<i64>,
    message: Option<String>,
}

fn explain(answer: &Answer) -> String {
    let said = serde_json::from_slice::<Problem>(&answer.body).ok();
    let code = said.as_ref().and_then(|said| said.code);
    let words = said.and_then(|said| said.message).unwrap_or_default();
    let code = code.map(|code| format!(", error {code}")).unwrap_or_default();
    short(format!("answered {}{code} {words}", answer.status).trim_end())
}

/// What an answer to a request to send means.
fn judge(answer: &Answer) -> Outcome {
    if answer.is_good() {
        return match serde_json::from_slice::<Message>(&answer.body) {
            Ok(message) => Outcome::Accepted { id: message.sid },
            Err(_) => {
                Outcome::Unknown { detail: format!("answered {} without a message", answer.status) }
            }
        };
    }
    if let Some(outcome) = http::judge_status(answer) {
        return outcome;
    }
    let code = serde_json::from_slice::<Problem>(&answer.body).ok().and_then(|said| said.code);
    let (fault, reason) = match code {
        Some(21_610) => (Fault::OptedOut, Reason::OptedOut),
        // No such number, not a mobile one, a landline.
        Some(21_211 | 21_614 | 21_635) => (Fault::Message, Reason::BadAddress),
        // No text, or too long a one.
        Some(21_602 | 21_617) => (Fault::Message, Reason::BadContent),
        // A country that is not allowed, or one that cannot be reached from this number.
        Some(21_408 | 21_612) => (Fault::Unreachable, Reason::ProviderRefused),
        // The number that is sent from is none, not ours, or cannot send: so it is for every message.
        Some(21_212 | 21_603 | 21_606 | 21_659 | 21_660) => {
            (Fault::Provider, Reason::ProviderRefused)
        }
        Some(_) | None => (http::fault_of_status(answer.status), Reason::ProviderRefused),
    };
    Outcome::NotSent(Refusal { fault, reason, detail: explain(answer) })
}

#[cfg(test)]
mod tests;
