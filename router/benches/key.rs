//! What a request costs before it is looked at: its key found, compared and spent from, among ten thousand keys.
//!
//! `cargo bench -p router --bench key`. The promise is under 5 microseconds.

use std::sync::Arc;

use divan::{Bencher, black_box};
use protocol::{KeyId, TenantId, UnixMs};
use router::auth::{Auth, Known, LIVE};
use router::rate::Rate;
use router::store::keys::Credential;

const NOW: UnixMs = UnixMs(1_795_348_800_000);

/// Keys in use.
const KEYS: u32 = 9_999;

fn main() {
    divan::main();
}

fn secret(number: u32) -> String {
    // As long as a real one; its first eight characters find it.
    format!("{LIVE}{number:08}{}", "k".repeat(44))
}

fn known() -> Auth {
    let auth = Auth::default();
    for number in 0..KEYS {
        let secret = secret(number);
        let mut hash = [0; 32];
        hash.copy_from_slice(
            aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, secret.as_bytes()).as_ref(),
        );
        let credential = Credential {
            id: KeyId::new(NOW.0, u128::from(number).to_le_bytes()[..10].try_into().expect("ten")),
            tenant: TenantId::new(NOW.0, [1; 10]),
            hash,
            scopes: vec!["messages:write".to_owned()],
            test: false,
            allow: Vec::new(),
            rate: Rate { per_second: 1_000_000, burst: 1_000_000 },
            expires_at: None,
            revoked_at: None,
        };
        let prefix = &secret[..LIVE.len() + 8];
        auth.remember(prefix, Arc::new(credential), 0, NOW);
    }
    auth
}

#[divan::bench]
fn check_and_limit(bencher: Bencher<'_, '_>) {
    let auth = known();
    let secrets: Vec<String> = (0..KEYS).map(secret).collect();
    let mut turn = 0;
    bencher.bench_local(|| {
        turn = (turn + 7_919) % secrets.len();
        let secret = secrets.get(turn).expect("it is one of them");
        let known = auth.recall(black_box(secret), NOW);
        let taken = match known {
            Known::Good(credential) => auth.take(&credential, NOW).allowed,
            Known::Bad | Known::Unknown(_) => false,
        };
        assert!(taken, "the key is known, and there is enough");
    });
}
