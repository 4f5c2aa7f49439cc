//! `scripts/install`, for real, on machines whose launchctl, codesign and systemctl are stand-ins that behave as theirs do.

#![cfg(test)]

use std::cell::RefCell;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use e2e::program::{self, Ended};

const LABEL: &str = "org.switchboard.supervisor";
const NUMBER: &str = "+15550100007";

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// A machine in a folder: what is installed lies in `disk`, the stand-ins keep their state in `state`.
struct Machine {
    dir: tempfile::TempDir,
    kind: &'static str,
    env: RefCell<Vec<(&'static str, String)>>,
}

impl Machine {
    fn new(kind: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["disk", "state", "build", "tmp"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let machine = Self { dir, kind, env: RefCell::default() };
        machine.build("0.1.0");
        machine
    }

    fn mac() -> Self {
        Self::new("mac")
    }

    /// A Mac whose configuration is written, with the agent installed and running.
    fn running_mac() -> Self {
        let mac = Self::mac();
        mac.configure(&format!("number = \"{NUMBER}\""));
        mac.install(0, &[]);
        assert!(mac.job().is_some());
        mac
    }

    fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    /// Programs as a build leaves them: small ones that hand what is checked to the real ones.
    fn build(&self, version: &str) {
        for name in ["supervisor", "bridge", "router", "sandbox", ""] {
            let name = ["switchboard", name].join(if name.is_empty() { "" } else { "-" });
            let real = program::path_of(&name).unwrap();
            let script = format!(
                "#!/bin/sh\n# {version}\ncase $1 in --version) echo {name} {version} ;; *) exec {} \"$@\" ;; esac\n",
                real.display()
            );
            self.write_program(&format!("build/{name}"), &script);
        }
    }

    fn write_program(&self, below: &str, text: &str) {
        // In the way that the installer does it: one that runs may not be written over.
        let (new, place) = (self.path(&format!("{below}.new")), self.path(below));
        std::fs::write(&new, text).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(new, place).unwrap();
    }

    fn set(&self, name: &'static str, value: &str) {
        self.env.borrow_mut().push((name, value.to_owned()));
    }

    fn state(&self, name: &str, text: &str) {
        let file = self.path("state").join(name);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    /// Whatever was wrong is so no more, and what a killed run left in the folder of temporary files is not looked at.
    fn no_more(&self, name: &str) {
        std::fs::remove_file(self.path("state").join(name)).unwrap();
        std::fs::remove_dir_all(self.path("tmp")).unwrap();
        std::fs::create_dir(self.path("tmp")).unwrap();
    }

    fn run(&self, args: &[&str]) -> Ended {
        let repository = repository();
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let path =
            format!("{}:/usr/bin:/bin", text(repository.join("tests/standins").join(self.kind)));
        let (state, tmp) = (text(self.path("state")), text(self.path("tmp")));
        let mut env = vec![
            ("PATH", path.as_str()),
            ("STANDIN", &state),
            ("TMPDIR", &tmp),
            ("HOME", "/Users/shelf"),
        ];
        let more = self.env.borrow();
        env.extend(more.iter().map(|(name, value)| (*name, value.as_str())));
        let (from, prefix) = (text(self.path("build")), text(self.path("disk")));
        let args: Vec<&str> =
            ["--from", &from, "--prefix", &prefix].iter().chain(args).copied().collect();
        program::foreign(&repository.join("scripts/install"), &args, &env).unwrap()
    }

    /// Runs the installer and expects this exit code; gives all that it said.
    #[track_caller]
    fn install(&self, code: i32, args: &[&str]) -> String {
        let ended = self.run(args);
        assert_eq!(ended.code, Some(code), "{}{}", ended.out, ended.err);
        let left: Vec<_> = std::fs::read_dir(self.path("tmp")).unwrap().collect();
        assert!(left.is_empty(), "{left:?} is left behind");
        ended.out + &ended.err
    }

    /// What the stand-ins were called with since the last time.
    fn calls(&self) -> Vec<String> {
        let file = self.path("state/calls");
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        std::fs::write(file, "").unwrap();
        text.lines().map(str::to_owned).collect()
    }

    fn called(&self, begin: &str) -> usize {
        self.calls().iter().filter(|call| call.starts_with(begin)).count()
    }

    // A Mac's own places.

    fn config(&self) -> PathBuf {
        self.path("disk/Users/shelf/Library/Application Support/Switchboard/supervisor.toml")
    }

    fn configure(&self, phone: &str) {
        let text = format!("state_dir = \"state\"\n[[phones]]\n{phone}\nchat_db = \"chat.db\"\n");
        std::fs::create_dir_all(self.config().parent().unwrap()).unwrap();
        std::fs::write(self.config(), text).unwrap();
    }

    fn plist(&self) -> PathBuf {
        self.path(&format!("disk/Users/shelf/Library/LaunchAgents/{LABEL}.plist"))
    }

    fn app(&self) -> PathBuf {
        self.path("disk/Applications/Switchboard.app")
    }

    /// The version of the supervisor that lies at its place.
    fn installed(&self) -> Option<String> {
        let program = self.app().join("Contents/MacOS/switchboard-supervisor");
        let text = std::fs::read_to_string(program).ok()?;
        text.lines().nth(1)?.strip_prefix("# ").map(str::to_owned)
    }

    /// The plist that launchd has registered.
    fn job(&self) -> Option<String> {
        std::fs::read_to_string(self.path("state/jobs").join(LABEL)).ok()
    }
}

/// Everything below a folder with its content, so that two moments can be compared.
fn content(of: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    let mut folders = vec![of.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.push((path.clone(), std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_first_run_makes_a_configuration_and_starts_nothing_before_it_is_changed() {
    let mac = Machine::mac();
    let said = mac.install(0, &[]);
    assert!(said.contains("is not started yet"), "{said}");
    assert_eq!(mode(&mac.config()), 0o600);
    assert_eq!((mac.job(), mac.plist().exists()), (None, false));
    assert_eq!(mac.installed().as_deref(), Some("0.1.0"));

    mac.configure(&format!("number = \"{NUMBER}\""));
    let said = mac.install(0, &[]);
    assert!(said.contains("host doctor"), "{said}");
    assert_eq!(mac.job(), std::fs::read_to_string(mac.plist()).ok());
    assert_eq!(mode(&mac.plist()), 0o644);
    let log_dir = mac.path("disk/Users/shelf/Library/Logs/Switchboard");
    assert_eq!(mode(&log_dir), 0o700);
    assert!(mac.job().unwrap().contains(log_dir.to_str().unwrap()));
}

#[test]
fn a_second_run_changes_nothing_and_calls_nobody_who_would() {
    let mac = Machine::running_mac();
    mac.calls();
    let before = content(&mac.path("disk"));
    let said = mac.install(0, &[]);
    assert!(said.contains("is as it was"), "{said}");
    assert_eq!(content(&mac.path("disk")), before);
    for call in mac.calls() {
        let looks = call.starts_with("launchctl print ") || call.starts_with("codesign --verify ");
        assert!(looks, "{call}");
    }
}

#[test]
fn new_programs_are_signed_beside_their_place_and_the_job_is_kicked_not_registered_anew() {
    let mac = Machine::running_mac();
    mac.build("0.2.0");
    mac.calls();
    mac.install(0, &[]);
    assert_eq!(mac.installed().as_deref(), Some("0.2.0"));
    let calls = mac.calls();
    let signed: Vec<&String> = calls.iter().filter(|call| call.contains("--sign")).collect();
    assert_eq!(signed.len(), 3, "{calls:?}");
    assert!(signed.iter().all(|call| call.contains(".Switchboard.app.new")), "{signed:?}");
    // The bundle is the last: its seal is over what lies in it.
    assert!(signed[2].contains("--identifier org.switchboard --"), "{signed:?}");
    let control: Vec<&String> = calls
        .iter()
        .filter(|call| !call.starts_with("codesign") && !call.contains(" print "))
        .collect();
    assert_eq!(control, [&format!("launchctl kickstart -k gui/501/{LABEL}")]);
    let left = std::fs::read_dir(mac.path("disk/Applications")).unwrap().count();
    assert_eq!(left, 1, "only the bundle stays");
}

#[test]
fn a_changed_plist_waits_until_launchd_has_forgotten_the_old_job() {
    let mac = Machine::running_mac();
    // The job drains for so many looks; one more look says 113.
    mac.set("DRAINS", "7");
    let moved = mac.path("elsewhere.toml");
    std::fs::copy(mac.config(), &moved).unwrap();
    mac.calls();
    mac.install(0, &["--config", moved.to_str().unwrap()]);
    assert!(mac.job().unwrap().contains("elsewhere.toml"));
    let calls = mac.calls();
    let at = |begin: &str| calls.iter().position(|call| call.starts_with(begin)).unwrap();
    let (out, again) = (at("launchctl bootout"), at("launchctl bootstrap"));
    let between = calls[out..again].iter().filter(|call| call.contains(" print ")).count();
    assert_eq!(between, 8, "{calls:#?}");
    assert_eq!(calls.iter().filter(|call| call.contains("bootstrap")).count(), 1, "{calls:#?}");
}

#[test]
fn an_operation_that_is_not_over_is_waited_for() {
    let mac = Machine::mac();
    mac.configure(&format!("number = \"{NUMBER}\""));
    mac.state(&format!("busy/{LABEL}"), "4");
    mac.install(0, &[]);
    assert!(mac.job().is_some());
    assert_eq!(mac.called("sleep"), 4);
}

#[test]
fn every_refusal_of_launchd_has_its_remedy_and_the_next_run_goes_on() {
    let refusals: [(&str, &str, Option<&str>, i32, &str); 5] = [
        ("no-session", "", None, 69, "log in at the screen"),
        ("no-session", "", Some("RAW_5"), 69, "log in at the screen"),
        ("disabled", LABEL, None, 71, "launchctl enable gui/501/"),
        ("disabled", "another", None, 71, "owner and mode"),
        (&format!("busy/{LABEL}"), "1000", None, 75, "in a minute"),
    ];
    for (file, text, env, code, remedy) in refusals {
        let mac = Machine::mac();
        mac.configure(&format!("number = \"{NUMBER}\""));
        mac.state(file, text);
        if let Some(name) = env {
            mac.set(name, "1");
        }
        let said = mac.install(code, &[]);
        assert!(said.contains(remedy), "{file}: {said}");
        // Nothing is lost: the programs are there, and the same command ends what was begun.
        assert_eq!(mac.installed().as_deref(), Some("0.1.0"));
        mac.no_more(file);
        mac.install(0, &[]);
        assert!(mac.job().is_some(), "{file}");
    }
}

#[test]
fn a_job_that_does_not_end_is_told_and_finished_by_the_next_run() {
    let mac = Machine::running_mac();
    let moved = mac.path("elsewhere.toml");
    std::fs::copy(mac.config(), &moved).unwrap();
    mac.state("stubborn", "");
    let said = mac.install(75, &["--config", moved.to_str().unwrap()]);
    assert!(said.contains("is still there"), "{said}");
    mac.no_more("stubborn");
    mac.install(0, &["--config", moved.to_str().unwrap()]);
    assert!(mac.job().unwrap().contains("elsewhere.toml"));
}

#[test]
fn what_fails_before_the_new_bundle_is_whole_leaves_the_old_one_running() {
    let mac = Machine::running_mac();
    let (before, job) = (content(&mac.app()), mac.job());
    mac.build("0.2.0");
    let said = mac.install(71, &["--identity", "Nobody"]);
    assert!(said.contains("find-identity"), "{said}");
    assert_eq!((content(&mac.app()), mac.job()), (before.clone(), job.clone()));

    mac.configure("number = \"nonsense\"");
    let said = mac.install(78, &[]);
    assert!(said.contains("`number`"), "{said}");
    assert_eq!((content(&mac.app()), mac.job()), (before, job));
}

#[test]
fn a_run_that_fails_or_is_killed_at_any_rename_loses_nothing() {
    for how in ["mv-fails", "mv-kills"] {
        let mut ended_early = 0;
        for at in 1.. {
            let mac = Machine::running_mac();
            let moved = mac.path("elsewhere.toml");
            std::fs::copy(mac.config(), &moved).unwrap();
            let args = ["--config", moved.to_str().unwrap()];
            mac.build("0.2.0");
            mac.no_more("mv-count");
            mac.state(how, &at.to_string());
            let ended = mac.run(&args);
            if ended.code == Some(0) {
                break;
            }
            ended_early += 1;
            // A failure puts back what it took away; after a kill the next run does.
            if how == "mv-fails" {
                assert!(mac.installed().is_some(), "rename {at}: {}{}", ended.out, ended.err);
                assert!(mac.job().is_some(), "rename {at}: the agent still runs");
            }
            mac.no_more(how);
            mac.calls();
            let ended = mac.run(&args);
            assert_eq!(ended.code, Some(0), "{how} {at}: {}{}", ended.out, ended.err);
            assert_eq!(mac.installed().as_deref(), Some("0.2.0"), "{how} {at}");
            assert!(mac.job().unwrap().contains("elsewhere.toml"), "{how} {at}");
            let started = mac.calls().iter().any(|call| {
                call.contains("launchctl bootstrap") || call.contains("launchctl kickstart")
            });
            assert!(started, "{how} {at}: the new programs run");
            let again = mac.install(0, &args);
            assert!(again.contains("is as it was"), "{how} {at}: {again}");
        }
        // Two of the bundle, one of the plist.
        assert_eq!(ended_early, 3, "{how}");
    }
}

#[test]
fn new_programs_that_were_not_started_are_started_by_the_next_run() {
    let mac = Machine::running_mac();
    mac.build("0.2.0");
    mac.state("kickstart-fails", "");
    mac.install(71, &[]);
    mac.no_more("kickstart-fails");
    mac.calls();
    mac.install(0, &[]);
    assert_eq!(mac.called("launchctl bootstrap"), 1);

    for role in ["router", "sandbox"] {
        let host = Machine::new("linux");
        host.install(0, &["--role", role]);
        host.build("0.2.0");
        host.state("fails", "");
        host.install(71, &["--role", role]);
        host.no_more("fails");
        host.calls();
        host.install(0, &["--role", role]);
        assert_eq!(host.called("systemctl restart"), units(role).len());
    }
}

#[test]
fn the_identity_of_the_last_run_is_kept_and_ad_hoc_is_warned_of() {
    let mac = Machine::mac();
    mac.state("identities", "Switchboard of the shelf\nDeveloper ID Application: X\n");
    mac.configure(&format!("number = \"{NUMBER}\""));
    let said = mac.install(0, &[]);
    assert!(said.contains("forgets Full Disk Access and Automation"), "{said}");
    let said = mac.install(0, &["--identity", "Switchboard of the shelf"]);
    assert!(said.contains("the identity changes"), "{said}");
    mac.calls();
    mac.build("0.2.0");
    let said = mac.install(0, &[]);
    assert!(!said.contains("ad hoc") && !said.contains("identity changes"), "{said}");
    let calls = mac.calls();
    assert!(calls.iter().any(|call| call.contains("--sign Switchboard of the shelf")), "{calls:?}");
    assert!(calls.iter().all(|call| !call.contains("--options runtime")), "{calls:?}");
    mac.install(0, &["--identity", "Developer ID Application: X"]);
    assert_eq!(mac.called("codesign --options runtime --timestamp"), 3);
}

#[test]
fn a_seal_that_no_longer_holds_is_made_anew() {
    let mac = Machine::running_mac();
    let program = mac.app().join("Contents/MacOS/switchboard-bridge");
    std::fs::write(&program, "changed by somebody").unwrap();
    mac.install(0, &[]);
    assert!(std::fs::read_to_string(program).unwrap().contains("0.1.0"));
}

#[test]
fn uninstalling_takes_programs_and_job_and_leaves_what_cannot_be_made_again() {
    let mac = Machine::running_mac();
    let journal = mac.config().with_file_name("journal.db");
    std::fs::write(&journal, "kept").unwrap();
    let before = content(&mac.path("disk"));
    let said = mac.install(0, &["--uninstall", "--dry-run"]);
    assert!(said.contains("would: launchctl bootout"), "{said}");
    assert_eq!(content(&mac.path("disk")), before);
    assert!(mac.job().is_some());

    for _ in 0..2 {
        mac.install(0, &["--uninstall"]);
        assert_eq!((mac.job(), mac.plist().exists(), mac.app().exists()), (None, false, false));
        assert!(journal.exists() && mac.config().exists());
    }
    mac.install(0, &[]);
    assert!(mac.job().is_some());
}

#[test]
fn a_dry_run_says_everything_and_does_nothing() {
    let mac = Machine::mac();
    let said = mac.install(0, &["--dry-run"]);
    assert!(said.contains("would: put version 0.1.0"), "{said}");
    assert!(content(&mac.path("disk")).is_empty());

    let mac = Machine::running_mac();
    mac.build("0.2.0");
    mac.calls();
    let before = content(&mac.path("disk"));
    let said = mac.install(0, &["--dry-run"]);
    assert!(said.contains("would: launchctl kickstart"), "{said}");
    assert_eq!(content(&mac.path("disk")), before);
    assert_eq!(mac.called("launchctl kickstart"), 0);
}

#[test]
fn who_and_where_is_refused_before_anything_is_done() {
    let mac = Machine::mac();
    for (args, code, word) in [
        (&["--role", "router"][..], 64, "not for Darwin"),
        (&["--role", "fax"], 64, "no --role fax"),
        (&["--identity"], 64, "needs a value"),
        (&["--colour", "blue"], 64, "Exit:"),
        (&["--config", "/Users/shelf/Documents/s.toml"], 64, "guards"),
        (&["--from", "/nowhere"], 69, "cargo build"),
    ] {
        let said = mac.install(code, args);
        assert!(said.contains(word), "{args:?}: {said}");
    }
    mac.set("AS_UID", "0");
    assert!(mac.install(64, &[]).contains("root has no Messages"));
    mac.set("AS_UID", "501");
    mac.set("MACOS", "11.7.10");
    assert!(mac.install(69, &[]).contains("older than 12"));
    assert!(content(&mac.path("disk")).is_empty());
}

#[test]
fn a_daemon_of_roots_is_installed_by_root_and_never_from_the_users_bundle() {
    let mac = Machine::mac();
    mac.configure(&format!("number = \"{NUMBER}\""));
    let templates = mac.path("templates");
    std::fs::create_dir(&templates).unwrap();
    let daemon = "<plist><dict>\n<key>Label</key>\n<string>org.switchboard.helper</string>\n\
                  <key>Program</key>\n<string>@HELPER@</string>\n<key>UserOf</key>\n<string>@UID@</string>\n\
                  </dict></plist>\n";
    std::fs::write(templates.join("org.switchboard.helper.plist"), daemon).unwrap();
    let args = ["--templates", templates.to_str().unwrap()];
    mac.write_program("build/switchboard-helper", "one");
    assert!(mac.install(0, &args).contains("helper is not set"), "nobody has asked for it");
    let config = std::fs::read_to_string(mac.config()).unwrap();
    let with_helper = format!("{config}\n[network]\nhelper = \"/var/run/h.sock\"\n");
    std::fs::write(mac.config(), with_helper).unwrap();
    std::fs::remove_file(mac.path("build/switchboard-helper")).unwrap();
    assert!(mac.install(0, &args).contains("there is no"), "without the program");

    mac.write_program("build/switchboard-helper", "one");
    mac.install(0, &args);
    let program = mac.path("disk/Library/PrivilegedHelperTools/org.switchboard.helper");
    let plist = mac.path("disk/Library/LaunchDaemons/org.switchboard.helper.plist");
    assert_eq!((mode(&program), mode(&plist)), (0o755, 0o644));
    let text = std::fs::read_to_string(&plist).unwrap();
    assert!(text.contains(program.to_str().unwrap()) && text.contains(">501<"), "{text}");
    let calls = mac.calls();
    for wanted in ["sudo launchctl bootstrap system ", "chown root:wheel ", "sudo mv -f "] {
        assert!(calls.iter().any(|call| call.starts_with(wanted)), "{wanted}: {calls:#?}");
    }

    mac.write_program("build/switchboard-helper", "two");
    mac.install(0, &args);
    assert_eq!(std::fs::read_to_string(&program).unwrap(), "two");
    assert_eq!(mac.called("launchctl kickstart -k system/org.switchboard.helper"), 1);
    mac.install(0, &["--uninstall", args[0], args[1]]);
    assert!(!program.exists() && !plist.exists());
}

#[test]
fn a_template_with_an_unknown_name_is_never_installed() {
    let mac = Machine::mac();
    mac.configure(&format!("number = \"{NUMBER}\""));
    let templates = mac.path("templates");
    std::fs::create_dir(&templates).unwrap();
    std::fs::write(templates.join("x.plist"), "<string>@MYSTERY@</string></plist>").unwrap();
    let said = mac.install(71, &["--templates", templates.to_str().unwrap()]);
    assert!(said.contains("@MYSTERY@"), "{said}");
    assert_eq!(mac.installed(), None);
}

// ------------------------------------------------------------------------------------------------------------- Linux

fn units(role: &str) -> &'static [&'static str] {
    if role == "router" {
        &["switchboard-router.service"]
    } else {
        &["switchboard-sandbox.service", "switchboard-supervisor.service"]
    }
}

#[test]
fn a_linux_host_is_installed_once_left_alone_twice_and_brought_up_to_date() {
    for role in ["router", "sandbox"] {
        let host = Machine::new("linux");
        let args = ["--role", role];
        host.install(0, &args);
        let calls = host.calls();
        for unit in units(role) {
            assert!(host.path("disk/etc/systemd/system").join(unit).exists());
            assert!(host.path("state/active").join(unit).exists(), "{calls:?}");
            assert!(host.path("state/enabled").join(unit).exists(), "{calls:?}");
        }
        assert!(calls.iter().any(|call| call == "systemctl daemon-reload"));

        let before = content(&host.path("disk"));
        let said = host.install(0, &args);
        assert!(said.contains("is as it was"), "{said}");
        assert_eq!(content(&host.path("disk")), before);
        let changed: Vec<String> =
            host.calls().into_iter().filter(|call| !call.contains("systemctl is-")).collect();
        assert!(changed.is_empty(), "{changed:?}");

        host.build("0.2.0");
        host.install(0, &args);
        assert_eq!(host.called("systemctl restart"), units(role).len());

        host.install(0, &["--role", role, "--uninstall"]);
        assert!(!host.path("state/active").join(units(role)[0]).exists());
        assert_eq!(std::fs::read_dir(host.path("disk/usr/local/bin")).unwrap().count(), 0);
        assert!(host.path("disk/etc/switchboard").read_dir().unwrap().count() > 0, "kept");
    }
}

#[test]
fn a_routers_token_is_made_once_kept_secret_and_never_shown() {
    let host = Machine::new("linux");
    let said = host.install(0, &[]);
    let file = host.path("disk/etc/switchboard/router.env");
    let text = std::fs::read_to_string(&file).unwrap();
    let token = text.strip_prefix("SWITCHBOARD_ADMIN_TOKEN=").unwrap().trim_end();
    assert_eq!((mode(&file), token.len()), (0o600, 64), "{token}");
    assert!(!said.contains(token));
    host.install(0, &[]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    let config = std::fs::read_to_string(host.path("disk/etc/switchboard/router.toml")).unwrap();
    assert!(config.contains("database = \"/var/lib/switchboard-router/switchboard.db\""));
}

#[test]
fn a_linux_host_goes_on_after_any_failure() {
    for role in ["router", "sandbox"] {
        for how in ["mv-fails", "mv-kills"] {
            for at in 1.. {
                let host = Machine::new("linux");
                let args = ["--role", role];
                host.install(0, &args);
                host.build("0.2.0");
                host.no_more("mv-count");
                host.state(how, &at.to_string());
                if host.run(&args).code == Some(0) {
                    assert!(at > 1, "it never failed");
                    break;
                }
                host.no_more(how);
                host.calls();
                host.install(0, &args);
                assert_eq!(host.called("systemctl restart"), units(role).len(), "{how} {at}");
            }
        }
        let host = Machine::new("linux");
        host.state("fails", "");
        let said = host.install(71, &["--role", role]);
        assert!(said.contains("journalctl -u"), "{said}");
        host.no_more("fails");
        host.install(0, &["--role", role]);
        assert!(host.path("state/active").join(units(role)[0]).exists());
    }
}

#[test]
fn a_wrong_configuration_replaces_no_program() {
    let host = Machine::new("linux");
    host.install(0, &[]);
    host.build("0.2.0");
    std::fs::write(host.path("disk/etc/switchboard/router.toml"), "colour = 1\n").unwrap();
    let said = host.install(78, &[]);
    assert!(said.contains("colour"), "{said}");
    let program = host.path("disk/usr/local/bin/switchboard-router");
    assert!(std::fs::read_to_string(program).unwrap().contains("0.1.0"));
    host.set("AS_UID", "1000");
    assert_eq!(
        program::foreign(
            &repository().join("scripts/install"),
            &[],
            &[
                (
                    "PATH",
                    &format!(
                        "{}:/usr/bin:/bin",
                        repository().join("tests/standins/linux").display()
                    )
                ),
                ("STANDIN", host.path("state").to_str().unwrap()),
                ("AS_UID", "1000"),
            ]
        )
        .unwrap()
        .code,
        Some(64),
        "without root and without a prefix"
    );
}

/// What systemd itself says of the units, where there is one; scripts/test says so where there is none.
#[test]
#[cfg(target_os = "linux")]
fn systemd_takes_the_units_and_finds_little_exposed() {
    let systemd = Path::new("/usr/bin/systemd-analyze");
    if !systemd.exists() {
        return;
    }
    for role in ["router", "sandbox"] {
        let host = Machine::new("linux");
        host.install(0, &["--role", role]);
        for unit in units(role) {
            let file = host.path("disk/etc/systemd/system").join(unit);
            let file = file.to_str().unwrap();
            let env = [("PATH", "/usr/bin:/bin")];
            let ended = program::foreign(
                systemd,
                &["verify", "--man=no", "--recursive-errors=no", file],
                &env,
            );
            let ended = ended.unwrap();
            assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{unit}");
            // 0 is sealed, 100 wide open; an ordinary unit has about 96.
            let security = ["security", "--offline=yes", "--threshold=22", "--no-pager", file];
            let ended = program::foreign(systemd, &security, &env).unwrap();
            assert_eq!(ended.code, Some(0), "{unit}: {}{}", ended.out, ended.err);
        }
    }
}
