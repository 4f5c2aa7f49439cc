//! Canaries between phones of two hosts: the one that hears tells the router, which tells the one that wrote.
//!
//! A host asks ([`CanaryAsk`]) before it writes, and again while its canary is under way; the answer is made of the store
//! each time, so that it is the same after a restart. Whoever asks is remembered with its session ([`crate::link::Links`])
//! and told once more when the canary arrives. A host hears only of canaries that one of its own phones has written.

use protocol::link::{CanaryAsk, CanaryStanding, CanaryTold, RouterFrame};
use protocol::{HostId, MessageId, UnixMs, canary};

use crate::link::Links;
use crate::server::App;
use crate::store::{StoreError, Tx, canaries as store, lease};

/// A host asks how a canary stands.
pub(crate) async fn asked(app: &App, host: &HostId, ask: CanaryAsk) -> Result<(), StoreError> {
    if !canary::is_id(&ask.message) {
        tracing::warn!(host = %host, "link: asked about a canary that is none");
        return Ok(());
    }
    // Remembered before it is looked for: what arrives between is told twice, not missed.
    app.links.expect_canary(host, &ask);
    answer(app, host, ask, Occasion::Asked).await
}

/// Canaries have arrived: whoever waits for them is told. Who cannot be told asks again.
pub(crate) async fn arrived(app: &App, canaries: &[MessageId]) {
    for (host, ask) in canaries.iter().flat_map(|id| app.links.expecting(id)) {
        if let Err(error) = answer(app, &host, ask, Occasion::Arrived).await {
            tracing::warn!(error = %error, "inbound: a canary has arrived, and who wrote it could not be told");
        }
    }
}

/// Why a host is told of a canary.
#[derive(Clone, Copy)]
enum Occasion {
    Asked,
    Arrived,
}

/// Looks how a canary stands, lets the host wait no more where that is its end, and tells it.
async fn answer(
    app: &App,
    host: &HostId,
    ask: CanaryAsk,
    occasion: Occasion,
) -> Result<(), StoreError> {
    let standing = look(app, host, &ask).await?;
    let over = match &standing {
        // Whoever has heard of it, or never will, waits no more.
        CanaryStanding::Seen { .. } | CanaryStanding::Strange => true,
        CanaryStanding::NotSeen | CanaryStanding::Away | CanaryStanding::Unknown => false,
    };
    // What has arrived may not be the canary of who waits: that is news for nobody.
    if matches!(occasion, Occasion::Arrived) && !matches!(standing, CanaryStanding::Seen { .. }) {
        return Ok(());
    }
    if over {
        app.links.forget_canary(host, &ask.message);
    }
    tell(app, host, ask, standing);
    Ok(())
}

async fn look(app: &App, host: &HostId, ask: &CanaryAsk) -> Result<CanaryStanding, StoreError> {
    let (links, now) = (app.links.clone(), app.clock.now());
    let (host, ask) = (host.clone(), ask.clone());
    app.store.read(move |tx| standing(tx, &links, (&host, &ask), now)).await
}

fn tell(app: &App, host: &HostId, ask: CanaryAsk, standing: CanaryStanding) {
    let frame = RouterFrame::Canary(CanaryTold { message: ask.message, standing });
    if let Err(error) = app.links.send(host, frame) {
        tracing::debug!(host = %host, error = %error, "link: a host is not told of a canary; it asks again");
    }
}

fn standing(
    tx: &mut Tx<'_>,
    links: &Links,
    (host, ask): (&HostId, &CanaryAsk),
    now: UnixMs,
) -> Result<CanaryStanding, StoreError> {
    let Some(hearer) = store::hearer(tx, host, ask)? else { return Ok(CanaryStanding::Strange) };
    if let Some(arrival) = store::arrival(tx, ask, &hearer.phone)? {
        return Ok(CanaryStanding::Seen {
            phone: hearer.phone,
            host: arrival.host,
            at: arrival.at,
            waited_ms: u64::try_from(now.since(arrival.taken_at)).unwrap_or(0),
        });
    }
    let Some((serving, true)) = hearer.host else { return Ok(CanaryStanding::Away) };
    // What its bridge has noted and not got through yet may be this one.
    let Some((journal, last_seq)) = links.head(&serving, &hearer.phone) else {
        return Ok(CanaryStanding::Away);
    };
    let all_here = lease::acked_seq(tx, &hearer.phone, &journal)? >= last_seq;
    Ok(if all_here { CanaryStanding::NotSeen } else { CanaryStanding::Away })
}
