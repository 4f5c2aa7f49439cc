//! Messages and its agents as processes: what runs, what hangs, what a signal does.

use crate::socket::{Account, Cure};

/// The agents of Messages, by the names that the kernel keeps: 16 bytes.
const AGENTS: [&str; 3] = ["imagent", "identityservices", "IMDPersistenceAg"];

/// Process ids: of Messages from here on, one for each start; of the agents from there on.
const APP_PIDS: u32 = 40_000;
const AGENT_PIDS: u32 = 50_000;

/// Whether Messages runs, how it is, and its account.
#[derive(Debug, Clone, Copy)]
pub(super) struct App {
    pub(super) running: bool,
    pub(super) account: Account,
    /// It hangs whenever it runs, until this was done.
    pub(super) sick: Option<Cure>,
    /// It shows windows.
    pub(super) windows: bool,
    starts: u32,
    agents: u32,
}

impl App {
    pub(super) fn new() -> Self {
        Self {
            running: true,
            account: Account::Connected,
            sick: None,
            windows: false,
            starts: 0,
            agents: 0,
        }
    }

    pub(super) fn is_hung(self) -> bool {
        self.running && self.sick.is_some()
    }

    pub(super) fn quits_though_hung(self) -> bool {
        matches!(self.sick, None | Some(Cure::Quit))
    }

    /// It ends. What lies in the agents does not end with it.
    pub(super) fn end(&mut self) {
        self.running = false;
        self.windows = false;
        self.sick = self.sick.filter(|cure| matches!(cure, Cure::Agents | Cure::Never));
    }

    /// It starts, with a window, if it does not run.
    pub(super) fn start(&mut self) {
        if !self.running {
            self.running = true;
            self.windows = true;
            self.starts = self.starts.saturating_add(1);
        }
    }

    /// Its process, which is another after each start.
    pub(super) fn pid(self) -> Option<u32> {
        self.running.then(|| APP_PIDS.saturating_add(self.starts))
    }

    /// What pgrep finds.
    pub(super) fn processes(self) -> impl Iterator<Item = (u32, &'static str)> {
        let app = self.pid().map(|pid| (pid, "Messages"));
        let first = AGENT_PIDS.saturating_add(self.agents.saturating_mul(10));
        app.into_iter().chain((first..).zip(AGENTS))
    }

    /// A signal to a process; false when there is none of that number.
    pub(super) fn signal(&mut self, pid: u32, kill: bool) -> bool {
        match self.processes().find(|(found, _)| *found == pid) {
            None => false,
            Some((_, "Messages")) => {
                if kill || self.sick != Some(Cure::Kill) {
                    self.end();
                }
                true
            }
            Some((_, name)) => {
                // launchd starts agents again.
                if name == "imagent" {
                    self.agents = self.agents.saturating_add(1);
                    self.sick = self.sick.filter(|cure| *cure != Cure::Agents);
                }
                true
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pid(app: App, name: &str) -> Option<u32> {
        app.processes().find(|(_, found)| *found == name).map(|(pid, _)| pid)
    }

    #[test]
    fn each_way_to_hang_ends_by_its_cure_and_by_nothing_less() {
        // How it hangs → whether TERM ends it, and whether it hangs after KILL and another start.
        let cases = [
            (Cure::Quit, true, false),
            (Cure::Term, true, false),
            (Cure::Kill, false, false),
            (Cure::Agents, true, true),
            (Cure::Never, true, true),
        ];
        for (cure, by_term, again) in cases {
            let mut app = App::new();
            let first = pid(app, "Messages").unwrap();
            app.sick = Some(cure);
            assert!(app.is_hung());
            assert_eq!(app.quits_though_hung(), cure == Cure::Quit);
            assert!(app.signal(first, false));
            assert_eq!(app.running, !by_term, "{cure:?}");
            app.signal(first, true);
            assert!(!app.running && !app.is_hung() && pid(app, "Messages").is_none());
            assert!(!app.signal(first, true), "it is gone");
            app.start();
            assert_ne!(pid(app, "Messages"), Some(first));
            assert_eq!(app.is_hung(), again, "{cure:?}");
            assert!(app.windows);
            let agent = pid(app, "imagent").unwrap();
            assert!(app.signal(agent, false));
            assert_ne!(pid(app, "imagent"), Some(agent), "launchd has started another");
            assert_eq!(app.is_hung(), cure == Cure::Never);
        }
    }
}
