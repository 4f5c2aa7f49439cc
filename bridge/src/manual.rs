//! Completions and manual pages of the program, made from its arguments.

use std::io;
use std::path::Path;

use clap::Command;
use clap_complete::Shell;

/// Writes what a shell needs to complete the arguments.
pub fn completions(command: &mut Command, shell: Shell, to: &mut impl io::Write) -> io::Result<()> {
    let name = command.get_name().to_owned();
    // Made in memory first: the generator cannot say that it could not write.
    let mut script = Vec::new();
    clap_complete::generate(shell, command, name, &mut script);
    to.write_all(&script)
}

/// Writes one page for the program and one for each of its commands into a folder, which is made
/// when it is not there.
pub fn pages(command: Command, dir: &Path) -> io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(command, dir)
}
