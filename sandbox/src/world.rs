//! The phones of one sandbox and what happens on them.

mod app;
mod rows;

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, bail};
use protocol::E164;
use serde_json::{Value, json};
use tokio::sync::{Notify, OwnedMutexGuard, oneshot};
use tokio_util::task::TaskTracker;
use tracing::{error, warn};

use crate::applescript::Content;
use crate::chatdb::kinds::attachment::{Attachment, Parts};
use crate::chatdb::kinds::{Author, Row};
use crate::chatdb::{
    ChatDb, ChatDbError, Conversation, Inbound, MacOs, Outbound, Written, new_guid,
};
use crate::clock::AppleNs;
use crate::outcome::{self, Action, Answer, FirstLook, Plan, Service};
use crate::socket::{Account, Reply, Request};
use crate::truth::{Send, Truth};
use app::App;

/// The programs of a Mac that this one plays, by the name that it is called by.
const PROGRAMS: [&str; 4] = ["osascript", "open", "pgrep", "kill"];

/// How long an inbound row stays without its chat, at speed 1.
const INBOUND_JOIN_MS: u64 = 10;

/// `+15550100001=15`: a number and the macOS of its Mac.
#[derive(Debug, Clone)]
pub struct PhoneSpec {
    number: E164,
    macos: MacOs,
}

impl std::str::FromStr for PhoneSpec {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (number, macos) = text.split_once('=').unwrap_or((text, "15"));
        Ok(Self { number: number.parse()?, macos: macos.parse()? })
    }
}

#[derive(Debug)]
struct Phone {
    number: String,
    macos: MacOs,
    folder: PathBuf,
    db: Mutex<ChatDb>,
    app: Mutex<App>,
    /// Something about `app` is another now.
    changed: Notify,
    /// Held while an Apple event is handled: Messages takes one at a time.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Phone {
    fn app(&self) -> App {
        *self.app.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut App)) {
        change(&mut self.app.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_waiters();
    }

    /// What an Apple event meets: one that hangs keeps it until it ends, and then the connection is invalid.
    async fn hears(&self) -> Result<(), Outcome> {
        let mut waited = false;
        loop {
            let changed = self.changed.notified();
            if !self.app().is_hung() {
                return if waited { Err(event_error(-609)) } else { Ok(()) };
            }
            waited = true;
            changed.await;
        }
    }

    /// Takes the turn of an Apple event.
    async fn turn(&self) -> Result<OwnedMutexGuard<()>, Outcome> {
        self.hears().await?;
        let turn = Arc::clone(&self.turn).lock_owned().await;
        // It may have begun to hang behind the one before.
        self.hears().await?;
        Ok(turn)
    }

    /// Writes in a thread that may block.
    async fn write<T: std::marker::Send + 'static>(
        self: &Arc<Self>,
        write: impl FnOnce(&mut ChatDb) -> Result<T, ChatDbError> + std::marker::Send + 'static,
    ) -> anyhow::Result<T> {
        let phone = Arc::clone(self);
        let task = move || write(&mut phone.db.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(tokio::task::spawn_blocking(task).await.context("a writer ended early")??)
    }

    /// The same for what reads and moves files as well.
    async fn act<T: std::marker::Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&mut ChatDb) -> anyhow::Result<T> + std::marker::Send + 'static,
    ) -> anyhow::Result<T> {
        let phone = Arc::clone(self);
        let task = move || act(&mut phone.db.lock().unwrap_or_else(PoisonError::into_inner));
        tokio::task::spawn_blocking(task).await.context("a writer ended early")?
    }
}

/// What a request came to.
#[derive(Debug)]
pub(crate) enum Outcome {
    Reply(Reply),
    /// Hang, and keep the phone's turn as long as the asking process lives.
    Hang(OwnedMutexGuard<()>),
    Stop,
}

impl From<Reply> for Outcome {
    fn from(reply: Reply) -> Self {
        Self::Reply(reply)
    }
}

fn done(value: Value) -> Outcome {
    Reply::Done { value }.into()
}

fn event_error(number: i32) -> Outcome {
    Reply::EventError { number, message: None }.into()
}

fn cannot_get(what: &str) -> Outcome {
    let message = Some(crate::applescript::EventError::cannot_get(what).message);
    Reply::EventError { number: -1728, message }.into()
}

/// All phones of one folder.
#[derive(Debug)]
pub(crate) struct World {
    dir: PathBuf,
    speed: f64,
    phones: BTreeMap<String, Arc<Phone>>,
    truth: Truth,
    tasks: TaskTracker,
}

/// What is sent.
#[derive(Debug, Clone)]
enum Matter {
    Text(String),
    /// An absolute path.
    File(PathBuf),
}

impl Matter {
    fn of(text: String, file: Option<String>) -> Self {
        file.map_or(Self::Text(text), |path| Self::File(PathBuf::from(path)))
    }

    fn content<'m>(&'m self, path: &'m str) -> Content<'m> {
        match self {
            Self::Text(text) => Content::Text(text),
            Self::File(_) => Content::File(path),
        }
    }
}

/// A text or a file on its way out.
struct Ask {
    conversation: Conversation,
    service: Service,
    matter: Matter,
    plan: Plan,
}

impl World {
    /// Makes or opens the phones. `program` is what their osascript links to.
    pub(crate) fn open(
        dir: &Path,
        specs: &[PhoneSpec],
        speed: f64,
        program: &Path,
        tasks: TaskTracker,
    ) -> anyhow::Result<Self> {
        let mut phones = BTreeMap::new();
        for spec in specs {
            let number = spec.number.as_str().to_owned();
            let folder = dir.join(spec.number.digits());
            std::fs::create_dir_all(&folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
            for name in PROGRAMS {
                link(program, &folder.join(name))?;
            }
            let path = folder.join("chat.db");
            let db = ChatDb::open(&path, spec.macos, &number)
                .with_context(|| format!("cannot open {}", path.display()))?;
            let phone = Phone {
                number: number.clone(),
                macos: spec.macos,
                folder,
                db: Mutex::new(db),
                app: Mutex::new(App::new()),
                changed: Notify::new(),
                turn: Arc::default(),
            };
            if phones.insert(number.clone(), Arc::new(phone)).is_some() {
                bail!("{number} is there twice");
            }
        }
        let truth =
            Truth::open(dir).with_context(|| format!("cannot write in {}", dir.display()))?;
        Ok(Self { dir: dir.to_owned(), speed, phones, truth, tasks })
    }

    /// The phones with their folders, as the ready line shows them.
    pub(crate) fn list(&self) -> Value {
        let phones = self.phones.values().map(|phone| {
            let app = phone.app();
            json!({
                "number": phone.number,
                "macos": phone.macos.number(),
                "chat_db": phone.folder.join("chat.db"),
                "osascript": phone.folder.join("osascript"),
                "running": app.running,
                "hung": app.is_hung(),
                "pid": app.pid(),
                "windows": app.windows,
                "account": app.account,
            })
        });
        json!({"dir": self.dir, "phones": phones.collect::<Vec<_>>()})
    }

    fn phone(&self, number: &str) -> Option<Arc<Phone>> {
        let digits = number.trim_start_matches('+');
        self.phones.get(&format!("+{digits}")).cloned()
    }

    /// The named phone, or all.
    fn named(&self, number: Option<&str>) -> Result<Vec<Arc<Phone>>, Outcome> {
        match number {
            None => Ok(self.phones.values().cloned().collect()),
            Some(number) => Ok(vec![self.known(number)?]),
        }
    }

    fn known(&self, number: &str) -> Result<Arc<Phone>, Outcome> {
        self.phone(number).ok_or_else(|| {
            Reply::Refused { message: format!("there is no phone {number} here") }.into()
        })
    }

    /// Does what is asked. Never fails: a failure is a reply.
    pub(crate) async fn handle(self: &Arc<Self>, request: Request) -> Outcome {
        match self.try_handle(request).await {
            Ok(outcome) | Err(outcome) => outcome,
        }
    }

    async fn try_handle(self: &Arc<Self>, request: Request) -> Result<Outcome, Outcome> {
        Ok(match request {
            Request::Account { phone, service } => {
                let phone = self.known(&phone)?;
                let _turn = phone.turn().await?;
                account(&phone, &service)?;
                done(Value::Null)
            }
            Request::ConnectionStatus { phone, service } => {
                let phone = self.known(&phone)?;
                let _turn = phone.turn().await?;
                account(&phone, &service)?;
                match phone.app().account {
                    Account::Connected => done("connected".into()),
                    Account::Connecting => done("connecting".into()),
                    Account::Disconnected => done("disconnected".into()),
                    // `account` has already failed for these.
                    Account::Missing => event_error(-2753),
                    Account::NoPermission => event_error(-1743),
                }
            }
            Request::CountAccounts { phone } => {
                let phone = self.known(&phone)?;
                let _turn = phone.turn().await?;
                available(&phone)?;
                let without_rcs = if phone.macos.has_rcs() { 3 } else { 2 };
                let missing = phone.app().account == Account::Missing;
                done(Value::from(if missing { 0 } else { without_rcs }))
            }
            Request::Chat { phone, chat } => {
                let phone = self.known(&phone)?;
                let _turn = phone.turn().await?;
                available(&phone)?;
                self.chat_ask(&phone, chat, Matter::Text(String::new())).await?;
                done(Value::Null)
            }
            Request::Send { phone, service, to, text, file } => {
                let phone = self.known(&phone)?;
                let turn = phone.turn().await?;
                let service = account(&phone, &service)?;
                let plan = outcome::plan(&to, service);
                let conversation = Conversation::Direct(to);
                let matter = Matter::of(text, file);
                self.send(&phone, Ask { conversation, service, matter, plan }, turn).await
            }
            Request::SendToChat { phone, chat, text, file } => {
                let phone = self.known(&phone)?;
                let turn = phone.turn().await?;
                available(&phone)?;
                let ask = self.chat_ask(&phone, chat, Matter::of(text, file)).await?;
                self.send(&phone, ask, turn).await
            }
            Request::Receive(ask) => {
                let phone = self.known(&ask.phone)?;
                let mut delays = self.delays();
                if let Some(ms) = ask.join_after_ms {
                    delays.join = Duration::from_millis(ms);
                }
                answered(rows::receive(&phone, ask, delays).await)
            }
            Request::React(ask) => {
                let phone = self.known(&ask.phone)?;
                answered(rows::react(&phone, ask, self.delays()).await)
            }
            Request::Edit(ask) => answered(rows::edit(&self.known(&ask.phone)?, ask).await),
            Request::Unsend(ask) => answered(rows::unsend(&self.known(&ask.phone)?, ask).await),
            Request::Group(ask) => {
                let phone = self.known(&ask.phone)?;
                answered(rows::group(&phone, ask, self.delays()).await)
            }
            Request::FinishAttachment(ask) => {
                let phone = self.known(&ask.phone)?;
                answered(rows::finish_attachment(&phone, ask).await)
            }
            Request::Schedule(ask) => {
                let phone = self.known(&ask.phone)?;
                answered(rows::schedule(&phone, ask, self.delays()).await)
            }
            Request::Delete(ask) => answered(rows::delete(&self.known(&ask.phone)?, ask).await),
            Request::Reopen { phone } => {
                for phone in self.named(phone.as_deref())? {
                    phone.write(ChatDb::reopen).await.map_err(|error| refused(&error))?;
                }
                done(Value::Null)
            }
            Request::LateCopy { phone, guid } => {
                let phone = self.known(&phone)?;
                let copied = async {
                    let copy = phone.write(move |db| db.write_late_copy(&guid)).await?;
                    join_later(&phone, copy, self.scaled(INBOUND_JOIN_MS)).await
                };
                written(copied.await)
            }
            Request::Read { phone, guid } => {
                let phone = self.known(&phone)?;
                let read = phone.write(move |db| {
                    let rowid = db.own_message(guid.as_deref())?;
                    db.set_read(rowid, AppleNs::now())?;
                    Ok(rowid)
                });
                match read.await {
                    Ok(rowid) => done(json!({"rowid": rowid})),
                    Err(error) => refused(&error),
                }
            }
            Request::SetAccount { phone, account } => {
                for phone in self.named(phone.as_deref())? {
                    phone.change(|app| app.account = account);
                }
                done(Value::Null)
            }
            Request::Quit { phone } => {
                for phone in self.named(phone.as_deref())? {
                    phone.change(App::end);
                }
                done(Value::Null)
            }
            Request::Start { phone } => {
                for phone in self.named(phone.as_deref())? {
                    phone.change(App::start);
                }
                done(Value::Null)
            }
            Request::Hang { phone, until } => {
                for phone in self.named(phone.as_deref())? {
                    phone.change(|app| app.sick = Some(until));
                }
                done(Value::Null)
            }
            Request::IsRunning { phone } => done(self.known(&phone)?.app().running.into()),
            Request::AskToQuit { phone } => {
                let phone = self.known(&phone)?;
                available(&phone)?;
                // The one event that some of those that hang still take.
                if !phone.app().quits_though_hung() {
                    phone.hears().await?;
                }
                phone.change(App::end);
                done(Value::Null)
            }
            Request::CloseWindows { phone } => {
                let phone = self.known(&phone)?;
                let _turn = phone.turn().await?;
                available(&phone)?;
                phone.change(|app| app.windows = false);
                done(Value::Null)
            }
            Request::Processes { phone } => {
                let app = self.known(&phone)?.app();
                let processes = app.processes();
                done(processes.map(|(pid, name)| json!({"pid": pid, "name": name})).collect())
            }
            Request::Signal { phone, pid, kill } => {
                let phone = self.known(&phone)?;
                let mut met = false;
                phone.change(|app| met = app.signal(pid, kill));
                done(met.into())
            }
            Request::List => done(self.list()),
            Request::Stop => Outcome::Stop,
        })
    }

    /// What `send … to chat id …` means: an existing chat, of exactly this guid.
    async fn chat_ask(
        &self,
        phone: &Arc<Phone>,
        guid: String,
        matter: Matter,
    ) -> Result<Ask, Outcome> {
        let wanted = guid.clone();
        let found = phone.write(move |db| {
            let chat = db.chat_of_guid(&wanted)?;
            // A group named like a direct chat "works" and leaves a ghost (imsg#90).
            let group = wanted.strip_prefix("any;-;").filter(|id| id.starts_with("chat"));
            let ghost = match group {
                Some(id) => db.has_group(id)?.then(|| id.to_owned()),
                None => None,
            };
            Ok((chat, ghost))
        });
        let (chat, ghost) = found.await.map_err(|error| {
            error!("{error:#}");
            event_error(-10_000)
        })?;
        if let Some(chat) = chat {
            let (service, conversation) = (chat.service, chat.conversation);
            let plan = match &conversation {
                // Messages has not loaded it, though it is in chat.db.
                Conversation::Direct(address) if outcome::is_unloaded(address) => {
                    return Err(cannot_get(&format!("chat id \"{guid}\"")));
                }
                Conversation::Direct(address) => outcome::plan(address, service),
                Conversation::Group { .. } => outcome::group_plan(),
            };
            return Ok(Ask { conversation, service, matter, plan });
        }
        if let Some(id) = ghost {
            let conversation = Conversation::Group { id, members: Vec::new() };
            let (service, plan) = (Service::Imessage, outcome::ghost_plan());
            return Ok(Ask { conversation, service, matter, plan });
        }
        Err(cannot_get(&format!("chat id \"{guid}\"")))
    }

    /// Takes a text or a file: first the truth, then the plan.
    async fn send(
        self: &Arc<Self>,
        phone: &Arc<Phone>,
        mut ask: Ask,
        turn: OwnedMutexGuard<()>,
    ) -> Outcome {
        let to = match &ask.conversation {
            Conversation::Direct(to) => to.clone(),
            Conversation::Group { id, .. } => id.clone(),
        };
        let mut path = String::new();
        if let Matter::File(file) = &ask.matter {
            path = file.to_string_lossy().into_owned();
            if ask.plan.is_taken() && !may_read(phone, file) {
                ask.plan = outcome::unreadable_plan();
            }
        }
        let content = ask.matter.content(&path);
        let record = Send::new(&phone.number, &to, ask.service, content, &ask.plan);
        if let Err(error) = self.truth.record(&record, ask.plan.is_taken()) {
            error!(%error, "cannot write the truth; nothing is sent");
            return event_error(-10_000);
        }
        let (answer, answered) = oneshot::channel();
        let (world, phone) = (Arc::clone(self), Arc::clone(phone));
        let performance = Performance {
            world,
            phone,
            ask,
            to,
            guid: record.guid,
            written: None,
            turn: Some(turn),
            answer: Some(answer),
        };
        drop(self.tasks.spawn(performance.run()));
        // The task ended without an answer: the sandbox is stopping, or it could not write.
        answered.await.unwrap_or_else(|_| event_error(-609))
    }

    fn delays(&self) -> rows::Delays {
        rows::Delays { join: self.scaled(INBOUND_JOIN_MS), speed: self.speed }
    }

    fn scaled(&self, ms: u64) -> Duration {
        Duration::from_millis(ms).mul_f64(self.speed)
    }
}

/// Messages is in a sandbox of its own and reads its own folder, for which the phone's stands here. Which others
/// it may read is reported differently for every version; a file from elsewhere fails with error 25 (imsg#110).
fn may_read(phone: &Phone, file: &Path) -> bool {
    match (file.canonicalize(), phone.folder.canonicalize()) {
        (Ok(file), Ok(folder)) => file.starts_with(folder) && file.is_file(),
        (Ok(_) | Err(_), _) => false,
    }
}

/// Running and permitted, or the error that an Apple event gets.
fn available(phone: &Phone) -> Result<(), Outcome> {
    let app = phone.app();
    if app.account == Account::NoPermission {
        return Err(event_error(-1743));
    }
    if !app.running {
        return Err(event_error(-600));
    }
    Ok(())
}

/// The account that a script names. RCS is in the dictionary from macOS 15 on; before, it is a
/// name like any other and not defined.
fn account(phone: &Phone, service: &str) -> Result<Service, Outcome> {
    available(phone)?;
    let undefined = || {
        let message = Some(format!("The variable {service} is not defined."));
        Outcome::from(Reply::EventError { number: -2753, message })
    };
    let service = Service::named(service)
        .filter(|service| *service != Service::Rcs || phone.macos.has_rcs())
        .ok_or_else(undefined)?;
    if phone.app().account == Account::Missing {
        return Err(undefined());
    }
    Ok(service)
}

fn refused(error: &anyhow::Error) -> Outcome {
    Reply::Refused { message: format!("{error:#}") }.into()
}

fn answered(result: anyhow::Result<Value>) -> Outcome {
    match result {
        Ok(value) => done(value),
        Err(error) => refused(&error),
    }
}

fn written(result: anyhow::Result<Written>) -> Outcome {
    match result {
        Ok(written) => done(json!({"rowid": written.rowid, "guid": written.guid})),
        Err(error) => refused(&error),
    }
}

/// A text that arrives at a phone.
struct Arriving {
    guid: String,
    from: String,
    conversation: Conversation,
    service: Service,
    matter: Matter,
    date: AppleNs,
}

async fn receive(
    phone: &Arc<Phone>,
    arriving: Arriving,
    join: Duration,
) -> anyhow::Result<Written> {
    let home = phone.folder.clone();
    let row = phone
        .act(move |db| {
            let Arriving { guid, from, conversation, service, matter, date } = arriving;
            Ok(match matter {
                Matter::Text(text) => db.write_inbound(&Inbound {
                    guid,
                    from: &from,
                    conversation: &conversation,
                    service,
                    text: &text,
                    date,
                })?,
                Matter::File(path) => {
                    let file = rows::stored_file(&home, &format!("at_0_{guid}"), &path, false)?;
                    let row = Row::new(Author::Other(from), conversation, date).guid(guid.clone());
                    db.write_row(&row.over(service.into()).parts(Parts::of(&guid).file(file)))?
                }
            })
        })
        .await?;
    join_later(phone, row, join).await
}

/// The row of a file that goes out. Messages leaves it where it was handed over (imsg matches by that path).
fn outgoing_file(
    guid: String,
    conversation: Conversation,
    service: Service,
    (path, look): (&Path, FirstLook),
    now: AppleNs,
) -> Row {
    let bytes = std::fs::metadata(path).map_or(0, |file| file.len());
    let (finished, error) = match look {
        FirstLook::Sending | FirstLook::Ghost => (0, 0),
        FirstLook::Failed(error) => (1, error),
    };
    let parts = Parts::of(&guid).file(Attachment::new(path, bytes));
    Row::new(Author::Me, conversation, now)
        .guid(guid)
        .over(service.into())
        .parts(parts)
        .with("is_sent", 0)
        .with("is_delivered", 0)
        .with("is_finished", finished)
        .with("error", error)
}

/// Joins a row to its chat after a while, in a transaction of its own.
async fn join_later(phone: &Arc<Phone>, row: Written, after: Duration) -> anyhow::Result<Written> {
    tokio::time::sleep(after).await;
    phone
        .write(move |db| {
            db.join(&row)?;
            Ok(row)
        })
        .await
}

/// One text's plan being carried out.
struct Performance {
    world: Arc<World>,
    phone: Arc<Phone>,
    ask: Ask,
    to: String,
    guid: String,
    written: Option<Written>,
    turn: Option<OwnedMutexGuard<()>>,
    answer: Option<oneshot::Sender<Outcome>>,
}

impl Performance {
    async fn run(mut self) {
        let start = tokio::time::Instant::now();
        for step in std::mem::take(&mut self.ask.plan.steps) {
            let wait = self.world.scaled(step.at_ms);
            if !wait.is_zero() {
                tokio::time::sleep_until(start + wait).await;
            }
            if let Err(error) = self.act(step.action).await {
                error!("{}: {error:#}", self.phone.number);
                return;
            }
        }
    }

    async fn act(&mut self, action: Action) -> anyhow::Result<()> {
        let rowid = self.written.as_ref().map(|written| written.rowid);
        let now = AppleNs::now();
        match (action, rowid) {
            (Action::Answer(answer), _) => self.answer(answer),
            (Action::Free, _) => drop(self.turn.take()),
            (Action::DropWal, _) => self.phone.write(ChatDb::drop_wal).await?,
            (Action::Row(look), _) => {
                self.written = Some(self.write(look, now).await?);
            }
            (Action::OtherDevice, _) => self.write_from_elsewhere(now).await?,
            (Action::Join, _) => {
                if let Some(row) = self.written.clone() {
                    self.phone.write(move |db| db.join(&row)).await?;
                }
            }
            (Action::Sent, Some(rowid)) => {
                self.phone.write(move |db| db.set_sent(rowid)).await?;
                self.arrive(self.ask.service).await;
            }
            (Action::Downgraded, Some(rowid)) => {
                let to = self.to.clone();
                self.phone.write(move |db| db.set_downgraded(rowid, &to)).await?;
                self.arrive(Service::Sms).await;
            }
            (Action::Failed(error), Some(rowid)) => {
                self.phone.write(move |db| db.set_failed(rowid, error)).await?;
            }
            (Action::Delivered, Some(rowid)) => {
                self.phone.write(move |db| db.set_delivered(rowid, now)).await?;
            }
            (Action::Read, Some(rowid)) => {
                self.phone.write(move |db| db.set_read(rowid, now)).await?;
            }
            (
                Action::Sent
                | Action::Downgraded
                | Action::Failed(_)
                | Action::Delivered
                | Action::Read,
                None,
            ) => bail!("{action:?} before there is a row"),
        }
        Ok(())
    }

    /// The row as it is first seen.
    async fn write(&self, look: FirstLook, now: AppleNs) -> anyhow::Result<Written> {
        let conversation = self.ask.conversation.clone();
        let (guid, service) = (self.guid.clone(), self.ask.service);
        let text = match &self.ask.matter {
            Matter::Text(text) if self.ask.plan.rewrites => outcome::rewritten(text),
            Matter::Text(text) => text.clone(),
            Matter::File(path) if look != FirstLook::Ghost => {
                let row = outgoing_file(guid, conversation, service, (path, look), now);
                return self.phone.write(move |db| db.write_row(&row)).await;
            }
            Matter::File(_) => String::new(),
        };
        self.phone
            .write(move |db| {
                db.write_outbound(&Outbound {
                    guid,
                    conversation: &conversation,
                    service,
                    text: &text,
                    date: now,
                    look,
                })
            })
            .await
    }

    /// The same words from another device of this account: sent and delivered when the row comes, without a
    /// date of delivery (seen in the trackers of two other clients).
    async fn write_from_elsewhere(&self, now: AppleNs) -> anyhow::Result<()> {
        let Matter::Text(text) = &self.ask.matter else { return Ok(()) };
        let conversation = self.ask.conversation.clone();
        let row = Row::text(Author::Me, conversation, now, text).over(self.ask.service.into());
        self.phone.write(move |db| db.write_joined(&row)).await.map(drop)
    }

    fn answer(&mut self, answer: Answer) {
        let outcome = match answer {
            Answer::Done => done(Value::Null),
            Answer::Error(-1728) => cannot_get(&format!("participant \"{}\"", self.to)),
            Answer::Error(number) => event_error(number),
            Answer::Never => match self.turn.take() {
                Some(turn) => Outcome::Hang(turn),
                None => event_error(-609),
            },
        };
        if let Some(sender) = self.answer.take() {
            // The asking osascript was killed: it does not want the answer any more.
            if sender.send(outcome).is_err() {
                warn!(phone = self.phone.number, "osascript was gone before its answer");
            }
        }
    }

    /// A recipient that is a phone of this sandbox gets the text.
    async fn arrive(&self, service: Service) {
        let from = self.phone.number.clone();
        let (recipients, group) = match &self.ask.conversation {
            Conversation::Direct(to) => (std::slice::from_ref(to), None),
            Conversation::Group { id, members } => (members.as_slice(), Some(id)),
        };
        for recipient in recipients {
            let Some(peer) = self.world.phone(recipient) else { continue };
            if peer.number == from || !recipient.starts_with('+') {
                continue;
            }
            let conversation = match group {
                None => Conversation::Direct(from.clone()),
                Some(id) => {
                    let mut members: Vec<String> = vec![from.clone()];
                    members.extend(recipients.iter().filter(|r| *r != recipient).cloned());
                    Conversation::Group { id: id.clone(), members }
                }
            };
            // iMessage and RCS carry the sender's guid; a text message has none.
            let guid = if service == Service::Sms { new_guid() } else { self.guid.clone() };
            let date = self.written.as_ref().map_or_else(AppleNs::now, |written| written.date);
            let (matter, from) = (self.ask.matter.clone(), from.clone());
            let arriving = Arriving { guid, from, conversation, service, matter, date };
            let join = self.world.scaled(INBOUND_JOIN_MS);
            if let Err(error) = receive(&peer, arriving, join).await {
                error!("{}: {error:#}", peer.number);
            }
        }
    }
}

/// Makes `link` point to the program, replacing an old link. Anything else there is left alone.
fn link(program: &Path, link: &Path) -> anyhow::Result<()> {
    let doing = || format!("cannot link {} to {}", link.display(), program.display());
    match std::fs::read_link(link) {
        Ok(target) if target == program => return Ok(()),
        Ok(_) => std::fs::remove_file(link).with_context(doing)?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).with_context(doing),
    }
    symlink(program, link).with_context(doing)
}
