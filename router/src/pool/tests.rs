//! The index against [`resolve`] over all phones, after every step of random histories.

use proptest::prelude::*;
use protocol::{ChannelChoice, Class, MessageId, Recipient};
use rusqlite::Connection;

use super::*;
use crate::params;
use crate::store::credit::Reservation;
use crate::store::dispatch::NewAttempt;
use crate::store::messages::{self, NewMessage};
use crate::store::{Json, in_memory};
use crate::warming::{DAY_MS, Step};

const PHONES: u8 = 5;
const HOSTS: u8 = 3;
const START_MS: i64 = 20_000 * DAY_MS + 1;
const ALL: [Channel; 3] = [Channel::Imessage, Channel::Rcs, Channel::Sms];

/// Chooses among all phones, looking at each: what the pool's index has to agree with.
fn choose(
    pool: &[PoolPhone],
    from: Option<&E164>,
    (tenant, sandbox): (&TenantId, bool),
    relations: &Relations,
    (wanted, in_flight_max, now): (&[Channel], u32, UnixMs),
) -> Result<Choice, Unable> {
    let candidates: Vec<Candidate> = pool.iter().map(|phone| candidate(phone, relations)).collect();
    let from = match from {
        None => None,
        Some(number) => Some(
            pool.iter()
                .find(|phone| phone.number == *number)
                // A number that is out of use is served by the phone in its place.
                .map(|phone| phone.replaced_by.as_ref().unwrap_or(&phone.candidate.phone))
                .ok_or(Unable::NotAllowed)?,
        ),
    };
    let need = Need { tenant, sandbox, from, wanted, in_flight_max, now_ms: now.0 };
    resolve::resolve(&need, &candidates)
}

fn phone(n: u8) -> PhoneId {
    PhoneId::new(1, [n % PHONES; 10])
}

fn number(n: u8) -> E164 {
    format!("+155501001{:02}", n % PHONES).parse().unwrap()
}

fn host(n: u8) -> HostId {
    HostId::new(1, [n % HOSTS; 10])
}

fn tenant(n: u8) -> TenantId {
    TenantId::new(1, [n % 2; 10])
}

fn caps() -> Caps {
    let warming = warming::Policy {
        enforce: true,
        steps: vec![Step { from_day: 0, per_day: 2 }, Step { from_day: 2, per_day: 3 }],
        per_hour: 2,
        unanswered_max: 0,
    };
    Caps { warming: Arc::new(warming), daily: 3, in_flight: 2 }
}

struct World {
    connection: Connection,
    links: Links,
    pool: Pool,
    losses: u64,
    now: UnixMs,
    made: u32,
}

impl World {
    fn new() -> Self {
        let connection = in_memory::open_loose();
        watch::start(&connection).unwrap();
        let (links, pool) = (Links::new(), Pool::new(caps()));
        let world = Self { connection, links, pool, losses: 0, now: UnixMs(START_MS), made: 0 };
        for n in 0..HOSTS {
            world.sql(
                "INSERT INTO hosts (id, name, public_key, created_at) VALUES (?1, ?1, ?1, 0)",
                params![host(n)],
            );
            world.links.register(&host(n), "s");
        }
        for n in 0..PHONES {
            world.sql(
                "INSERT INTO phones (id, number, host_id, state, reasons, channels, warming_priority, messages_today,
                     day, created_at, updated_at)
                 VALUES (?1, ?2, ?3, 'ready', '[]', '[\"imessage\",\"sms\"]', 0, 0, 0, ?4, 0)",
                params![phone(n), number(n), host(n), START_MS],
            );
            world.sql(
                "INSERT INTO leases (phone_id, epoch, host_id, granted_at, expires_at) VALUES (?1, 1, ?2, 0, ?3)",
                params![phone(n), host(n), START_MS + 3 * DAY_MS],
            );
        }
        world
    }

    fn tx(&self) -> Tx<'_> {
        Tx::after(&self.connection, self.losses)
    }

    fn sql(&self, sql: &str, values: &[crate::store::Value]) {
        self.tx().execute(sql, values).unwrap();
    }

    fn act(&mut self, (what, who, how, much): Act) {
        let on = how % 2 == 0;
        match what % 16 {
            0 => self.sql(
                "UPDATE leases SET epoch = epoch + 1, expires_at = ?2, released = ?3 WHERE phone_id = ?1",
                params![phone(who), self.now.0 + i64::from(much) * 1_000, how % 4 == 0],
            ),
            1 => self.sql("UPDATE phones SET state = ?2 WHERE id = ?1", params![phone(who), if on { "ready" } else { "stopped" }]),
            2 if on => drop(self.links.register(&host(who), "s")),
            2 => drop(self.links.unregister(&host(who), "s")),
            3 => self.sql("UPDATE hosts SET drained_at = ?2 WHERE id = ?1", params![host(who), (!on).then_some(1_i64)]),
            4 => self.sql("UPDATE phones SET exclusive_tenant_id = ?2 WHERE id = ?1", params![phone(who), on.then(|| tenant(much))]),
            5 => self.sql("UPDATE phones SET channels = ?2 WHERE id = ?1", params![phone(who), Json(some_of(how))]),
            6 => {
                self.made += 1;
                self.sql(
                    "INSERT INTO attempts (message_id, attempt, tenant_id, phone_id, epoch, state, route, offered_at,
                         start_before, first_offered_at) VALUES (?1, 1, 't', ?2, 1, ?3, '[]', ?4, 0, ?4)",
                    params![self.made.to_string(), phone(who), if on { "offered" } else { "started" }, self.now],
                );
            }
            7 => self.sql("UPDATE attempts SET state = 'done' WHERE phone_id = ?1", params![phone(who)]),
            8 => self.sql(
                "UPDATE phones SET messages_today = ?2, day = ?3, last_used_at = ?4 WHERE id = ?1",
                params![phone(who), how % 4, self.now.0.div_euclid(DAY_MS), much],
            ),
            9 if on => self.sql(
                "INSERT INTO phone_contacts VALUES (?1, ?2, ?3, 1, 1, 0) ON CONFLICT DO NOTHING",
                params![much.to_string(), phone(who), self.now],
            ),
            9 => self.sql("DELETE FROM phone_contacts WHERE phone_id = ?1", params![phone(who)]),
            10 => self.sql(
                "UPDATE phones SET handed_to = ?2, handed_until = ?3 WHERE id = ?1",
                params![phone(who), on.then(|| host(how)), on.then_some(self.now.0 + i64::from(much) * 100)],
            ),
            11 => self.sql(
                "UPDATE phones SET replaced_by = ?2 WHERE id = ?1",
                params![phone(who), on.then(|| phone(who.wrapping_add(1)))],
            ),
            12 | 13 => self.dispatch(who, much),
            14 => self.sql("UPDATE phones SET sandbox = ?2 WHERE id = ?1", params![phone(who), on]),
            _ => {
                let step = [1, 1_999, 3_600_000, DAY_MS / 2, -5_000][usize::from(how % 5)];
                self.now = self.now.plus_ms(step);
            }
        }
    }

    /// What dispatch does with a message, but for the rules.
    fn dispatch(&mut self, whose: u8, to: u8) {
        self.made += 1;
        let (tenant, now) = (tenant(whose), self.now);
        let recipient: Recipient = format!("+1202555010{}", to % 5).parse().unwrap();
        let mut tx = Tx::after(&self.connection, self.losses);
        let relations = rows::relations(&mut tx, (&tenant, false), &recipient).unwrap();
        self.pool.catch_up(&mut tx, &self.links, now, false).unwrap();
        let Ok((choice, phone)) = self.pool.pick((&tenant, false), None, &relations, &ALL, now)
        else {
            return;
        };
        let (epoch, journal) = (phone.epoch.unwrap(), phone.journal.clone());
        let new = NewMessage {
            id: MessageId::new(i64::from(self.made), [0; 10]),
            test: false,
            recipient: recipient.clone(),
            from: None,
            channel: ChannelChoice::Auto,
            fallback: None,
            media: Vec::new(),
            class: Class::Otp,
            text: String::new(),
            template: None,
            batch: None,
            metadata: None,
            send_at: None,
            expires_at: now.plus_ms(DAY_MS),
            now,
        };
        messages::accept(&mut tx, &tenant, &new, &Reservation::FREE).unwrap();
        let attempt = NewAttempt {
            attempt: 1,
            phone: &choice.phone,
            epoch,
            journal: journal.as_deref(),
            route: &choice.route,
            start_before: now,
            sequence: 1,
            internal: false,
        };
        let met = rows::dispatched(&mut tx, (&tenant, &new.id), &recipient, &attempt, now).unwrap();
        self.pool.gave(&mut tx, &choice.phone, met, now).unwrap();
    }

    fn catch_up(&mut self) {
        let mut tx = Tx::after(&self.connection, self.losses);
        self.pool.catch_up(&mut tx, &self.links, self.now, false).unwrap();
    }

    /// What the writing thread does with a closure that has asked the pool and then fails.
    fn undone(&mut self, act: Act) {
        self.connection.execute_batch("SAVEPOINT job").unwrap();
        self.act(act);
        self.catch_up();
        self.connection.execute_batch("ROLLBACK TO job; RELEASE job").unwrap();
        self.losses += 1;
    }

    fn compare(&mut self, (whose, from, relations, wanted): &Ask) -> Result<(), TestCaseError> {
        self.catch_up();
        let mut all = rows::pool(&mut self.tx(), true, self.now).unwrap();
        for phone in &mut all {
            phone.candidate.online = self.links.is_online(phone.host.as_ref().unwrap());
            phone.measure(&caps(), self.now);
        }
        for read in &all {
            let mut kept = self.pool.phones[&read.candidate.phone].phone.clone();
            kept.measure(&caps(), self.now);
            prop_assert_eq!(&kept, read);
        }
        prop_assert_eq!(self.pool.phones.len(), all.len());
        let (tenant, from, wanted) = (tenant(*whose), from.map(number), some_of(*wanted));
        let whose = (&tenant, *whose >= 2);
        let naive = choose(&all, from.as_ref(), whose, relations, (&wanted, 2, self.now));
        let picked = self.pool.pick(whose, from.as_ref(), relations, &wanted, self.now);
        if let Ok((choice, phone)) = &picked {
            let stands = all.iter().find(|all| all.candidate.phone == choice.phone).unwrap();
            prop_assert_eq!((phone.epoch, &phone.host), (stands.epoch, &stands.host));
        }
        prop_assert_eq!(naive, picked.map(|(choice, _)| choice));
        let able = || {
            all.iter()
                .map(|phone| &phone.candidate)
                .filter(|c| c.online && c.ready && c.leased && !c.capped && c.sandbox == whose.1)
                .filter(|c| c.exclusive_to.as_ref().is_none_or(|owner| owner == whose.0))
        };
        let free: u32 = able().map(|candidate| 2_u32.saturating_sub(candidate.in_flight)).sum();
        let mut room = self.pool.room();
        let left = able().next().map(|_| u64::from(free));
        prop_assert_eq!(room.left(whose.0, whose.1), left);
        room.take(whose.0, whose.1, 1);
        prop_assert_eq!(room.left(whose.0, whose.1), left.map(|left| left.saturating_sub(1)));
        Ok(())
    }
}

fn some_of(bits: u8) -> Vec<Channel> {
    ALL.into_iter().enumerate().filter(|(n, _)| bits & (1 << n) != 0).map(|(_, one)| one).collect()
}

type Act = (u8, u8, u8, u8);
type Ask = (u8, Option<u8>, Relations, u8);

fn any_ask() -> impl Strategy<Value = Ask> {
    let sticky = prop::collection::vec((0..PHONES, 0_i64..3), 0..3);
    let known = prop::collection::vec(0..PHONES, 0..3);
    (0_u8..4, prop::option::weighted(0.2, 0..PHONES), sticky, known, 0_u8..8).prop_map(
        |(whose, from, sticky, known, wanted)| {
            let relations = Relations {
                sticky: sticky.into_iter().map(|(n, at)| (phone(n), at)).collect(),
                unanswered: 0,
                known: known.into_iter().map(phone).collect(),
            };
            (whose, from, relations, wanted)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn the_index_chooses_what_looking_at_every_phone_would(
        history in prop::collection::vec((any::<Act>(), prop::bool::weighted(0.15), any_ask()), 1..40),
    ) {
        let mut world = World::new();
        for (act, undone, ask) in history {
            if undone {
                world.undone(act);
            } else {
                world.act(act);
            }
            world.compare(&ask)?;
        }
    }
}
