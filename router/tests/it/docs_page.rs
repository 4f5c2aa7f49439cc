//! The page of the API's document, opened in a real browser.
#![expect(clippy::disallowed_methods, reason = "this test starts a program that is not ours")]

use std::path::Path;
use std::process::{Command, Stdio};

use crate::api_support::Router;

/// Chromium, which is installed when it is missing.
fn browser() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace is around it");
    let made = Command::new(root.join("scripts/needs"))
        .arg("browser")
        .stdin(Stdio::null())
        .output()
        .expect("scripts/needs runs");
    let told = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "the test's browser cannot be had:\n{told}");
    String::from_utf8_lossy(&made.stdout).trim().to_owned()
}

/// What the browser makes of an address, and what it says on its console.
fn open(browser: &str, address: &str) -> (String, Vec<String>) {
    let profile = tempfile::tempdir().expect("a folder for its profile");
    let seen = Command::new(browser)
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"])
        .args(["--enable-logging=stderr", "--log-level=0", "--timeout=20000"])
        // There is no internet: whatever is not on this machine is not there.
        .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
        .arg(format!("--user-data-dir={}", profile.path().display()))
        .arg(address)
        .stdin(Stdio::null())
        .output()
        .expect("the browser runs");
    let said = String::from_utf8_lossy(&seen.stderr).into_owned();
    assert!(seen.status.success(), "{said}");
    let console = said.lines().filter(|line| line.contains("CONSOLE")).map(ToOwned::to_owned);
    (String::from_utf8_lossy(&seen.stdout).into_owned(), console.collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_every_operation_in_a_browser_without_a_complaint_or_the_internet() {
    let router = Router::start().await;
    let document = router.get("/openapi.json", "").await.body;
    let address = format!("{}/docs", router.url);
    let opened = tokio::task::spawn_blocking(move || {
        let browser = browser();
        let page = open(&browser, &address);
        // A page that breaks its own policy is complained of: so silence about ours means something.
        let folder = tempfile::tempdir().expect("a folder for a page");
        let broken = folder.path().join("broken.html");
        let policy = "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'\">";
        std::fs::write(
            &broken,
            format!("<!doctype html>{policy}<style>b{{color:red}}</style><b>x</b>"),
        )
        .expect("it is written");
        (page, open(&browser, &format!("file://{}", broken.display())).1)
    });
    let ((page, console), complaint) = opened.await.expect("it was opened");
    assert_eq!(console, [""; 0]);
    assert!(complaint.iter().any(|line| line.contains("Content Security Policy")), "{complaint:?}");
    let mut operations = 0;
    for (path, item) in document["paths"].as_object().expect("it has paths") {
        for (method, operation) in item.as_object().expect("a path has methods") {
            let route = format!(
                "<span class=\"method {method}\">{method}</span><span>{}</span>",
                path.replace('&', "&amp;")
            );
            assert!(page.contains(&route), "{method} {path}");
            let summary = operation["summary"].as_str().expect("it has a summary");
            assert!(
                page.contains(&format!("<h3>{}</h3>", summary.replace('&', "&amp;"))),
                "{summary}"
            );
            operations += 1;
        }
    }
    assert!(operations > 100, "{operations}");
    router.stop().await;
}
