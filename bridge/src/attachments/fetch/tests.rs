//! Against a server that answers as each test says, over real sockets.

use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use protocol::MessageId;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_util::task::TaskTracker;

use super::*;

const PNG: &[u8] = b"\x89PNG not really";

/// Answers every connection with the next of these bytes, the last one for ever, then closes it.
struct Server {
    base: String,
    asked: Arc<AtomicUsize>,
    dir: tempfile::TempDir,
    _tasks: TaskTracker,
}

impl Server {
    async fn new(answers: Vec<Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(AtomicUsize::new(0));
        let tasks = TaskTracker::new();
        let count = Arc::clone(&asked);
        tasks.spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { break };
                    head.push(byte);
                }
                let n = count.fetch_add(1, Ordering::SeqCst).min(answers.len() - 1);
                let answer = &answers[n];
                if answer.is_empty() {
                    // Says nothing, and holds the line.
                    std::future::pending::<()>().await;
                }
                // One that does not want to hear the rest has closed: that is its test's business.
                if stream.write_all(answer).await.is_ok() && stream.shutdown().await.is_err() {
                    return;
                }
            }
        });
        Self { base, asked, dir: tempfile::tempdir().unwrap(), _tasks: tasks }
    }

    fn file(&self, path: &str) -> OutboundAttachment {
        OutboundAttachment { url: format!("{}{path}", self.base), name: None, sha256: None }
    }

    async fn fetch(&self, files: &[OutboundAttachment]) -> Result<Vec<PathBuf>, Failure> {
        all(&attempt(), files, self.dir.path(), &limits()).await
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn attempt() -> Attempt {
    Attempt { message: MessageId::new(1, [1; 10]), attempt: 2 }
}

fn limits() -> Limits {
    Limits {
        bytes_max: 64,
        timeout: Duration::from_secs(5),
        pause: Duration::from_millis(1),
        types: vec!["image/".to_owned(), "text/plain".to_owned()],
        allow_private: true,
    }
}

fn ok(kind: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

fn status(status: &str, more: &str) -> Vec<u8> {
    format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n{more}\r\n").into_bytes()
}

#[tokio::test]
async fn each_file_gets_a_folder_of_its_own_in_the_order_asked_for() {
    let server = Server::new(vec![ok("image/png", PNG), ok("text/plain", b"hello")]).await;
    let named = OutboundAttachment { name: Some("Grüße".to_owned()), ..server.file("/x?key=1") };
    let paths = server.fetch(&[server.file("/a%20b.png"), named]).await.unwrap();
    let folder = server.dir.path().join(format!("{}-2", attempt().message));
    assert_eq!(paths, [folder.join("0/a b.png"), folder.join("1/Grüße.txt")]);
    assert_eq!(std::fs::read(&paths[0]).unwrap(), PNG);
    assert_eq!(std::fs::read(&paths[1]).unwrap(), b"hello");
    assert_eq!(std::fs::metadata(&paths[1]).unwrap().permissions().mode() & 0o777, 0o600);
    // Nothing is left beside them.
    let mut left: Vec<_> =
        std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().file_name()).collect();
    left.sort();
    assert_eq!(left, ["0", "1"]);
    // Once more, as after a crash: the same places.
    let again = Server::new(vec![ok("image/png", b"new")]).await;
    let file = OutboundAttachment { name: Some("a b.png".to_owned()), ..again.file("/y") };
    all(&attempt(), &[file], server.dir.path(), &limits()).await.unwrap();
    assert_eq!(std::fs::read(&paths[0]).unwrap(), b"new");
}

#[tokio::test]
async fn what_cannot_be_taken_says_which_and_why_and_is_not_asked_for_again() {
    let large = [ok("image/png", &[0; 65])].concat();
    let chunked = [
        b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\nTransfer-Encoding: chunked\r\n\r\n41\r\n"
            .to_vec(),
        vec![b'x'; 65],
        b"\r\n0\r\n\r\n".to_vec(),
    ]
    .concat();
    let cases = [
        (status("404 Not Found", ""), Reason::AttachmentUnavailable, "its server answered 404"),
        (status("403 Forbidden", ""), Reason::AttachmentUnavailable, "its server answered 403"),
        (
            large,
            Reason::AttachmentTooLarge,
            "it is larger than what a message may carry here, 64 bytes",
        ),
        (chunked, Reason::AttachmentTooLarge, "it is larger than"),
        (ok("image/png", b""), Reason::AttachmentUnavailable, "it is empty"),
        (ok("text/html", b"<p>"), Reason::AttachmentType, "it is called .png, and its server says"),
        (
            status("302 Found", "Location: file:///etc/passwd\r\n"),
            Reason::AttachmentUnavailable,
            "",
        ),
        (
            status("302 Found", "Location: http://user:pw@127.0.0.1/\r\n"),
            Reason::AttachmentUnavailable,
            "has a user or a password in it",
        ),
    ];
    for (answer, reason, detail) in cases {
        let server = Server::new(vec![answer]).await;
        let failure = server.fetch(&[server.file("/a.png")]).await.unwrap_err();
        assert_eq!((failure.reason, failure.retryable), (reason, false), "{}", failure.detail);
        assert!(failure.detail.starts_with("attachments[0]: "), "{}", failure.detail);
        assert!(failure.detail.contains(detail), "{}", failure.detail);
        assert!(!failure.detail.contains("127.0.0.1"), "the URL is nobody's: {}", failure.detail);
        assert_eq!(server.asked(), 1, "{}", failure.detail);
    }
}

#[tokio::test]
async fn all_files_together_keep_to_the_limit() {
    let server = Server::new(vec![ok("image/png", &[1; 40])]).await;
    let failure = server.fetch(&[server.file("/a.png"), server.file("/b.png")]).await.unwrap_err();
    assert_eq!(failure.reason, Reason::AttachmentTooLarge);
    assert!(failure.detail.starts_with("attachments[1]: "), "{}", failure.detail);
}

#[tokio::test]
async fn a_moments_fault_is_tried_again_and_a_lasting_one_is_given_back() {
    let cut = ok("image/png", PNG)[..60].to_vec();
    let moments = vec![status("503 Service Unavailable", ""), cut, ok("image/png", PNG)];
    let server = Server::new(moments).await;
    let paths = server.fetch(&[server.file("/a.png")]).await.unwrap();
    assert_eq!((std::fs::read(&paths[0]).unwrap().as_slice(), server.asked()), (PNG, 3));

    let server = Server::new(vec![status("502 Bad Gateway", "")]).await;
    let failure = server.fetch(&[server.file("/a.png")]).await.unwrap_err();
    assert_eq!((failure.retryable, server.asked()), (true, 3));

    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let file = OutboundAttachment { url: format!("http://{gone}/a.png"), name: None, sha256: None };
    let failure = server.fetch(&[file]).await.unwrap_err();
    assert_eq!(failure.detail, "attachments[0]: its server cannot be reached");
    assert!(failure.retryable);
}

#[tokio::test]
async fn a_server_that_says_nothing_is_left_in_time() {
    let server = Server::new(vec![Vec::new()]).await;
    let limits = Limits { timeout: Duration::from_millis(50), ..limits() };
    let failure =
        all(&attempt(), &[server.file("/a.png")], server.dir.path(), &limits).await.unwrap_err();
    assert_eq!(failure.detail, "attachments[0]: it took longer than it may");
    assert!(failure.retryable);
}

#[tokio::test]
async fn a_sum_that_is_given_must_be_the_files() {
    let sum = hex(digest::digest(&digest::SHA256, PNG).as_ref());
    let server = Server::new(vec![ok("image/png", PNG)]).await;
    let good = OutboundAttachment { sha256: Some(sum), ..server.file("/a.png") };
    assert!(server.fetch(&[good]).await.is_ok());
    let bad = OutboundAttachment { sha256: Some("0".repeat(64)), ..server.file("/a.png") };
    let failure = server.fetch(&[bad]).await.unwrap_err();
    assert_eq!(failure.reason, Reason::AttachmentMismatch);
}

#[tokio::test]
async fn redirects_are_followed_a_few_times_and_checked() {
    let answers = vec![
        status("302 Found", "Location: /there\r\n"),
        status("307 Temporary Redirect", "Location: /and/there\r\n"),
        ok("image/png", PNG),
    ];
    let server = Server::new(answers).await;
    let paths = server.fetch(&[server.file("/a.png")]).await.unwrap();
    assert!(paths[0].ends_with("0/a.png"), "named by what was asked for: {paths:?}");

    let server = Server::new(vec![status("302 Found", "Location: /again\r\n")]).await;
    let failure = server.fetch(&[server.file("/a.png")]).await.unwrap_err();
    assert_eq!(failure.detail, "attachments[0]: its server sends us on and on");
}

#[tokio::test]
async fn private_addresses_are_not_called_whatever_their_name() {
    let server = Server::new(vec![ok("image/png", PNG)]).await;
    let strict = Limits { allow_private: false, ..limits() };
    let port = server.base.rsplit_once(':').unwrap().1.to_owned();
    for (url, expected) in [
        (format!("http://127.0.0.1:{port}/a.png"), "attachments[0]: not https"),
        (format!("https://127.0.0.1:{port}/a.png"), "attachments[0]: its address is not public"),
        (
            format!("https://localhost:{port}/a.png"),
            "attachments[0]: its name has no public address",
        ),
    ] {
        let file = OutboundAttachment { url, name: None, sha256: None };
        let failure = all(&attempt(), &[file], server.dir.path(), &strict).await.unwrap_err();
        assert_eq!(failure.detail, expected);
        assert!(!failure.retryable);
    }
    assert_eq!(server.asked(), 0);
}
