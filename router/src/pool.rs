//! The phones in memory, in the order in which they are to be used, so that choosing one costs the same among ten and
//! among ten thousand.
//!
//! **What is decided is decided by [`resolve`]**; the index only narrows the field. A message's field is the phones
//! that its recipient has met (a handful, from the store) and the first phone of each shelf, one shelf for each owner and
//! set of channels: whoever else could take it ranks behind one of these. Tests hold that against [`resolve`] over all
//! phones.
//!
//! **It is never older than the transaction that asks it.** Triggers on the writing connection note each phone whose
//! row, lease, attempts, contacts or host have changed ([`watch`]); [`Pool::catch_up`] reads those anew, inside
//! the transaction of the choice; what dispatch itself has done to the phone that it chose is known and only taken in
//! ([`Pool::gave`]). Read anew are also the phones about which time has changed something: a lease that has ended, an
//! offer left unanswered, a place that became free, midnight. What a rolled-back transaction had shown is forgotten as a
//! whole ([`Tx::remember`]), and so is everything when another process has written to the file.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex};

use protocol::{Channel, E164, HostId, PhoneId, TenantId, UnixMs};

use crate::lines::Waiting;
use crate::link::Links;
use crate::resolve::{self, Candidate, Choice, Need, Unable};
use crate::store::dispatch::{self as rows, PoolPhone, Relations};
use crate::store::{StoreError, Tx, watch};
use crate::warming;

/// Which hosts are there.
pub trait Presence {
    /// Whether a host has a session here.
    fn online(&self, host: &HostId) -> bool;
    /// The hosts whose sessions have begun or ended since this was last asked.
    fn take_changed(&self) -> HashSet<HostId>;
}

impl Presence for Links {
    fn online(&self, host: &HostId) -> bool {
        self.is_online(host)
    }

    fn take_changed(&self) -> HashSet<HostId> {
        self.changed_hosts()
    }
}

/// What phones are measured by.
#[derive(Debug, Clone)]
pub struct Caps {
    /// New contacts.
    pub warming: Arc<warming::Policy>,
    /// Messages a day, for a phone without a cap of its own.
    pub daily: u32,
    /// Attempts under way.
    pub in_flight: u32,
}

/// The pool; one for a router, asked by closures that the writing thread runs one after another.
pub type Shared = Arc<Mutex<Pool>>;

/// The phones in memory.
#[derive(Debug)]
pub struct Pool {
    caps: Caps,
    phones: HashMap<PhoneId, Shelved>,
    numbers: HashMap<E164, PhoneId>,
    hosts: HashMap<HostId, BTreeSet<PhoneId>>,
    shelves: HashMap<Owner, BTreeMap<Channels, Shelf>>,
    /// When time alone changes what is true of a phone.
    turns: BTreeSet<(i64, PhoneId)>,
    /// Of the phones of each owner that could send.
    hands: HashMap<Owner, Hands>,
    known: Option<Known>,
}

/// What the memory was made from; when it is another one, everything is read anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    losses: u64,
    file_version: i64,
    now: UnixMs,
}

/// Whose phones stand on a shelf, and whether they are of the sandbox.
type Owner = (Option<TenantId>, bool);

/// A set of channels, a bit each.
type Channels = u8;

/// Smaller is better; the order of [`resolve`] among phones of one owner that do not know the recipient.
type Rank = (i64, i64, i64, PhoneId);

#[derive(Debug, Default)]
struct Shelf {
    /// Can send, has a hand free and a place for a new contact.
    open: BTreeSet<Rank>,
    /// Can send and has a place for a new contact, but its hands are full.
    busy: usize,
    /// Can send, but has no place for a new contact until then.
    warming: BTreeSet<(i64, PhoneId)>,
    /// Has sent all that it may today.
    capped: usize,
    /// All that stand here.
    all: usize,
}

#[derive(Debug)]
struct Shelved {
    phone: PoolPhone,
    channels: Channels,
    standing: Standing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Open,
    Busy,
    Warming { until_ms: i64 },
    Away,
}

impl Pool {
    /// An empty pool, which reads everything when it is first asked.
    pub fn new(caps: Caps) -> Self {
        Self {
            caps,
            phones: HashMap::new(),
            numbers: HashMap::new(),
            hosts: HashMap::new(),
            shelves: HashMap::new(),
            turns: BTreeSet::new(),
            hands: HashMap::new(),
            known: None,
        }
    }

    /// Brings the memory up to this transaction and this moment. `thorough` also asks whether another process has written
    /// to the file, which nobody does while a router runs but an operator with a shell.
    pub fn catch_up(
        &mut self,
        tx: &mut Tx<'_>,
        links: &dyn Presence,
        now: UnixMs,
        thorough: bool,
    ) -> Result<(), StoreError> {
        let losses = tx.remember();
        let before = self.known.take();
        let file_version = match before {
            Some(before) if !thorough => before.file_version,
            Some(_) | None => watch::file_version(tx)?,
        };
        let known = Known { losses, file_version, now };
        let hosts = links.take_changed();
        let changed = watch::take_changed_phones(tx)?;
        // A clock that was set back makes what was true by time doubtful.
        if before.is_none_or(|before| before.now > now || Known { now, ..before } != known) {
            *self = Self::new(self.caps.clone());
            for phone in rows::pool(tx, self.caps.warming.enforce, now)? {
                self.put(phone, links, now);
            }
        } else {
            for id in changed {
                self.read(tx, &id, links, now)?;
            }
            for id in hosts
                .iter()
                .filter_map(|host| self.hosts.get(host))
                .flatten()
                .cloned()
                .collect::<Vec<_>>()
            {
                self.read(tx, &id, links, now)?;
            }
            while let Some((_, id)) = self.turns.first().filter(|(at, _)| *at <= now.0).cloned() {
                self.read(tx, &id, links, now)?;
            }
        }
        self.known = Some(known);
        Ok(())
    }

    fn read(
        &mut self,
        tx: &mut Tx<'_>,
        id: &PhoneId,
        links: &dyn Presence,
        now: UnixMs,
    ) -> Result<(), StoreError> {
        drop(self.take_out(id));
        if let Some(phone) = rows::pool_phone(tx, id, self.caps.warming.enforce, now)? {
            self.put(phone, links, now);
        }
        Ok(())
    }

    fn put(&mut self, mut phone: PoolPhone, links: &dyn Presence, now: UnixMs) {
        phone.candidate.online = phone.host.as_ref().is_some_and(|host| links.online(host));
        self.shelve(phone, now);
    }

    /// Puts a phone in whose link is known.
    fn shelve(&mut self, mut phone: PoolPhone, now: UnixMs) {
        phone.measure(&self.caps, now);
        let id = phone.candidate.phone.clone();
        drop(self.take_out(&id));
        let candidate = &phone.candidate;
        let channels = bits(&candidate.channels);
        let sends = candidate.online && candidate.ready && candidate.leased && !candidate.capped;
        let standing = match (sends, candidate.new_from_ms) {
            (false, _) => Standing::Away,
            (true, until_ms) if until_ms > now.0 => Standing::Warming { until_ms },
            (true, _) if candidate.in_flight >= self.caps.in_flight => Standing::Busy,
            (true, _) => Standing::Open,
        };
        let owner = owner(candidate);
        if sends {
            let hands = self.hands.entry(owner.clone()).or_default();
            hands.able += 1;
            hands.free += free(&self.caps, candidate);
        }
        let shelf = self.shelves.entry(owner).or_default().entry(channels).or_default();
        shelf.all += 1;
        shelf.capped += usize::from(candidate.capped);
        match standing {
            Standing::Open => drop(shelf.open.insert(rank(candidate))),
            Standing::Busy => shelf.busy += 1,
            Standing::Warming { until_ms } => drop(shelf.warming.insert((until_ms, id.clone()))),
            Standing::Away => {}
        }
        if let Some(host) = &phone.host {
            self.hosts.entry(host.clone()).or_default().insert(id.clone());
        }
        self.numbers.insert(phone.number.clone(), id.clone());
        self.turns.insert((phone.turns_ms, id.clone()));
        self.phones.insert(id, Shelved { phone, channels, standing });
    }

    /// Takes in what dispatch has just written, in this transaction, about a phone that was [`Self::pick`]ed in it: what
    /// follows from that is known and is not read. Anything else that was written of the phone meanwhile would be missed.
    pub fn gave(
        &mut self,
        tx: &mut Tx<'_>,
        id: &PhoneId,
        new_contact: bool,
        now: UnixMs,
    ) -> Result<(), StoreError> {
        if let Some(mut phone) = self.take_out(id) {
            watch::known_change(tx, id)?;
            phone.give(new_contact && self.caps.warming.enforce, now);
            self.shelve(phone, now);
        }
        Ok(())
    }

    fn take_out(&mut self, id: &PhoneId) -> Option<PoolPhone> {
        let Shelved { phone, channels, standing } = self.phones.remove(id)?;
        self.take_down(&phone, channels, standing);
        Some(phone)
    }

    /// Takes a phone out of every index.
    fn take_down(&mut self, phone: &PoolPhone, channels: Channels, standing: Standing) {
        let id = &phone.candidate.phone;
        let candidate = &phone.candidate;
        self.turns.remove(&(phone.turns_ms, id.clone()));
        self.numbers.remove(&phone.number);
        if let Some(host) = &phone.host
            && let Some(phones) = self.hosts.get_mut(host)
        {
            phones.remove(id);
            if phones.is_empty() {
                self.hosts.remove(host);
            }
        }
        let owner = owner(candidate);
        if standing != Standing::Away
            && let Some(hands) = self.hands.get_mut(&owner)
        {
            hands.able -= 1;
            hands.free -= free(&self.caps, candidate);
            if hands.able == 0 {
                self.hands.remove(&owner);
            }
        }
        let Some(shelves) = self.shelves.get_mut(&owner) else { return };
        let Some(shelf) = shelves.get_mut(&channels) else { return };
        shelf.all -= 1;
        shelf.capped -= usize::from(candidate.capped);
        match standing {
            Standing::Open => drop(shelf.open.remove(&rank(candidate))),
            Standing::Busy => shelf.busy -= 1,
            Standing::Warming { until_ms } => drop(shelf.warming.remove(&(until_ms, id.clone()))),
            Standing::Away => {}
        }
        if shelf.all == 0 {
            shelves.remove(&channels);
        }
        if shelves.is_empty() {
            self.shelves.remove(&owner);
        }
    }

    /// What phones are measured by.
    pub fn caps(&self) -> &Caps {
        &self.caps
    }

    /// A pool of which only the hands are known: of whose phones, of the sandbox or not, so many are free.
    #[cfg(test)]
    pub(crate) fn with_hands(caps: Caps, hands: &[(Option<TenantId>, bool, u64)]) -> Self {
        let hands = hands.iter().map(|(whose, sandbox, free)| {
            ((whose.clone(), *sandbox), Hands { able: 1, free: *free })
        });
        Self { hands: hands.collect(), ..Self::new(caps) }
    }

    /// The room that there is now, to be filled.
    pub fn room(&self) -> Room<'_> {
        Room { hands: &self.hands, taken: HashMap::new(), full: false }
    }

    /// The phone that serves a number: its own, or the one in its place.
    pub fn serving(&self, number: &E164) -> Option<&PhoneId> {
        let phone = &self.phones.get(self.numbers.get(number)?)?.phone;
        Some(phone.replaced_by.as_ref().unwrap_or(&phone.candidate.phone))
    }

    /// Chooses a phone, or says why none can. Whose message it is, and whether it is for the sandbox; `from` is the number
    /// that was asked for.
    pub fn pick(
        &self,
        (tenant, sandbox): (&TenantId, bool),
        from: Option<&E164>,
        relations: &Relations,
        wanted: &[Channel],
        now: UnixMs,
    ) -> Result<(Choice, &PoolPhone), Unable> {
        let mut need = Need {
            tenant,
            sandbox,
            from: None,
            wanted,
            in_flight_max: self.caps.in_flight,
            now_ms: now.0,
        };
        if let Some(number) = from {
            // A number that is out of use is served by the phone in its place.
            need.from = Some(self.serving(number).ok_or(Unable::NotAllowed)?);
        }
        let choice = self.choose(&need, relations)?;
        let phone = self.phones.get(&choice.phone).ok_or(Unable::Away { until_ms: i64::MAX })?;
        Ok((choice, &phone.phone))
    }

    /// Whether a message that stands in a line has a phone now.
    pub fn has_one(&self, tenant: &TenantId, waiting: &Waiting, now: UnixMs) -> bool {
        let need = waiting.need(tenant, self.caps.in_flight, now);
        self.choose(&need, &waiting.relations).is_ok()
    }

    fn choose(&self, need: &Need<'_>, relations: &Relations) -> Result<Choice, Unable> {
        let Some(from) = need.from else { return self.pick_any(need, relations) };
        resolve::resolve(need, &self.met(std::iter::once(from), relations))
    }

    fn pick_any(&self, need: &Need<'_>, relations: &Relations) -> Result<Choice, Unable> {
        let mut met: BTreeSet<&PhoneId> = relations.known.iter().collect();
        met.extend(relations.sticky.iter().map(|(id, _)| id));
        let mut field = self.met(met.iter().copied(), relations);
        let owners = owners(need.tenant, need.sandbox);
        let wanted = bits(need.wanted);
        let shelves: Vec<(Channels, &Shelf)> = owners
            .iter()
            .filter_map(|owner| self.shelves.get(owner))
            .flatten()
            .map(|(channels, shelf)| (*channels, shelf))
            .collect();
        let fitting = || shelves.iter().filter(|(channels, _)| channels & wanted != 0);
        for (_, shelf) in fitting() {
            if let Some((.., id)) = shelf.open.first()
                && !met.contains(id)
            {
                field.extend(self.met(std::iter::once(id), relations));
            }
        }
        let unable = match resolve::resolve(need, &field) {
            Ok(choice) => return Ok(choice),
            Err(unable) => unable,
        };
        // Nobody of the field can; why not is said of all.
        if unable == Unable::Busy || fitting().any(|(_, shelf)| shelf.busy > 0) {
            return Err(Unable::Busy);
        }
        let first =
            fitting().filter_map(|(_, shelf)| shelf.warming.first()).map(|(at, _)| *at).min();
        if let Some(until_ms) = first {
            return Err(Unable::Warming { until_ms });
        }
        let all: usize = shelves.iter().map(|(_, shelf)| shelf.all).sum();
        let capped: usize = shelves.iter().map(|(_, shelf)| shelf.capped).sum();
        if all > 0 && all == capped {
            return Err(Unable::Capped);
        }
        let used_up = fitting().any(|(_, shelf)| shelf.capped > 0);
        Err(Unable::away(used_up, need.now_ms))
    }

    /// Phones as candidates for a message to somebody of whom this is known.
    fn met<'a>(
        &self,
        ids: impl Iterator<Item = &'a PhoneId>,
        relations: &Relations,
    ) -> Vec<Candidate> {
        ids.filter_map(|id| self.phones.get(id))
            .map(|shelved| candidate(&shelved.phone, relations))
            .collect()
    }
}

/// Hands of phones that could send.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Hands {
    /// The phones.
    able: usize,
    /// The attempts that they could still take.
    free: u64,
}

fn free(caps: &Caps, candidate: &Candidate) -> u64 {
    u64::from(caps.in_flight.saturating_sub(candidate.in_flight))
}

/// How many messages of whom the phones could take, while some are being taken.
#[derive(Debug)]
pub struct Room<'a> {
    hands: &'a HashMap<Owner, Hands>,
    taken: HashMap<Owner, u64>,
    full: bool,
}

impl Room<'_> {
    /// How many more messages of a tenant its own phones and those of all could take; `None` when none of them is able at
    /// all: what is due is then taken and decided, so that it says why it waits, or goes another way.
    fn left(&self, tenant: &TenantId, sandbox: bool) -> Option<u64> {
        let left = |owner: &Owner| {
            let hands = self.hands.get(owner)?;
            Some(hands.free.saturating_sub(self.taken.get(owner).copied().unwrap_or(0)))
        };
        owners(tenant, sandbox).iter().filter_map(left).reduce(u64::saturating_add)
    }

    /// For how many of so many messages of a tenant there is room.
    pub fn of(&mut self, tenant: &TenantId, sandbox: bool, asked: usize) -> usize {
        let left = self.left(tenant, sandbox);
        let left = left.map_or(asked, |left| usize::try_from(left).unwrap_or(asked));
        self.full |= left < asked;
        left.min(asked)
    }

    /// Whether anybody had less than it asked for.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Takes so many messages of a tenant: its own phones come first.
    pub fn take(&mut self, tenant: &TenantId, sandbox: bool, count: usize) {
        let mut count = u64::try_from(count).unwrap_or(u64::MAX);
        for owner in owners(tenant, sandbox) {
            let Some(hands) = self.hands.get(&owner) else { continue };
            let taken = self.taken.entry(owner).or_default();
            let takes = hands.free.saturating_sub(*taken).min(count);
            *taken = taken.saturating_add(takes);
            count = count.saturating_sub(takes);
        }
    }
}

/// A phone as a candidate for a message to somebody of whom this is known.
pub fn candidate(phone: &PoolPhone, relations: &Relations) -> Candidate {
    let candidate = phone.candidate.clone();
    let bound = relations.sticky.iter().find(|(bound, _)| *bound == candidate.phone);
    let known = relations.known.contains(&candidate.phone);
    Candidate { sticky_ms: bound.map(|(_, at)| *at), known, ..candidate }
}

/// Whose phones a tenant may use, its own before those of all.
fn owners(tenant: &TenantId, sandbox: bool) -> [Owner; 2] {
    [(Some(tenant.clone()), sandbox), (None, sandbox)]
}

fn owner(candidate: &Candidate) -> Owner {
    (candidate.exclusive_to.clone(), candidate.sandbox)
}

fn rank(candidate: &Candidate) -> Rank {
    (
        candidate.messages_today,
        candidate.warming_priority,
        candidate.last_used_ms,
        candidate.phone.clone(),
    )
}

fn bits(channels: &[Channel]) -> Channels {
    channels.iter().fold(0, |bits, channel| {
        bits | match channel {
            Channel::Imessage => 1,
            Channel::Rcs => 2,
            Channel::Sms => 4,
        }
    })
}

#[cfg(test)]
mod tests;
