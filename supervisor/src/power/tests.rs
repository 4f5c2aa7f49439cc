use std::os::unix::fs::PermissionsExt as _;

use proptest::prelude::*;

use super::*;

/// Every wait of these tests ends by then.
const PATIENCE: Duration = Duration::from_secs(20);

fn reading(source: PowerSource, percent: Option<u8>, minutes: Option<u32>) -> Reading {
    Reading { source, percent, minutes }
}

#[test]
fn answers_that_say_little_or_nothing_are_unknown_and_no_error() {
    let unknown = Reading::NONE;
    let table = [
        ("", unknown),
        ("Now drawing from 'AC Power", unknown),
        ("Now drawing from 'Solar Power'\n", unknown),
        ("pmset: something else\n", unknown),
        ("Now drawing from 'AC Power'\n", reading(PowerSource::Mains, None, None)),
        (
            "Now drawing from 'UPS Power'\n -Back-UPS (id=1)\t999%; discharging; x:y remaining\n",
            reading(PowerSource::Ups, None, None),
        ),
        (
            "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t90%; discharging; (no estimate) present: true",
            reading(PowerSource::Battery, Some(90), None),
        ),
        (
            "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t90%; discharging; 0:00 remaining present: true",
            reading(PowerSource::Battery, Some(90), None),
        ),
        (
            "Now drawing from 'UPS Power'\n -Back-UPS (id=1)\t50%; discharging; 99999999:00 remaining present: true",
            reading(PowerSource::Ups, Some(50), None),
        ),
        (
            "Now drawing from 'UPS Power'\n -Back-UPS (id=1)\t50%; discharging; 0:20 remaining present: false",
            reading(PowerSource::Ups, None, None),
        ),
    ];
    for (text, wanted) in table {
        assert_eq!(parse(text), wanted, "{text}");
    }
}

#[test]
fn each_source_is_read_with_its_charge_and_what_is_left() {
    let table = [
        (
            "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=4522083)\t18%; discharging; 0:04 remaining present: true\n",
            reading(PowerSource::Battery, Some(18), Some(4)),
        ),
        (
            "Now drawing from 'UPS Power'\n -Smart-UPS 750 50% (id=7)\t81%; discharging; 1:24 remaining present: true\n",
            reading(PowerSource::Ups, Some(81), Some(84)),
        ),
        (
            "Now drawing from 'AC Power'\n -InternalBattery-0 (id=4522083)\t97%; charging; 0:30 remaining present: true\n",
            reading(PowerSource::Mains, Some(97), None),
        ),
        (
            "Now drawing from 'UPS Power'\n -InternalBattery-0 (id=1)\t5%; charging; 3:00 remaining present: true\n -UPS (id=2)\t70%; discharging; 0:40 remaining present: true\n",
            reading(PowerSource::Ups, Some(70), Some(40)),
        ),
        (
            "Now drawing from 'Battery Power'\n -InternalBattery-0 (id=1)\t60%; discharging; 2:00 remaining present: true\n -UPS (id=2)\t3%; discharging; 0:01 remaining present: true\n",
            reading(PowerSource::Battery, Some(60), Some(120)),
        ),
    ];
    for (text, wanted) in table {
        assert_eq!(parse(text), wanted, "{text}");
    }
}

const MAINS: Reading = Reading { source: PowerSource::Mains, percent: Some(100), minutes: None };
const FULL: Reading = Reading { source: PowerSource::Ups, percent: Some(90), minutes: Some(60) };
const EMPTY: Reading = Reading { source: PowerSource::Ups, percent: Some(30), minutes: None };
const NEARLY: Reading = Reading { source: PowerSource::Ups, percent: Some(34), minutes: None };

/// The level after each reading, one every five seconds.
fn levels(readings: &[Reading]) -> Vec<PowerLevel> {
    let mut judge = Judge::new(Limits::default());
    let mut now = 1_000;
    readings
        .iter()
        .map(|reading| {
            now += 5_000;
            judge.take(*reading, now);
            judge.level()
        })
        .collect()
}

#[test]
fn levels_follow_readings_without_flutter() {
    use PowerLevel::{Battery, Low, Mains, Unknown};
    let none = Reading::NONE;
    let short = reading(PowerSource::Ups, Some(90), Some(10));
    let blank = reading(PowerSource::Ups, None, None);
    let table: &[(&[Reading], &[PowerLevel])] = &[
        // The first reading counts at once.
        (&[EMPTY], &[Low]),
        (&[MAINS, FULL, MAINS, FULL, FULL], &[Mains, Mains, Mains, Mains, Battery]),
        (&[FULL, EMPTY, EMPTY], &[Battery, Battery, Low]),
        (&[FULL, short, short], &[Battery, Battery, Low]),
        // A little above the limit is not out of it, and no estimate is no comfort.
        (&[EMPTY, NEARLY, NEARLY, blank, blank], &[Low; 5]),
        // Six readings, thirty seconds after the first of them.
        (&[EMPTY, MAINS, MAINS, MAINS, MAINS, MAINS, MAINS], &[Low; 7]),
        (
            &[EMPTY, MAINS, MAINS, MAINS, MAINS, MAINS, MAINS, MAINS],
            &[Low, Low, Low, Low, Low, Low, Low, Mains],
        ),
        (&[EMPTY, none, none, none, none, none, none, none], &[Low; 8]),
        (
            &[MAINS, none, none, none, none, none, none, MAINS, MAINS],
            &[Mains, Mains, Mains, Mains, Mains, Mains, Unknown, Unknown, Mains],
        ),
    ];
    for (readings, wanted) in table {
        assert_eq!(&levels(readings), wanted, "{readings:?}");
    }
}

#[test]
fn a_sleep_is_what_one_clock_saw_and_the_other_did_not() {
    let at = |continuous, awake| Clocks { continuous, awake };
    let table = [
        (at(1_000, 500), at(2_000, 1_500), None),
        // Late, but awake: a starved process is no sleep.
        (at(1_000, 500), at(61_000, 60_500), None),
        (at(1_000, 500), at(3_500, 1_000), None),
        (at(1_000, 500), at(62_000, 1_500), Some(Duration::from_mins(1))),
        (at(1_000, 500), at(0, 0), None),
    ];
    for (before, now, wanted) in table {
        assert_eq!(slept(before, now), wanted, "{before:?} {now:?}");
    }
}

proptest! {
    #[test]
    fn any_answer_is_read(text in "(?s).{0,400}") {
        let read = parse(&text);
        prop_assert!(read.percent.is_none_or(|percent| percent <= 100));
    }

    #[test]
    fn any_answer_of_the_right_kind_is_read(
        source in "(AC|Battery|UPS|Other) Power",
        lines in prop::collection::vec(
            "[ \t]?-(InternalBattery|UPS)[-0-9 ]{0,3}\\(id=[0-9]*\\)\t?[0-9]{0,5}%?;? ?(discharging|charged|AC attached)?; [0-9]{0,9}:?[0-9]{0,9}( remaining| present: (true|false))?",
            0..4,
        ),
    ) {
        let read = parse(&format!("Now drawing from '{source}'\n{}", lines.join("\n")));
        prop_assert_eq!(read.source == PowerSource::Unknown, source == "Other Power");
        prop_assert!(read.percent.is_none_or(|percent| percent <= 100));
    }

    /// Out of low only through mains or a charge well above the limit, whatever else is read.
    #[test]
    fn low_is_left_for_good_reasons_only(readings in prop::collection::vec((0_u8..4, 0_u8..=100), 1..60)) {
        let mut judge = Judge::new(Limits::default());
        let mut now = 0;
        for (kind, percent) in readings {
            now += 5_000;
            let source = [PowerSource::Mains, PowerSource::Battery, PowerSource::Ups, PowerSource::Unknown][usize::from(kind)];
            if let Some((PowerLevel::Low, to)) = judge.take(reading(source, Some(percent), None), now) {
                prop_assert!(to == PowerLevel::Mains || percent > 35);
                prop_assert!(to != PowerLevel::Unknown);
            }
        }
    }
}

struct Fake {
    dir: tempfile::TempDir,
    tracker: TaskTracker,
}

impl Fake {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), tracker: TaskTracker::new() }
    }

    /// A program that does what `script` says.
    fn program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    async fn read(&self, script: &str) -> Result<Reading, String> {
        let program = self.program("pmset", script);
        let spec = spec(&program, &["-g".into(), "batt".into()], self.dir.path(), "pmset");
        read(&spec, &self.tracker).await.map_err(|error| error.to_string())
    }
}

#[tokio::test]
async fn a_pmset_that_is_missing_fails_or_prints_something_else_is_named() {
    let fake = Fake::new();
    let table = [
        ("echo 'no such thing' >&2; exit 3", "`no such thing` and ended with exit status: 3"),
        ("echo usage", "`usage`, which names no power source"),
        ("head -c 100000 /dev/zero | tr '\\0' a; echo", "a line of 100000 bytes"),
        ("yes 'Now drawing from' | head -n 100000", "more than 16384 bytes"),
        ("printf \"Now drawing from '\"", "half a line of 18 bytes"),
    ];
    for (script, wanted) in table {
        let error = fake.read(script).await.unwrap_err();
        assert!(error.contains(wanted), "{script}: {error}");
    }
    let missing = spec(Path::new("/nonexistent/pmset"), &[], fake.dir.path(), "pmset");
    let error = read(&missing, &fake.tracker).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/pmset"), "{error}");
}

#[tokio::test]
async fn a_program_that_hangs_is_killed() {
    let fake = Fake::new();
    let program = fake.program("hang", "sleep 1000");
    let spec = spec(&program, &[], fake.dir.path(), "hang");
    let error =
        child::run(&spec, Duration::from_millis(200), 100, &fake.tracker).await.unwrap_err();
    assert!(matches!(error, RunError::Late { .. }), "{error}");
}

#[tokio::test]
async fn what_pmset_says_is_told_and_changes_with_it() {
    let fake = Fake::new();
    let answer = fake.dir.path().join("answer");
    std::fs::write(&answer, "Now drawing from 'AC Power'\n").unwrap();
    let settings = Settings {
        pmset: Some(fake.program("pmset", "[ \"$*\" = '-g batt' ] && cat answer")),
        caffeinate: None,
        poll: Duration::from_millis(20),
        limits: Limits::default(),
    };
    let (told, mut power) = watch::channel(None);
    let closing = CancellationToken::new();
    let (_changes, settings) = watch::channel(settings);
    start(&settings, fake.dir.path(), told, &fake.tracker, &closing);
    let mut wait = async |level| {
        let wanted = power.wait_for(|power: &Option<HostPower>| {
            power.as_ref().is_some_and(|power| power.level == level)
        });
        tokio::time::timeout(PATIENCE, wanted).await.unwrap().unwrap().clone().unwrap()
    };
    wait(PowerLevel::Mains).await;
    let next = fake.dir.path().join("next");
    std::fs::write(&next, "Now drawing from 'UPS Power'\n -UPS (id=1)\t12%; discharging; 0:09 remaining present: true\n").unwrap();
    std::fs::rename(&next, &answer).unwrap();
    let low = wait(PowerLevel::Low).await;
    assert_eq!((low.source, low.percent, low.minutes), (PowerSource::Ups, Some(12), Some(9)));
    closing.cancel();
    fake.tracker.close();
    tokio::time::timeout(PATIENCE, fake.tracker.wait()).await.unwrap();
}

#[tokio::test]
async fn caffeinate_is_started_again_and_ends_with_us() {
    let fake = Fake::new();
    // The first one dies at once, the second one stays.
    let script =
        "echo \"$$ $*\" >> started; [ $(wc -l < started) -gt 1 ] && exec sleep 1000; exit 1";
    let settings = Settings {
        pmset: None,
        caffeinate: Some(fake.program("caffeinate", script)),
        poll: POLL,
        limits: Limits::default(),
    };
    let closing = CancellationToken::new();
    let (_changes, settings) = watch::channel(settings);
    start(&settings, fake.dir.path(), watch::channel(None).0, &fake.tracker, &closing);
    let started = || std::fs::read_to_string(fake.dir.path().join("started")).unwrap_or_default();
    let second = async {
        while started().lines().count() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, second).await.expect("caffeinate was not started again");
    let text = started();
    let (pid, args) = text.lines().nth(1).unwrap().split_once(' ').unwrap();
    assert_eq!(args, format!("-dimsu -w {}", std::process::id()));
    closing.cancel();
    fake.tracker.close();
    tokio::time::timeout(PATIENCE, fake.tracker.wait()).await.unwrap();
    let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    let gone = async {
        while nix::sys::signal::kill(pid, None).is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("caffeinate outlived its supervisor");
}
