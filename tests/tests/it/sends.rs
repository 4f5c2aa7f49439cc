//! One bridge, one sandbox, and whatever kills either osascript or the bridge: by the sandbox's own count
//! Messages is asked once at most, and what the bridge says in the end is what really happened.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::mac::{Mac, Options};
use e2e::{burst, clock};
use protocol::MessageId;
use protocol::pipe::Event;
use tokio::time::Instant;

/// Where something dies. Each is what the shell around osascript does with a send; `kill_bridge` is gone
/// after the first time.
const CRASHES: &[(&str, &str)] = &[
    ("nothing", r#"exec "$real" "$@""#),
    ("the bridge, before the script", r#"kill_bridge; exec "$real" "$@""#),
    (
        "the bridge, with the script",
        r#"script=$(cat); kill_bridge; printf '%s\n' "$script" | "$real" "$@""#,
    ),
    ("osascript, with the script", "cat > /dev/null; kill -9 $$"),
    ("osascript, asked", r#""$real" "$@" & sleep 0.02; kill -9 $$"#),
    (
        "the bridge, asked",
        r#"script=$(cat); (sleep 0.01; kill_bridge) & printf '%s\n' "$script" | "$real" "$@""#,
    ),
    ("the bridge, answered", r#""$real" "$@"; status=$?; kill_bridge; exit $status"#),
];

/// Whether a send is all the same to the shell around: only sends have eight arguments.
const AROUND: &str = r#"
if [ $# -lt 8 ]; then exec "$real" "$@"; fi
bridge=$PPID
kill_bridge() { if [ -e "$dir/armed" ]; then rm -f "$dir/armed"; kill -9 $bridge; fi; }
"#;

/// Every outcome of the sandbox's table that is not like another.
const OUTCOMES: &[u32] = &[
    0, 1, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 30, 31, 32, 33,
    34, 35, 36, 37,
];

/// What it may say in the end where nothing dies.
fn ends(outcome: u32) -> &'static [&'static str] {
    match outcome {
        1 => &["read"],
        // By SMS: after iMessage has provably failed, or by Messages itself.
        10 | 21 => &["sent"],
        11 | 12 | 16 | 19 | 20 | 27 | 35 | 36 => &["failed"],
        // Whatever was done there, chat.db does not show it.
        13 | 18 | 22 | 25 | 32 => &["unknown"],
        _ => &["sent", "delivered"],
    }
}

fn message(n: u32) -> MessageId {
    let mut random = [0; 10];
    // At the end, where a UUID has no bits of its own.
    if let Some(end) = random.last_chunk_mut() {
        *end = n.to_be_bytes();
    }
    MessageId::new(clock::now().0, random)
}

fn is_over(event: &Event) -> bool {
    matches!(
        event.kind(),
        "sent" | "delivered" | "read" | "failed" | "unknown" | "expired" | "refused"
    )
}

async fn settled(mac: &mut Mac, id: &MessageId, to: &str, text: &str) -> Result<()> {
    settled_with(mac, id, to, text, &[]).await
}

/// Says it until it has an end, to one life of the bridge after another.
async fn settled_with(
    mac: &mut Mac,
    id: &MessageId,
    to: &str,
    text: &str,
    files: &[String],
) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(40);
    let mut repeat = Instant::now();
    while !mac.newest(id).is_some_and(is_over) {
        ensure!(Instant::now() < until, "{text}: no end; {:?}; {}", mac.story(id), mac.log());
        if Instant::now() >= repeat {
            mac.send(id, to, text, files)?;
            repeat = Instant::now() + Duration::from_millis(500);
        }
        if !mac.hear(Instant::now() + Duration::from_millis(100)).await? && !mac.runs()? {
            mac.crash().await?;
            mac.start().await?;
        }
    }
    Ok(())
}

async fn play(n: usize) -> Result<()> {
    let (crash, script) = CRASHES.get(n).context("no such crash")?;
    let mut mac = Mac::new(&Options {
        speed: 0.2,
        around: Some(format!("{AROUND}\n{script}")),
        config: "osascript_deadline_ms = 1500\nmatch_window_ms = 1200\nsettle_window_ms = 1500\n\
                 sent_window_ms = 1500"
            .to_owned(),
    })
    .await?;
    mac.start().await?;
    for outcome in OUTCOMES {
        let (id, to) = (message(*outcome), format!("+120255501{outcome:02}"));
        let text = format!("outcome {outcome}: it's \"so\"...");
        std::fs::write(mac.path("armed"), "").context("armed")?;
        settled(&mut mac, &id, &to, &text).await?;
        // What comes late overrules what was concluded.
        let until = Instant::now() + Duration::from_millis(400);
        while Instant::now() < until {
            mac.hear(until).await?;
        }
        let story = mac.story(&id);
        let end = mac.newest(&id).map(Event::kind).unwrap_or_default();
        let said = format!("{crash}, {to}: {story:?}");
        let asked: Vec<_> = mac.asked()?.into_iter().filter(|send| send.text == text).collect();
        for service in ["iMessage", "SMS"] {
            let times = asked.iter().filter(|send| send.service == service).count();
            ensure!(times <= 1, "asked {times} times over {service}: {said}");
        }
        let reached = asked.iter().filter(|send| send.reaches).count();
        ensure!(reached <= 1, "sent {reached} times: {said}");
        if matches!(end, "sent" | "delivered" | "read") {
            ensure!(reached == 1, "told as sent, and it was not: {said}");
        }
        if end == "failed" {
            ensure!(reached == 0, "told as failed, and it was sent: {said}");
        }
        if *crash == "nothing" {
            ensure!(ends(*outcome).contains(&end), "{said}");
        }
        // It was sent, and its row is there for all to see.
        if reached == 1 && !matches!(outcome, 22) {
            ensure!(matches!(end, "sent" | "delivered" | "read"), "sent, and not told so: {said}");
        }
        if *outcome == 16 {
            // Automation was denied: the bridge ends, and its supervisor waits until that is granted.
            mac.crash().await?;
            mac.start().await?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wherever_something_dies_messages_is_asked_once_and_the_truth_is_told() -> Result<()> {
    let mut plays = tokio::task::JoinSet::new();
    for n in 0..CRASHES.len() {
        plays.spawn(play(n));
    }
    while let Some(played) = plays.join_next().await {
        played.context("a play")??;
    }
    Ok(())
}

/// Serves a photo and a menu; of every other request for the photo it says that it has no time.
async fn files() -> Result<(String, tokio::task::JoinSet<()>)> {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::Router;
    use axum::http::{StatusCode, header};
    use axum::routing::get;

    let asked = Arc::new(AtomicUsize::new(0));
    let photo = get(move || async move {
        if asked.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            Err(StatusCode::SERVICE_UNAVAILABLE)
        } else {
            Ok(([(header::CONTENT_TYPE, "image/png")], "PNG, more or less"))
        }
    });
    let menu = get(|| async { ([(header::CONTENT_TYPE, "application/pdf")], "%PDF") });
    let routes = Router::new().route("/photo", photo).route("/menu.pdf", menu);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.context("listener")?;
    let base = format!("http://{}", listener.local_addr().context("address")?);
    let mut serving = tokio::task::JoinSet::new();
    serving.spawn(async move { axum::serve(listener, routes).await.unwrap_or_default() });
    Ok((base, serving))
}

/// What Messages was asked to send, by the ends of the paths, and over which service.
fn parts(mac: &Mac) -> Result<Vec<String>> {
    let asked = mac.asked()?;
    Ok(asked
        .into_iter()
        .map(|send| {
            let part = send.file.as_deref().map_or(send.text.clone(), |path| {
                let mut steps = path.rsplit('/');
                let (name, number) = (steps.next(), steps.next());
                format!("{}/{}", number.unwrap_or_default(), name.unwrap_or_default())
            });
            format!("{part} by {}", send.service)
        })
        .collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_go_one_by_one_before_the_text_whoever_dies_between_them() -> Result<()> {
    let (base, _serving) = files().await?;
    let urls = [format!("{base}/photo"), format!("{base}/menu.pdf")];
    for (n, crash) in [0, 1, 2, 5, 6].into_iter().enumerate() {
        let (name, script) = CRASHES.get(crash).context("no such crash")?;
        let options = Options {
            speed: 0.2,
            around: Some(format!("{AROUND}\n{script}")),
            config: "match_window_ms = 1200\nsettle_window_ms = 1500".to_owned(),
        };
        let mut mac = Mac::new(&options).await?;
        mac.start().await?;
        let id = message(u32::try_from(n).context("number")?);
        std::fs::write(mac.path("armed"), "").context("armed")?;
        settled_with(&mut mac, &id, "+12025550100", "look", &urls).await?;
        let expected = ["0/photo.png by iMessage", "1/menu.pdf by iMessage", "look by iMessage"];
        let asked = parts(&mac)?;
        let end = mac.newest(&id).map(Event::kind).unwrap_or_default();
        match end {
            "sent" | "delivered" => ensure!(asked == expected, "{name}: {asked:?}"),
            // It was given nothing, and nobody can know that.
            "unknown" if *name == "the bridge, before the script" && asked.is_empty() => {}
            _ => anyhow::bail!("{name}: {:?} {}", mac.story(&id), mac.log()),
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_take_the_next_channel_together_and_none_goes_where_one_cannot_be_had() -> Result<()>
{
    let (base, _serving) = files().await?;
    let config = "match_window_ms = 1200\nsettle_window_ms = 1500".to_owned();
    let mut mac = Mac::new(&Options { speed: 0.2, around: None, config }).await?;
    mac.start().await?;
    let (missing, unregistered) = (message(1), message(2));
    let urls = [format!("{base}/menu.pdf"), format!("{base}/nothing.pdf")];
    settled_with(&mut mac, &missing, "+12025550100", "x", &urls).await?;
    let Some(Event::Failed(about)) = mac.newest(&missing) else { anyhow::bail!("it is sent") };
    ensure!(about.reason == protocol::Reason::AttachmentUnavailable, "{about:?}");
    ensure!(about.detail == "attachments[1]: its server answered 404", "{about:?}");
    ensure!(mac.asked()?.is_empty(), "nothing is sent of what is not whole");

    let urls = [format!("{base}/menu.pdf"), format!("{base}/photo")];
    settled_with(&mut mac, &unregistered, "+12025550110", "x", &urls).await?;
    let story = mac.story(&unregistered);
    ensure!(story.contains(&"fallback") && story.last() == Some(&"sent"), "{story:?}");
    let expected =
        ["0/menu.pdf by iMessage", "0/menu.pdf by SMS", "1/photo.png by SMS", "x by SMS"];
    let asked = parts(&mac)?;
    ensure!(asked == expected, "{asked:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_with_a_kill_every_twenty_loses_nothing_and_doubles_nothing() -> Result<()> {
    let books = burst::run(300, 20).await?;
    println!("{books:?}");
    ensure!(books.agree(), "{books:?}");
    ensure!(books.kills > 0, "nothing was killed");
    Ok(())
}
