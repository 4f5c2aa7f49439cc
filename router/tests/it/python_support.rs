//! Programs and libraries of Python, out of the virtual environment that `scripts/needs python` makes.
#![expect(clippy::disallowed_methods, reason = "these tests start programs of another language")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A program of the environment, which is made when it is missing. Where it cannot be had, the test fails and says so:
/// what it would prove is proved by nothing else.
pub(crate) fn program(name: &str) -> Command {
    Command::new(environment().join("bin").join(name))
}

fn environment() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace is around it");
    // Tests are processes of their own, and only one of them may make it.
    let lock = std::env::temp_dir().join("switchboard-python-needs.lock");
    let lock = File::create(lock).expect("the folder for temporary files can be written to");
    lock.lock().expect("the lock can be had");
    let made = Command::new(root.join("scripts/needs"))
        .arg("python")
        .stdin(Stdio::null())
        .output()
        .expect("scripts/needs runs");
    let told = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "the test's Python cannot be had:\n{told}");
    root.join(String::from_utf8_lossy(&made.stdout).trim())
}
