//! What deny.toml says of licences, bans and sources holds for every crate in the lock file.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use serde::Deserialize;

#[derive(Deserialize)]
struct Deny {
    licenses: Licenses,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licenses {
    allow: BTreeSet<String>,
}

#[derive(Deserialize)]
struct Bans {
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
}

/// Where Switchboard runs. The lock file also names what other systems and features would need.
const TARGETS: [&str; 2] = ["x86_64-unknown-linux-gnu", "aarch64-apple-darwin"];

/// Every crate that is built for a target: name, version with source, licence.
fn tree(target: &str) -> Result<BTreeSet<(String, String, String)>> {
    #[expect(clippy::disallowed_methods, reason = "cargo is what knows the tree")]
    let output = std::process::Command::new(env!("CARGO"))
        .args(["tree", "--workspace", "--locked", "--prefix", "none", "--no-dedupe"])
        .args(["--format", "{p}\t{l}", "--target", target])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .context("cargo tree")?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).context("cargo tree")?;
    text.lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let (package, licence) = line.split_once('\t').with_context(|| line.to_owned())?;
            let (name, version) = package.split_once(' ').with_context(|| line.to_owned())?;
            Ok((name.to_owned(), version.to_owned(), licence.to_owned()))
        })
        .collect()
}

/// SPDX: `OR` needs one side, `AND` both; `/` is the old way to write `OR`.
fn allowed(expression: &str, allow: &BTreeSet<String>) -> bool {
    let expression = expression.trim();
    if let Some(inner) = whole_group(expression) {
        return allowed(inner, allow);
    }
    for (word, any) in [(" OR ", true), ("/", true), (" AND ", false)] {
        let parts = split_outside(expression, word);
        if parts.len() > 1 {
            let mut good = parts.iter().map(|part| allowed(part, allow));
            return if any { good.any(|good| good) } else { good.all(|good| good) };
        }
    }
    allow.contains(expression)
}

fn whole_group(expression: &str) -> Option<&str> {
    let inner = expression.strip_prefix('(')?.strip_suffix(')')?;
    let mut depth = 0_i32;
    let closes_early = inner.chars().any(|c| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        depth < 0
    });
    (!closes_early).then_some(inner)
}

fn split_outside<'a>(expression: &'a str, word: &str) -> Vec<&'a str> {
    let (mut parts, mut from, mut depth) = (Vec::new(), 0, 0_i32);
    for (at, c) in expression.char_indices() {
        depth += i32::from(c == '(') - i32::from(c == ')');
        if depth == 0
            && at >= from
            && expression.get(at..).is_some_and(|rest| rest.starts_with(word))
        {
            parts.extend(expression.get(from..at));
            from = at + word.len();
        }
    }
    parts.extend(expression.get(from..));
    parts
}

#[test]
fn licences_bans_and_sources_hold() -> Result<()> {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deny.toml"))?;
    let deny: Deny = toml::from_str(&text)?;
    let mut wrong = BTreeSet::new();
    for target in TARGETS {
        let tree = tree(target)?;
        assert!(tree.len() > 100, "the tree is larger than this");
        for (name, version, licence) in tree {
            if deny.bans.deny.iter().any(|ban| ban.name == name) {
                wrong.insert(format!("{name} {version} is banned"));
            }
            if !allowed(&licence, &deny.licenses.allow) {
                wrong.insert(format!("{name} {version}: licence {licence:?}"));
            }
            // A crate of a registry shows no source; a git one shows its address.
            if version.contains("://") {
                wrong.insert(format!("{name} comes from {version}"));
            }
        }
    }
    assert_eq!(wrong, BTreeSet::new());
    Ok(())
}

#[test]
fn licence_expressions_are_read_right() {
    let allow: BTreeSet<String> = ["MIT", "ISC", "Apache-2.0"].map(str::to_owned).into();
    for (expression, good) in [
        ("MIT", true),
        ("MIT OR GPL-3.0-only", true),
        ("MIT/GPL-2.0", true),
        ("MIT AND GPL-3.0-only", false),
        ("ISC AND (Apache-2.0 OR OpenSSL)", true),
        ("(MIT OR Apache-2.0) AND OpenSSL", false),
        ("(MIT) OR (GPL-3.0-only)", true),
        ("GPL-3.0-or-later", false),
    ] {
        assert_eq!(allowed(expression, &allow), good, "{expression}");
    }
}
