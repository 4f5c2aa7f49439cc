use super::*;

#[expect(clippy::unnecessary_wraps, reason = "it stands beside `nothing`, in the same tables")]
fn said(code: i32, text: &str) -> Said {
    Ok((code, text.to_owned()))
}

fn nothing() -> Said {
    Err("there is no such program here".to_owned())
}

/// What a check came to, with the exit code of an error.
fn outcome((check, exit): (Check, u8)) -> (Outcome, u8) {
    let needs_remedy = matches!(check.outcome, Outcome::Warning | Outcome::Error);
    assert_eq!(check.remedy.is_empty(), !needs_remedy, "{check:?}");
    (check.outcome, exit)
}

const OK: (Outcome, u8) = (Outcome::Ok, 0);
const WARNING: (Outcome, u8) = (Outcome::Warning, 0);
const SKIPPED: (Outcome, u8) = (Outcome::Skipped, 0);

#[test]
fn only_the_session_at_the_screen_will_do() {
    for (answer, expected) in [
        (said(0, "Aqua\n"), OK),
        (said(0, "Background\n"), (Outcome::Error, 69)),
        (said(0, "System\n"), (Outcome::Error, 69)),
        (said(0, ""), SKIPPED),
        (said(64, "Aqua\n"), SKIPPED),
        (nothing(), SKIPPED),
    ] {
        assert_eq!(outcome(session(&answer)), expected, "{answer:?}");
    }
}

#[test]
fn an_agent_is_loaded_missing_or_switched_off() {
    let none = said(0, "disabled services = {\n\t\t\"com.apple.x\" => disabled\n}\n");
    let line =
        |word: &str| said(0, &format!("disabled services = {{\n\t\t\"{LABEL}\" => {word}\n}}\n"));
    for (job, switched, expected) in [
        (said(0, "x"), none.clone(), OK),
        (said(0, "x"), line("enabled"), OK),
        (said(0, "x"), line("false"), OK),
        (said(113, ""), none.clone(), WARNING),
        (said(113, ""), line("disabled"), (Outcome::Error, 69)),
        (said(0, "x"), line("true"), (Outcome::Error, 69)),
        (said(112, ""), none, SKIPPED),
        (nothing(), nothing(), SKIPPED),
    ] {
        assert_eq!(outcome(agent(&job, &switched, "gui/501/x")), expected, "{job:?} {switched:?}");
    }
}

#[test]
fn a_requirement_of_one_build_is_warned_of() {
    let lasting = "designated => identifier \"org.switchboard\" and certificate leaf = H\"ab\"\n";
    for (answer, expected) in [
        (said(0, lasting), OK),
        (said(0, "# designated => cdhash H\"0123\"\n"), WARNING),
        (said(1, ""), WARNING),
        (said(0, ""), SKIPPED),
        (said(2, ""), SKIPPED),
        (nothing(), SKIPPED),
    ] {
        assert_eq!(outcome(signature(&answer)), expected, "{answer:?}");
    }
}

#[test]
fn whoever_is_logged_in_must_be_the_hosts_user() {
    for (answer, expected) in [
        (said(0, "shelf\n"), OK),
        (said(0, "somebody\n"), WARNING),
        (said(1, ""), WARNING),
        (said(-1, ""), SKIPPED),
        (nothing(), SKIPPED),
    ] {
        assert_eq!(outcome(auto_login(&answer, "shelf")), expected, "{answer:?}");
    }
    for (answer, expected) in [
        (said(0, "FileVault is Off.\n"), OK),
        (said(0, "FileVault is On.\n"), WARNING),
        (said(0, "Deferred enablement\n"), SKIPPED),
        (nothing(), SKIPPED),
    ] {
        assert_eq!(outcome(file_vault(&answer)), expected, "{answer:?}");
    }
}

#[test]
fn what_keeps_a_mac_awake_is_read_of_mains_only() {
    let good = "AC Power:\n womp                 1\n autorestart          1\n powernap             0\n \
                standby              0\n disksleep            0\n sleep                0\n displaysleep         0\n";
    assert_eq!(outcome(sleep(&said(0, good))), OK);
    // A portable sleeps on its battery, which is none of our business.
    let portable = format!("Battery Power:\n sleep                1\n{good}");
    assert_eq!(outcome(sleep(&said(0, &portable))), OK);
    let after = format!("{good}Battery Power:\n sleep                10\n");
    assert_eq!(outcome(sleep(&said(0, &after))), OK);

    let bad = good
        .replace(
            "sleep                0\n display",
            "sleep                10 (sleep prevented by x)\n display",
        )
        .replace("autorestart          1", "autorestart          0");
    let (check, _) = sleep(&said(0, &bad));
    assert_eq!(check.found, "on mains: sleep 10, autorestart 0");
    assert_eq!(check.remedy, "Run `sudo pmset -a sleep 0 autorestart 1`.");
    for answer in [said(0, ""), said(0, "Battery Power:\n sleep 1\n"), said(1, good), nothing()] {
        assert_eq!(outcome(sleep(&answer)), SKIPPED, "{answer:?}");
    }
}

#[test]
fn every_kind_of_update_that_restarts_must_be_off() {
    let off = "{\n    AutomaticCheckEnabled = 1;\n    AutomaticDownload = 0;\n    \
               AutomaticallyInstallMacOSUpdates = 0;\n    CriticalUpdateInstall = 0;\n    SplatEnabled = 0;\n}\n";
    assert_eq!(outcome(auto_update(&said(0, off))), OK);
    let (check, _) = auto_update(&said(0, &off.replace("SplatEnabled = 0", "SplatEnabled = 1")));
    assert!(check.found.contains("SplatEnabled") && !check.found.contains("Critical"), "{check:?}");
    // What is not written has its default, which is on.
    let missing = off.replace("    CriticalUpdateInstall = 0;\n", "");
    assert_eq!(outcome(auto_update(&said(0, &missing))), WARNING);
    for answer in [said(1, off), nothing()] {
        assert_eq!(outcome(auto_update(&answer)), SKIPPED);
    }
}

#[test]
fn the_clock_is_compared_with_a_servers() {
    for (answer, expected) in [
        (said(0, "+0.004391 +/- 0.012345 time.apple.com 17.253.4.125\n"), OK),
        (
            said(0, "2026-11-22 10:00:00.1 (+0100) -0.5 +/- 0.02 time.apple.com 17.253.4.125 s1\n"),
            OK,
        ),
        (said(0, "-1.5 +/- 0.01 x\n"), WARNING),
        (said(0, "+31 +/- 0.01 x\n"), (Outcome::Error, 75)),
        (said(0, "-86400.0 +/- 0.01 x\n"), (Outcome::Error, 75)),
        (said(0, "sntp: no response\n"), SKIPPED),
        (said(1, "+31 +/- 0.01 x\n"), SKIPPED),
        (nothing(), SKIPPED),
    ] {
        assert_eq!(outcome(clock(&answer)), expected, "{answer:?}");
    }
}

#[test]
fn cloudflared_is_not_needed_and_when_there_not_old() {
    for (answer, expected) in [
        (said(0, "cloudflared version 2026.8.2 (built 2026-08-20-1200 UTC)\n"), OK),
        (said(0, "cloudflared version 2026.7.2 (built x)\n"), OK),
        (said(0, "cloudflared version 2026.7.1 (built x)\n"), WARNING),
        (said(0, "cloudflared version 2025.11.9 (built x)\n"), WARNING),
        (said(0, "cloudflared version DEV\n"), SKIPPED),
        (nothing(), SKIPPED),
    ] {
        assert_eq!(outcome(cloudflared_version(&answer, false)), expected, "{answer:?}");
    }
    assert_eq!(
        outcome(cloudflared_version(&nothing(), true)),
        (Outcome::Error, 69),
        "here it is wanted"
    );
}

#[test]
fn a_tunnel_that_is_wanted_needs_its_token_and_is_up_or_not() {
    let text = "state_dir = \"/s\"\n[[phones]]\nnumber = \"+15550100001\"\nchat_db = \"/db\"\n\
                [cloudflared]\nrun = true\n";
    let config = Config::parse(Path::new("/etc/supervisor.toml"), text).unwrap();
    let settings = config.cloudflared.unwrap();
    let exposed = Some(cloudflared::Unfit::TokenExposed);
    assert_eq!(outcome(tunnel(&settings, exposed, Some(4))), (Outcome::Error, 78));
    assert_eq!(outcome(tunnel(&settings, None, Some(4))), OK);
    assert_eq!(outcome(tunnel(&settings, None, None)), WARNING);
}

#[test]
fn space_is_counted_in_mib() {
    for (free, expected) in [
        (Some(0), (Outcome::Error, 75)),
        (Some(DISK_LOW_MIB - 1), (Outcome::Error, 75)),
        (Some(DISK_LOW_MIB), WARNING),
        (Some(DISK_WARN_MIB - 1), WARNING),
        (Some(DISK_WARN_MIB), OK),
        (None, SKIPPED),
    ] {
        assert_eq!(outcome(disk(Path::new("/x"), free)), expected, "{free:?}");
    }
    assert!(free_mib(Path::new("/nowhere/at/all")).is_some(), "of the disk that it would be on");
}
