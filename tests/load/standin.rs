//! Stand-in phones: a host in this process that keeps the real link and answers every send at once as a bridge would,
//! without a bridge, a journal or Messages behind it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::api::Api;
use e2e::{clock, eventually};
use protocol::api::EnrolmentToken;
use protocol::link::{EnrolPhone, EnrolRequest, EnrolResponse, PhoneReport, PhoneState};
use protocol::pipe::{Attempt, Command, Event, EventLine, Send};
use protocol::{Channel, Class, MessageId, PhoneId};
use reqwest::Method;
use router_client::key::HostKey;
use router_client::link::{
    INPUT_QUEUE, Link, LinkConfig, LinkInput, LinkOutput, OUTPUT_QUEUE, REDIAL_MAX, SILENCE,
};
use router_client::proxy::Proxies;
use router_client::tls::TlsRoots;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const JOURNAL: &str = "stand-in";
const ONLINE_WITHIN: Duration = Duration::from_secs(10);

/// What the stand-ins of one router have seen.
#[derive(Default)]
pub(crate) struct Came {
    sends: AtomicUsize,
    codes: Mutex<HashMap<MessageId, Instant>>,
}

impl Came {
    /// Sends so far.
    pub(crate) fn sends(&self) -> usize {
        self.sends.load(Ordering::Relaxed)
    }

    /// When a one-time code came to a phone.
    pub(crate) fn code(&self, id: &MessageId) -> Option<Instant> {
        self.codes.lock().unwrap_or_else(PoisonError::into_inner).get(id).copied()
    }

    fn note(&self, send: &Send) {
        self.sends.fetch_add(1, Ordering::Relaxed);
        if send.class == Class::Otp {
            let mut codes = self.codes.lock().unwrap_or_else(PoisonError::into_inner);
            codes.insert(send.message.clone(), Instant::now());
        }
    }
}

/// Hosts with their phones.
pub(crate) struct Standins {
    pub(crate) came: Arc<Came>,
    /// Whether they answer; while they do not, what is given to them stays in flight.
    answering: watch::Sender<bool>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

impl Standins {
    /// Enrols so many hosts with so many phones each and waits until all can send.
    pub(crate) async fn start(url: &str, operator: &Api, hosts: u32, phones: u32) -> Result<Self> {
        let (answering, answer) = watch::channel(true);
        let standins = Self {
            came: Arc::default(),
            answering,
            shutdown: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        for host in 0..hosts {
            standins.host(url, operator, (host, phones), answer.clone()).await?;
        }
        let wanted = usize::try_from(hosts * phones).context("phones")?;
        eventually("every stand-in can send", ONLINE_WITHIN, || async {
            // The page has a limit, so that the first hosts speak for all.
            let all = operator.phones().await?;
            let ready = all.iter().filter(|phone| phone.online && phone.epoch.is_some()).count();
            let wanted = wanted.min(all.len());
            Ok(if ready >= wanted { Ok(()) } else { Err(format!("{ready} of {wanted}")) })
        })
        .await?;
        Ok(standins)
    }

    async fn host(
        &self,
        url: &str,
        operator: &Api,
        (host, phones): (u32, u32),
        answer: watch::Receiver<bool>,
    ) -> Result<()> {
        let key = HostKey::generate().context("key")?;
        let path = "/v1/admin/enrolment_tokens";
        let token: EnrolmentToken = operator.call(Method::POST, path, None, None).await??;
        let numbers = (0..phones).map(|n| format!("+1202556{:04}", host * phones + n));
        let phones: Vec<EnrolPhone> = numbers
            .map(|number| {
                let number = number.parse().context("number")?;
                Ok(EnrolPhone {
                    number,
                    label: None,
                    channels: None,
                    standby: false,
                    sandbox: false,
                })
            })
            .collect::<Result<_>>()?;
        let request = EnrolRequest {
            token: token.token,
            name: format!("stand-in {host}"),
            public_key: key.public_base64url(),
            phones,
        };
        let body = serde_json::to_value(&request).context("enrolment")?;
        let enrolled: EnrolResponse =
            operator.call(Method::POST, "/v1/hosts/enroll", Some(body), None).await??;
        let config = LinkConfig {
            router: url.parse().context("router")?,
            host: enrolled.host,
            key,
            roots: TlsRoots::default(),
            proxies: Proxies::Direct,
            redial_max: REDIAL_MAX,
            silence: SILENCE,
            boot: "stand-in".to_owned(),
            version: "0".to_owned(),
        };
        let (input, inputs) = mpsc::channel(INPUT_QUEUE);
        let (output, outputs) = mpsc::channel(OUTPUT_QUEUE);
        for phone in &enrolled.phones {
            let report = PhoneReport {
                phone: phone.phone.clone(),
                journal: Some(JOURNAL.to_owned()),
                last_seq: 0,
                acked_seq: 0,
                epoch: None,
                state: PhoneState::Ready,
                reasons: Vec::new(),
            };
            input.send(LinkInput::Phone { report, started: true }).await.context("link")?;
        }
        let link = Link::new(config, inputs, output).context("link")?;
        let shutdown = self.shutdown.clone();
        self.tasks.spawn(async move { link.run(shutdown).await });
        let came = Arc::clone(&self.came);
        self.tasks.spawn(async move { serve(input, outputs, answer, &came).await });
        Ok(())
    }

    /// Lets them answer, or not.
    pub(crate) fn answer(&self, answer: bool) {
        self.answering.send_replace(answer);
    }

    /// Waits until so many sends have come in all.
    pub(crate) async fn until(&self, sends: usize, within: Duration) -> Result<()> {
        let until = Instant::now() + within;
        while self.came.sends() < sends {
            ensure!(Instant::now() < until, "{} of {sends} sends", self.came.sends());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// The supervisor and the bridges of one host, as far as the router can tell.
async fn serve(
    input: mpsc::Sender<LinkInput>,
    mut outputs: mpsc::Receiver<LinkOutput>,
    mut answer: watch::Receiver<bool>,
    came: &Came,
) {
    let mut seqs: HashMap<PhoneId, u64> = HashMap::new();
    while let Some(output) = outputs.recv().await {
        let LinkOutput::Command { phone, epoch, command: Command::Send(send) } = output else {
            continue;
        };
        came.note(&send);
        if answer.wait_for(|answers| *answers).await.is_err() {
            return;
        }
        let attempt = Attempt { message: send.message, attempt: send.attempt };
        let guid = format!("{}/{}", attempt.message, attempt.attempt);
        let channel = send.route.first().copied().unwrap_or(Channel::Sms);
        let seq = seqs.entry(phone.clone()).or_default();
        for event in [
            Event::Accepted(attempt.clone()),
            Event::Started { attempt: attempt.clone(), channel },
            Event::Sent { attempt: attempt.clone(), channel, guid },
        ] {
            *seq += 1;
            let line = EventLine { seq: *seq, at: clock::now(), epoch: Some(epoch), event };
            let (phone, journal) = (phone.clone(), JOURNAL.to_owned());
            if input.send(LinkInput::Event { phone, journal, line }).await.is_err() {
                return;
            }
        }
    }
}
