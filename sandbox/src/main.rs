//! `switchboard-sandbox`, or osascript when it is called by that name.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let argv0 = args.first().map_or(Path::new(""), Path::new);
    if sandbox::osascript::is_called(argv0) {
        sandbox::osascript::main(&args)
    } else if let Some(code) = sandbox::tools::main(&args) {
        code
    } else {
        sandbox::cli::main(args)
    }
}
