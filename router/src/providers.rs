//! Providers of SMS: Twilio and Telnyx, for what no phone can send. Off by default.
//!
//! A [`Provider`] makes one attempt; whether and when there is another is decided outside, by the same rules as for
//! phones. What came of an attempt is one of three things ([`Outcome`]): the provider has it and gave it an id; it was
//! surely not sent, so that it may be tried elsewhere; or nobody can tell, in which case it is never sent again by itself
//! and settled by the provider's own report, or by looking it up.
//!
//! iMessage and RCS never come here: who is asked, and why not, is [`choice`]. A provider that fails is left alone for a
//! while ([`breaker`]). Its credentials are sealed in the store ([`seal`]).

pub mod breaker;
pub mod choice;
pub mod desk;
pub(crate) mod http;
pub(crate) mod record;
pub mod seal;
pub mod telnyx;
pub mod twilio;
pub(crate) mod worker;

use axum::http::HeaderMap;
use futures_util::future::BoxFuture;
use protocol::{E164, MessageId, Reason, Recipient, UnixMs};
use url::Url;

pub use self::desk::Providers;
pub use self::http::{Client, Limits};
pub(crate) use self::worker::start;

/// One SMS to be sent. No `Debug` of its text: it would stand in a log one day.
#[derive(Clone, PartialEq, Eq)]
pub struct Order {
    /// Which message.
    pub message: MessageId,
    /// Which attempt.
    pub attempt: u32,
    /// Whom it goes to.
    pub to: E164,
    /// The number that it comes from.
    pub from: E164,
    /// Its text.
    pub text: String,
    /// How long the provider may keep it before it is too late, in seconds.
    pub life_s: i64,
    /// Where the provider reports.
    pub report_to: Url,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Order")
            .field("message", &self.message)
            .field("attempt", &self.attempt)
            .finish_non_exhaustive()
    }
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The provider has it.
    Accepted {
        /// By which id the provider knows it.
        id: String,
    },
    /// It was surely not sent.
    NotSent(Refusal),
    /// It may have been sent or not.
    Unknown {
        /// What is known, for people.
        detail: String,
    },
}

/// Why a provider has surely not sent a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Whose fault it is.
    pub fault: Fault,
    /// The word for it.
    pub reason: Reason,
    /// The provider's code and words, for people; never the text.
    pub detail: String,
}

/// Whose fault it is that a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The message's: nobody else would send it either.
    Message,
    /// The recipient has told this provider to be left alone.
    OptedOut,
    /// The provider's, or its settings': another one may send it. It is likely to refuse the next one as well.
    Provider,
    /// The provider's for this message alone: it does not go where this one is to go, or not from this number. Another one
    /// may send it, and its API does what it should.
    Unreachable,
    /// Nobody's: it was asked too often, and says when to come back.
    Busy {
        /// For how long it wants to be left alone, where it says so.
        wait_ms: Option<i64>,
    },
}

/// How far a message has come by the provider's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It waits at the provider.
    Waiting,
    /// The carrier has it.
    Sent,
    /// It reached the recipient.
    Delivered,
    /// The recipient has read it.
    Read,
    /// It was not delivered and will not be.
    Failed {
        /// Because the recipient has told the provider to be left alone.
        opted_out: bool,
    },
}

/// What a provider says of one of our messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// By which id the provider knows it.
    pub id: String,
    /// How far it has come.
    pub stage: Stage,
    /// When, by the provider's clock, where it says so.
    pub at: Option<UnixMs>,
    /// The provider's code and words, where something went wrong.
    pub detail: Option<String>,
}

/// A message that somebody has written to a provider's number. No `Debug`: it has a text.
#[derive(Clone, PartialEq, Eq)]
pub struct Incoming {
    /// By which id the provider knows it.
    pub id: String,
    /// Who wrote it.
    pub from: Recipient,
    /// To which number.
    pub to: String,
    /// What was written.
    pub text: String,
    /// When, by the provider's clock, where it says so.
    pub at: Option<UnixMs>,
    /// Files that came with it; they are not fetched.
    pub files: usize,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What a call of a provider's is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum News {
    /// One of our messages.
    Report(Report),
    /// A message to us.
    Incoming(Incoming),
    /// Nothing that concerns us.
    Nothing,
}

/// What a look-up has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// The message.
    Message(Report),
    /// Nothing yet, or it cannot be looked for.
    Nothing,
    /// The provider cannot be asked now.
    Failed(String),
}

/// What is looked for.
#[derive(Debug, Clone)]
pub struct Sought {
    /// The attempt.
    pub order: Order,
    /// The id that the provider gave it, where it is known.
    pub id: Option<String>,
    /// When the provider was asked to send it.
    pub asked_at: UnixMs,
}

/// A call of a provider's, as it came.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The address that the provider has called, as it knows it.
    pub url: &'a Url,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// Its body, byte for byte.
    pub body: &'a [u8],
    /// The present.
    pub now: UnixMs,
}

/// Why a call of a provider's is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Disbelieved {
    /// There is no signature, or it is not by this provider over these bytes.
    #[error("the signature is not the provider's")]
    Signature,
    /// It was signed too long ago, or in the future.
    #[error("it was signed more than 300 s from now")]
    Time,
    /// The signature is good and the body is not understood.
    #[error("the body is not understood")]
    Body,
}

/// Somebody who sends SMS. One attempt a call; who implements it keeps nothing between two of them.
pub trait Provider: std::fmt::Debug + Send + Sync {
    /// Asks for one message to be sent.
    fn send<'a>(&'a self, order: &'a Order) -> BoxFuture<'a, Outcome>;

    /// Looks for a message that was or may have been accepted.
    fn look_up<'a>(&'a self, sought: &'a Sought) -> BoxFuture<'a, Found>;

    /// Asks something that costs nothing and needs the credentials; answers what to show, or what is wrong.
    fn test(&self) -> BoxFuture<'_, Result<String, String>>;

    /// Checks that a call is the provider's own, and reads it.
    fn read(&self, call: &Call<'_>) -> Result<News, Disbelieved>;
}

/// A provider's name, as the operator gives it: it stands in addresses, so it is made of what needs no escape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(pub String);

/// Longest name of a provider, in characters.
pub const NAME_CHARS_MAX: usize = 32;

/// Text that is no provider's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a provider's name: 1 to 32 of a-z, 0-9 and -, beginning with a letter")]
pub struct BadName;

impl std::str::FromStr for Name {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let good = text.len() <= NAME_CHARS_MAX
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        good.then(|| Self(text.to_owned())).ok_or(BadName)
    }
}

/// Who wrote: a number, or the name that a service has.
fn sender(text: &str) -> Option<Recipient> {
    text.parse::<E164>().map(Recipient::Number).or_else(|_| Recipient::service(text)).ok()
}
