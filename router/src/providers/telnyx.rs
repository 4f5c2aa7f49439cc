//! Telnyx Messaging: `POST /v2/messages`, reports and inbound messages as JSON with `telnyx-signature-ed25519`.
//!
//! Sources: Telnyx's pages "Send a message", "Retrieve a message", "Receiving webhooks for messaging", "Messaging error
//! code reference" and errors 40300 (409: the recipient has sent STOP) and 40310 (400: no valid number).

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use data_encoding::BASE64;
use futures_util::future::BoxFuture;
use protocol::Reason;
use reqwest::header::CONTENT_TYPE;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;

use super::http::{self, Answer, ask, short};
use super::{
    Call, Client, Disbelieved, Fault, Found, Incoming, News, Order, Outcome, Provider, Refusal,
    Report, Sought, Stage, sender,
};

/// Where the API is.
pub const BASE: &str = "https://api.telnyx.com";

const SIGNATURE: &str = "telnyx-signature-ed25519";
const TIMESTAMP: &str = "telnyx-timestamp";

/// How far a call's time may be from ours.
const TOLERANCE_MS: i64 = 300_000;

/// Bytes of a public key.
const PUBLIC_KEY_BYTES: usize = 32;

/// An account of Telnyx's, as it is used.
#[derive(Debug, Clone)]
pub struct Telnyx {
    client: Client,
    api_key: SecretString,
    profile: Option<String>,
    public_key: Vec<u8>,
}

/// A public key that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the account's public key: 32 bytes in base64, as the portal shows it")]
pub struct BadPublicKey;

/// Reads the account's public key.
pub fn public_key(text: &str) -> Result<Vec<u8>, BadPublicKey> {
    let bytes = BASE64.decode(text.trim().as_bytes()).map_err(|_not_base64| BadPublicKey)?;
    if bytes.len() == PUBLIC_KEY_BYTES { Ok(bytes) } else { Err(BadPublicKey) }
}

impl Telnyx {
    /// `profile` is a messaging profile, where the number's own one is not meant.
    pub fn new(
        client: Client,
        api_key: SecretString,
        profile: Option<String>,
        public_key: Vec<u8>,
    ) -> Self {
        Self { client, api_key, profile, public_key }
    }

    async fn ask_to_send(&self, order: &Order) -> Outcome {
        let mut body = serde_json::json!({
            "from": order.from,
            "to": order.to,
            "text": order.text,
            "type": "SMS",
            "webhook_url": order.report_to.as_str(),
            "use_profile_webhooks": false,
            "tags": [order.message],
        });
        if let (Some(profile), Some(fields)) = (&self.profile, body.as_object_mut()) {
            fields.insert("messaging_profile_id".to_owned(), profile.as_str().into());
        }
        let request = self
            .client
            .post(self.client.url(&["v2", "messages"]))
            .bearer_auth(self.api_key.expose_secret())
            .header(CONTENT_TYPE, "application/json")
            .body(body.to_string());
        match ask(request).await {
            Ok(answer) => judge(&answer),
            Err(none) => http::unanswered(none),
        }
    }

    /// Telnyx looks messages up by their ids alone.
    async fn find(&self, sought: &Sought) -> Found {
        let Some(id) = &sought.id else { return Found::Nothing };
        let url = self.client.url(&["v2", "messages", id]);
        let request = self.client.get(url).bearer_auth(self.api_key.expose_secret());
        match ask(request).await {
            Ok(answer) if answer.is_good() => {
                match serde_json::from_slice::<Data<Payload>>(&answer.body) {
                    Ok(body) => {
                        let stage = body.data.stage().unwrap_or(Stage::Waiting);
                        Found::Message(body.data.report(stage))
                    }
                    Err(_) => Found::Failed("an answer that is not understood".to_owned()),
                }
            }
            Ok(answer) if answer.status == 404 => Found::Nothing,
            Ok(answer) => Found::Failed(explain(&answer)),
            Err(none) => Found::Failed(none.detail),
        }
    }

    async fn ask_about_account(&self) -> Result<String, String> {
        let mut url = self.client.url(&["v2", "messaging_profiles"]);
        url.query_pairs_mut().append_pair("page[size]", "1");
        let request = self.client.get(url).bearer_auth(self.api_key.expose_secret());
        match ask(request).await {
            Ok(answer) if answer.is_good() => Ok("the account answers".to_owned()),
            Ok(answer) => Err(explain(&answer)),
            Err(none) => Err(none.detail),
        }
    }
}

impl Provider for Telnyx {
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
        let header = |name: &str| call.headers.get(name).and_then(|value| value.to_str().ok());
        let signature = header(SIGNATURE)
            .and_then(|text| BASE64.decode(text.as_bytes()).ok())
            .ok_or(Disbelieved::Signature)?;
        let stamp = header(TIMESTAMP).ok_or(Disbelieved::Signature)?;
        let seconds: i64 = stamp.parse().map_err(|_no_number| Disbelieved::Signature)?;
        let mut signed = format!("{stamp}|").into_bytes();
        signed.extend_from_slice(call.body);
        UnparsedPublicKey::new(&ED25519, &self.public_key)
            .verify(&signed, &signature)
            .map_err(|_unspecified| Disbelieved::Signature)?;
        // Asked after the signature: who has none learns nothing of our clock.
        if seconds.saturating_mul(1_000).abs_diff(call.now.0) > TOLERANCE_MS.unsigned_abs() {
            return Err(Disbelieved::Time);
        }
        news(call.body)
    }
}

#[derive(Deserialize)]
struct Data<T> {
    data: T,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "event_type")]
    kind: String,
    occurred_at: Option<String>,
    payload: serde_json::Value,
}

/// Of a message, what matters here.
#[derive(Deserialize)]
struct Payload {
    id: String,
    #[serde(default)]
    to: Vec<Party>,
    from: Option<Party>,
    text: Option<String>,
    #[serde(default)]
    media: Vec<serde_json::Value>,
    #[serde(default)]
    errors: Vec<Problem>,
}

#[derive(Deserialize)]
struct Party {
    phone_number: Option<String>,
    status: Option<String>,
}

impl Payload {
    fn stage(&self) -> Option<Stage> {
        let opted_out = self.errors.iter().any(|error| error.is(OPTED_OUT));
        Some(match self.to.first()?.status.as_deref()? {
            "scheduled" | "queued" | "sending" => Stage::Waiting,
            // The carrier gives no receipt: sent is all that will ever be known.
            "sent" | "delivery_unconfirmed" => Stage::Sent,
            "delivered" => Stage::Delivered,
            "expired" | "sending_failed" | "delivery_failed" | "cancelled" => {
                Stage::Failed { opted_out }
            }
            _ => return None,
        })
    }

    fn report(&self, stage: Stage) -> Report {
        let detail = self.errors.first().map(Problem::words);
        Report { id: self.id.clone(), stage, at: None, detail }
    }
}

fn news(body: &[u8]) -> Result<News, Disbelieved> {
    let Data { data: event } =
        serde_json::from_slice::<Data<Event>>(body).map_err(|_no_event| Disbelieved::Body)?;
    let at = event.occurred_at.as_deref().and_then(http::time);
    let kind = event.kind.as_str();
    if !matches!(kind, "message.sent" | "message.finalized" | "message.received") {
        return Ok(News::Nothing);
    }
    let payload: Payload =
        serde_json::from_value(event.payload).map_err(|_no_message| Disbelieved::Body)?;
    if kind != "message.received" {
        return Ok(match payload.stage() {
            Some(stage) => News::Report(Report { at, ..payload.report(stage) }),
            None => News::Nothing,
        });
    }
    let number = |party: Option<&Party>| party.and_then(|party| party.phone_number.clone());
    let from = number(payload.from.as_ref()).and_then(|from| sender(&from));
    let to = number(payload.to.first()).ok_or(Disbelieved::Body)?;
    Ok(News::Incoming(Incoming {
        from: from.ok_or(Disbelieved::Body)?,
        to,
        text: payload.text.unwrap_or_default(),
        at,
        files: payload.media.len(),
        id: payload.id,
    }))
}

/// The recipient has sent STOP to this number.
const OPTED_OUT: &str = "40300";

#[derive(Deserialize)]
struct Problems {
    errors: Vec<Problem>,
}

#[derive(Deserialize)]
struct Problem {
    code: Option<serde_json::Value>,
    title: Option<String>,
    detail: Option<String>,
}

impl Problem {
    /// Codes come as text, and as numbers from some parts of the API.
    fn code(&self) -> String {
        match &self.code {
            Some(serde_json::Value::String(code)) => code.clone(),
            Some(code) => code.to_string(),
            None => String::new(),
        }
    }

    fn is(&self, code: &str) -> bool {
        self.code() == code
    }

    fn words(&self) -> String {
        let words = self.detail.as_deref().or(self.title.as_deref()).unwrap_or("");
        short(format!("error {} {words}", self.code()).trim_end())
    }
}

fn problems(answer: &Answer) -> Vec<Problem> {
    serde_json::from_slice::<Problems>(&answer.body).map(|said| said.errors).unwrap_or_default()
}

fn explain(answer: &Answer) -> String {
    let words = problems(answer).first().map(|error| format!(", {}", error.words()));
    short(&format!("answered {}{}", answer.status, words.unwrap_or_default()))
}

/// What an answer to a request to send means.
fn judge(answer: &Answer) -> Outcome {
    if answer.is_good() {
        return match serde_json::from_slice::<Data<Payload>>(&answer.body) {
            Ok(body) => Outcome::Accepted { id: body.data.id },
            Err(_) => {
                Outcome::Unknown { detail: format!("answered {} without a message", answer.status) }
            }
        };
    }
    if let Some(outcome) = http::judge_status(answer) {
        return outcome;
    }
    let problems = problems(answer);
    let says = |codes: &[&str]| problems.iter().any(|one| codes.iter().any(|code| one.is(code)));
    let (fault, reason) = if says(&[OPTED_OUT]) {
        (Fault::OptedOut, Reason::OptedOut)
    } else if says(&["40001", "40012", "40310"]) {
        (Fault::Message, Reason::BadAddress)
    } else if says(&["40009"]) {
        (Fault::Message, Reason::BadContent)
    } else if says(&["40309"]) {
        // A country that the profile does not allow.
        (Fault::Unreachable, Reason::ProviderRefused)
    } else if says(&["40013", "40305", "40312"]) {
        // The number that is sent from, or its profile: so it is for every message.
        (Fault::Provider, Reason::ProviderRefused)
    } else {
        (http::fault_of_status(answer.status), Reason::ProviderRefused)
    };
    Outcome::NotSent(Refusal { fault, reason, detail: explain(answer) })
}

#[cfg(test)]
mod tests;
