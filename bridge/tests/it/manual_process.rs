//! `completions` and `man` of the program: what they write names every command.

#![cfg(test)]

use std::process::{Command, Output};

#[expect(clippy::disallowed_methods, reason = "a test starts the program that it is about")]
fn bridge(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_switchboard-bridge")).args(args).output().unwrap()
}

const COMMANDS: [&str; 7] =
    ["run", "watch", "export", "check-config", "doctor", "completions", "man"];

#[test]
fn completions_name_every_command_in_every_shell() {
    for shell in ["bash", "zsh", "fish"] {
        let output = bridge(&["completions", shell]);
        assert!(output.status.success(), "{shell}");
        let script = String::from_utf8(output.stdout).unwrap();
        for command in COMMANDS {
            assert!(script.contains(command), "{shell} lacks {command}");
        }
    }
    assert_eq!(bridge(&["completions", "abacus"]).status.code(), Some(64));
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let pages = dir.path().join("new/pages");
    let output = bridge(&["man", pages.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
    for command in COMMANDS {
        let page = pages.join(format!("switchboard-bridge-{command}.1"));
        let text = std::fs::read_to_string(&page).unwrap_or_else(|_| panic!("no page {command}"));
        assert!(text.contains(".SH NAME"), "{text}");
    }
    // A folder that cannot be made is said, with its name.
    let blocked = dir.path().join("file");
    std::fs::write(&blocked, "").unwrap();
    let output = bridge(&["man", blocked.join("pages").to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(75));
    assert!(String::from_utf8_lossy(&output.stderr).contains("file/pages"), "{output:?}");
}
