//! Kannel as Debian packages it: bearerbox with its file store, smsbox, and its own fakesmsc as the phones. Run as
//! programs, never linked; what it does between the request and the report's hook is the nearest thing to what we do.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use e2e::eventually;
use e2e::program::Program;
use e2e::shelf::free_addr;
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

use crate::posts::{self, Ask, Key, Post};
use crate::relay::{Rounds, recipient};
use crate::wire::Hook;

/// Where Debian's packages `kannel` and `kannel-extras` put them.
const BEARERBOX: &str = "/usr/sbin/bearerbox";
const SMSBOX: &str = "/usr/sbin/smsbox";
const FAKESMSC: &str = "/usr/lib/kannel/test/fakesmsc";

const UP_WITHIN: Duration = Duration::from_secs(15);

pub(crate) struct Kannel {
    /// Where smsbox takes requests.
    addr: SocketAddr,
    hook: Hook,
    // Each is killed with its group when this is dropped, the last one first.
    _programs: [Program; 3],
    _dir: TempDir,
}

impl Kannel {
    /// Starts all three; `None`, and a word about it, where Kannel is not installed. With `throughput` its fakesmsc takes
    /// no more than so many messages a second.
    pub(crate) async fn start(throughput: Option<u32>) -> Result<Option<Self>> {
        for program in [BEARERBOX, SMSBOX, FAKESMSC] {
            if !Path::new(program).exists() {
                crate::say(&format!(
                    "NO BASELINE for `through`: {program} is missing. Install Debian's kannel and kannel-extras."
                ))?;
                return Ok(None);
            }
        }
        let dir = tempfile::Builder::new().prefix("swb-").tempdir_in("/tmp").context("folder")?;
        let root = dir.path();
        let [admin, boxes, smsc, send] = [free_addr()?, free_addr()?, free_addr()?, free_addr()?];
        let config = root.join("kannel.conf");
        std::fs::write(&config, conf(root, [admin, boxes, smsc, send], throughput))
            .context("kannel.conf")?;
        let config = config.display().to_string();
        let start = |program: &str, args: &[&str], name: &str| {
            Program::start_at(Path::new(program), args, &[], &root.join(name))
        };
        let bearerbox = start(BEARERBOX, &["-v", "4", &config], "bearerbox.out")?;
        up("bearerbox", boxes).await?;
        let port = smsc.port().to_string();
        // It only takes what comes: no message of its own, whatever it would be asked to send.
        let args = ["-H", "127.0.0.1", "-r", &port, "-m", "0", "-v", "4", "1 2 text none"];
        let fakesmsc = start(FAKESMSC, &args, "fakesmsc.out")?;
        let smsbox = start(SMSBOX, &["-v", "4", &config], "smsbox.out")?;
        up("smsbox", send).await?;
        let tasks = TaskTracker::new();
        let hook = Hook::start(&tasks, |head, _| {
            let (_, rest) = head.split_once("n=")?;
            rest.split(' ').next().map(ToOwned::to_owned)
        })
        .await?;
        Ok(Some(Self { addr: send, hook, _programs: [smsbox, fakesmsc, bearerbox], _dir: dir }))
    }

    pub(crate) async fn burst(&self, rounds: &mut Rounds, which: (u32, u32)) -> Result<()> {
        rounds.burst(self.addr, &self.hook, which, (self.ask(true), Self::KEY)).await
    }

    /// Requests alone, over so many connections: what it has taken is sent, and no report is asked for.
    pub(crate) async fn take(
        &self,
        connections: usize,
        range: (u32, u32),
    ) -> Result<(Vec<Post>, Duration)> {
        posts::over(connections, self.addr, range, self.ask(false), Self::KEY).await
    }

    const KEY: Key = |n, _| Some(n.to_string());

    fn ask(&self, reports: bool) -> Ask {
        let hook = self.hook.addr;
        Arc::new(move |n| {
            let report = if reports {
                let (ip, port) = (hook.ip(), hook.port());
                format!("&dlr-mask=8&dlr-url=http%3A%2F%2F{ip}%3A{port}%2Fdlr%3Fn%3D{n}")
            } else {
                String::new()
            };
            format!(
                "GET /cgi-bin/sendsms?username=load&password=load&from=15550100&to={}{report}\
                 &text=Your+table+number+{n}+is+ready.+We+keep+it+for+ten+minutes. HTTP/1.1\r\nhost: load\r\n\r\n",
                recipient(n).trim_start_matches('+'),
            )
        })
    }
}

async fn up(what: &str, addr: SocketAddr) -> Result<()> {
    eventually(&format!("{what} listens"), UP_WITHIN, || async {
        let up = tokio::net::TcpStream::connect(addr).await;
        Ok(up.map(drop).map_err(|error| error.to_string()))
    })
    .await
}

/// Everything in one folder and on ports of its own; the store is the file store, reports are kept in memory.
fn conf(
    root: &Path,
    [admin, boxes, smsc, send]: [SocketAddr; 4],
    throughput: Option<u32>,
) -> String {
    let root = root.display();
    let throughput = throughput.map_or_else(String::new, |most| format!("throughput = {most}\n"));
    format!(
        "group = core\nadmin-port = {}\nadmin-password = load\nsmsbox-port = {}\nbox-allow-ip = 127.0.0.1\n\
         store-type = file\nstore-location = {root}/kannel.store\ndlr-storage = internal\n\
         log-file = {root}/bearerbox.log\nlog-level = 4\n\n\
         group = smsc\nsmsc = fake\nsmsc-id = fake\nport = {}\nconnect-allow-ip = 127.0.0.1\n{throughput}\n\
         group = smsbox\nbearerbox-host = 127.0.0.1\nsendsms-port = {}\nlog-file = {root}/smsbox.log\nlog-level = 4\n\n\
         group = sendsms-user\nusername = load\npassword = load\n\n\
         group = sms-service\nkeyword = default\ntext = none\n",
        admin.port(),
        boxes.port(),
        smsc.port(),
        send.port(),
    )
}
