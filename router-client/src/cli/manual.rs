//! Completions and manual pages, made from the arguments themselves.

use std::path::Path;

use anyhow::Context;
use clap::Command;
use clap_complete::Shell;

use super::{failure::Failure, screen::Screen};

pub(crate) fn completions(
    screen: &mut Screen,
    shell: Shell,
    command: &mut Command,
) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, command, "switchboard", &mut script);
    screen.bytes(&script)
}

pub(crate) fn pages(screen: &mut Screen, dir: &Path, command: Command) -> Result<(), Failure> {
    let written = std::fs::create_dir_all(dir)
        .with_context(|| format!("create {}", dir.display()))
        .and_then(|()| {
            clap_mangen::generate_to(command, dir)
                .with_context(|| format!("write manual pages to {}", dir.display()))
        });
    written.map_err(Failure::Local)?;
    if screen.is_json() {
        return screen.json(&serde_json::json!({ "dir": dir }));
    }
    screen.line(&format!("manual pages are in {}", dir.display()))
}
