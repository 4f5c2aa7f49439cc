//! With real children: small shell scripts in the place of osascript. The script arrives on
//! stdin, so they read it first.

use std::os::unix::fs::PermissionsExt as _;

use tokio::time::Instant;

use super::*;

struct Stage {
    dir: tempfile::TempDir,
    osascript: Osascript,
}

fn stage(body: &str, deadline_ms: u64) -> Stage {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("osascript");
    std::fs::write(&program, format!("#!/bin/sh\ncd {}\n{body}\n", dir.path().display())).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let osascript = Osascript::new(program, dir.path(), Duration::from_millis(deadline_ms));
    Stage { dir, osascript }
}

impl Stage {
    async fn run(&self, args: &[&str], script: &str) -> Disposition {
        let running = self.osascript.prepare(args).unwrap().hand_over(script).unwrap();
        running.finish(CancellationToken::new()).await
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }
}

fn is_alive(pid: &str) -> bool {
    // A zombie of nobody is as good as gone; the kernel says so in /proc.
    match std::fs::read_to_string(format!("/proc/{}/stat", pid.trim())) {
        Ok(stat) => !stat.contains(") Z "),
        Err(_) => false,
    }
}

#[tokio::test]
async fn arguments_and_script_arrive_exactly_and_the_result_comes_back() {
    let stage = stage(
        "cat > script; for a in \"$@\"; do printf '[%s]' \"$a\"; done > args; echo connected",
        5_000,
    );
    let text = "it's \"quoted\" $HOME `id` \\ 🎈\nsecond line";
    let disposition = stage.run(&["iMessage", "+12025550143", "", "text", text], SEND).await;
    assert_eq!(disposition, Disposition::Succeeded { output: "connected".to_owned() });
    assert_eq!(stage.read("script"), SEND);
    let expected = format!("[-l][AppleScript][-][iMessage][+12025550143][][text][{text}]");
    assert_eq!(stage.read("args"), expected);
}

#[tokio::test]
async fn the_longest_text_arrives_as_one_argument() {
    let stage = stage("cat > /dev/null; printf '%s' \"$8\" > text", 5_000);
    let text = "🎈".repeat(protocol::limits::TEXT_CHARS_MAX);
    stage.run(&["iMessage", "+12025550143", "", "text", &text], SEND).await;
    assert_eq!(stage.read("text"), text);
}

#[tokio::test]
async fn error_numbers_decide_and_words_do_not() {
    let cases = [
        (
            "stdin:1:2: execution error: Messages got an error: Can’t get participant. (-1728)",
            Some(Reason::NotResolved),
        ),
        (
            "0:1: execution error: „Messages“ hat einen Fehler (1) erhalten. (-1743)",
            Some(Reason::AutomationDenied),
        ),
        ("execution error: Application isn’t running. (-600)", Some(Reason::MessagesNotRunning)),
        ("script error: A identifier can’t go after this. (-2741)", Some(Reason::ScriptFault)),
        ("execution error: AppleEvent timed out. (-1712)", None),
        ("execution error: Connection is invalid. (-609)", None),
        ("execution error: something (1002)", None),
        ("no number at all", None),
    ];
    for (words, not_started) in cases {
        let stage = stage(
            &format!("cat > /dev/null; echo '{}' >&2; exit 1", words.replace('\'', "")),
            5_000,
        );
        match (stage.run(&[], PROBE).await, not_started) {
            (Disposition::NotStarted(failure), Some(reason)) => {
                assert_eq!(failure.reason, reason, "{words}");
                assert!(!failure.detail.contains("Messages got"), "osascript's words may quote");
            }
            (Disposition::MayHaveCompleted(_), None) => {}
            (other, _) => panic!("{words}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn what_the_script_says_it_has_not_sent_was_not_sent_whatever_the_number() {
    let cases = [
        ("unsent chat -1728", Some(Reason::NotResolved)),
        ("unsent chat -1743", Some(Reason::AutomationDenied)),
        ("unsent chat -1712", Some(Reason::MessagesTimeout)),
        ("unsent chat -609", Some(Reason::MessagesConnectionLost)),
        ("unsent chat 1002", Some(Reason::NotResolved)),
        ("unsent file -43", Some(Reason::AttachmentUnavailable)),
        ("unsent file -1700", Some(Reason::AttachmentUnavailable)),
        // Nothing of these is ours, so nothing is proven by them.
        ("unsent", None),
        ("unsent chat", None),
        ("unsent chat x", None),
        ("it was unsent chat -1728", None),
    ];
    for (output, expected) in cases {
        let stage = stage(&format!("cat > /dev/null; echo '{output}'"), 5_000);
        match (stage.run(&[], SEND).await, expected) {
            (Disposition::NotStarted(failure), Some(reason)) => {
                assert_eq!((failure.reason, failure.retryable), (reason, true), "{output}");
            }
            (Disposition::Succeeded { .. }, None) => {}
            (other, _) => panic!("{output}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_hanging_osascript_is_killed_at_its_deadline_and_is_in_doubt() {
    let stage = stage("cat > /dev/null; echo $$ > pid; sleep 60", 300);
    let began = Instant::now();
    let disposition = stage.run(&[], PROBE).await;
    assert!(matches!(
        disposition,
        Disposition::MayHaveCompleted(Failure { reason: Reason::MessagesTimeout, .. })
    ));
    assert!(began.elapsed() < Duration::from_secs(30));
    assert!(!is_alive(&stage.read("pid")));
    assert!(!stage.osascript.orphan_runs().unwrap());
}

#[tokio::test]
async fn one_that_ignores_term_is_killed() {
    let stage =
        stage("trap '' TERM; cat > /dev/null; echo $$ > pid; while :; do sleep 1; done", 300);
    stage.run(&[], PROBE).await;
    assert!(!is_alive(&stage.read("pid")));
}

#[tokio::test]
async fn a_grandchild_does_not_outlive_it_nor_hold_anything_up() {
    // The grandchild inherits stdout and the locked stderr.
    let stage = stage("cat > /dev/null; sleep 60 & echo $! > grandchild; echo connected", 50_000);
    let began = Instant::now();
    let disposition = stage.run(&[], PROBE).await;
    assert_eq!(disposition, Disposition::Succeeded { output: "connected".to_owned() });
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(!is_alive(&stage.read("grandchild")));
    assert!(!stage.osascript.orphan_runs().unwrap());
}

#[tokio::test]
async fn it_is_killed_when_asked() {
    let stage = stage("cat > /dev/null; sleep 60", 60_000);
    let running = stage.osascript.prepare(&[]).unwrap().hand_over(PROBE).unwrap();
    let kill = CancellationToken::new();
    kill.cancel();
    assert!(matches!(running.finish(kill).await, Disposition::MayHaveCompleted(_)));
}

#[tokio::test]
async fn an_abandoned_one_gets_no_script() {
    let stage = stage("cat > script; echo ran > ran", 5_000);
    let running = stage.osascript.prepare(&["text"]).unwrap().abandon();
    running.finish(CancellationToken::new()).await;
    assert_eq!(stage.read("script"), "");
    assert_eq!(stage.read("ran"), "");
}

#[tokio::test]
async fn a_running_one_holds_the_lock_and_the_next_is_not_started() {
    let stage = stage("cat > script; sleep 60", 60_000);
    let prepared = stage.osascript.prepare(&[]).unwrap();
    // As a new bridge would see it after this one was killed.
    assert!(stage.osascript.orphan_runs().unwrap());
    assert!(matches!(stage.osascript.prepare(&[]), Err(PrepareError::Orphan)));
    prepared.abandon().finish(CancellationToken::new()).await;
    assert!(!stage.osascript.orphan_runs().unwrap());
}

#[tokio::test]
async fn one_that_dies_before_it_reads_took_nothing() {
    let stage = stage("exec 0<&-; echo closed > closed; sleep 60", 60_000);
    let prepared = stage.osascript.prepare(&[]).unwrap();
    while stage.read("closed").is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (running, error) = *prepared.hand_over(PROBE).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    let kill = CancellationToken::new();
    kill.cancel();
    running.finish(kill).await;
}

#[tokio::test]
async fn a_missing_program_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let osascript =
        Osascript::new(PathBuf::from("/nowhere/osascript"), dir.path(), Duration::from_secs(1));
    let error = osascript.prepare(&[]).unwrap_err();
    assert_eq!(error.to_string(), "/nowhere/osascript cannot be started");
    assert!(!osascript.orphan_runs().unwrap(), "nothing was started, nothing is held");
}

#[tokio::test]
async fn a_flood_of_output_does_not_hang_it() {
    let stage =
        stage("cat > /dev/null; head -c 300000 /dev/zero; echo '(-600)' >&2; exit 1", 5_000);
    assert!(matches!(
        stage.run(&[], PROBE).await,
        Disposition::NotStarted(_) | Disposition::MayHaveCompleted(_)
    ));
}

#[test]
fn scripts_are_shorter_than_one_atomic_write() {
    for script in [SEND, PROBE, ACCOUNT] {
        // POSIX guarantees 512; both systems give 4096 into an empty pipe.
        assert!(script.len() < 4096);
    }
}

#[test]
fn the_last_number_in_parentheses_counts() {
    let cases = [
        ("error (-1728)", Some(-1728)),
        ("error (-1728)\n", Some(-1728)),
        ("a (5) b (-600)", Some(-600)),
        ("a (-600) b (text)", None),
        ("can’t get \"pay (-1728) now\"", None),
        ("can’t get \"pay (-1728) now\". (-1712)", Some(-1712)),
        ("error (-1728)\nwarning: a framework complains\n", Some(-1728)),
        ("(", None),
        ("", None),
        ("()", None),
        ("no (99999999999999999999)", None),
    ];
    for (text, expected) in cases {
        assert_eq!(error_number(text), expected, "{text:?}");
    }
}
