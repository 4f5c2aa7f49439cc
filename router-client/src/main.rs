//! `switchboard`, the operator's command line.
//!
//! Arguments are parsed, one command runs, its outcome becomes an exit code: 0 done, 1 the router said no, 2 wrong
//! usage, 69 the router cannot be reached, 77 not authorised.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    // Two parts of this program speak TLS; both use this provider. A second installation cannot happen.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was installed before");
    }
    cli::main()
}
