//! Quota, credit and usage, at the store: what is reserved, what is given back, what is counted.

#![expect(clippy::unwrap_used, reason = "a test that meets something unexpected has failed")]

use protocol::{ChannelChoice, Class, MessageId, Reason, Status, TenantId, UnixMs};
use router::billing::{Plans, Refusal, Terms};
use router::store::accounts::{self, PayerRefused};
use router::store::change::{self, Change};
use router::store::credit::{self, Reservation};
use router::store::dead_letters::{self, Retried};
use router::store::messages::{self, Canceled, NewMessage};
use router::store::{Store, StoreError, Tx, Value, admin};
use router::{clock, params};

/// 2026-11-22T12:00:00Z.
const NOW: UnixMs = UnixMs(1_795_348_800_000);
/// 2026-12-01T00:00:00Z.
const DECEMBER: UnixMs = UnixMs(1_796_083_200_000);

struct Books {
    store: Store,
    plans: Plans,
    _folder: tempfile::TempDir,
}

fn plans(quota: Option<u64>, price: u32) -> Plans {
    Plans::new("unlimited".to_owned(), [("small".to_owned(), Terms { quota, price })]).unwrap()
}

impl Books {
    fn open(quota: Option<u64>, price: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("store.db")).unwrap();
        Self { store, plans: plans(quota, price), _folder: folder }
    }

    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        self.store.write(work).await.unwrap()
    }

    /// A tenant with an endpoint that wants every event.
    async fn tenant(&self, name: &str) -> TenantId {
        let id = TenantId::new(NOW.0, clock::random());
        let (tenant, name) = (id.clone(), name.to_owned());
        self.write(move |tx| {
            let created_at = NOW;
            let brand = name.clone();
            let new = protocol::api::Tenant { id: tenant.clone(), name, brand, created_at };
            admin::insert_tenant(tx, &new)?;
            tx.execute(
                "INSERT INTO webhook_endpoints (id, tenant_id, url, secret, events, created_at)
                 VALUES (?1, ?2, 'https://example.com', 's', '[\"*\"]', 0)",
                params![protocol::EndpointId::new(NOW.0, clock::random()), tenant],
            )?;
            Ok(())
        })
        .await;
        id
    }

    async fn on_small(&self, tenant: &TenantId, credit: i64) {
        let (tenant, plans) = (tenant.clone(), self.plans.clone());
        self.write(move |tx| {
            assert!(accounts::set_plan(tx, &tenant, Some("small"), &plans, NOW)?);
            tx.execute(
                "UPDATE billing_accounts SET credit = ?2 WHERE tenant_id = ?1",
                params![tenant, credit],
            )
        })
        .await;
    }

    async fn reserve(
        &self,
        tenant: &TenantId,
        units: u32,
        now: UnixMs,
    ) -> Result<Reservation, Refusal> {
        let tenant = tenant.clone();
        self.write(move |tx| credit::reserve(tx, &tenant, units, now)).await
    }

    async fn send(&self, tenant: &TenantId, now: UnixMs) -> Result<MessageId, Refusal> {
        let tenant = tenant.clone();
        self.write(move |tx| {
            let new = new(now);
            Ok(match messages::reserve(tx, &tenant, &new)? {
                Err(refusal) => Err(refusal),
                Ok(reservation) => Ok(messages::accept(tx, &tenant, &new, &reservation)?.id),
            })
        })
        .await
    }

    async fn ends(&self, tenant: &TenantId, id: &MessageId, status: Status, now: UnixMs) {
        let (tenant, id) = (tenant.clone(), id.clone());
        self.write(move |tx| {
            let ended = Change { reason: Some(Reason::Expired), ..Change::to(status, now) };
            change::make(tx, &tenant, &id, &ended)
        })
        .await;
    }

    /// Credit and used messages of an account.
    async fn account(&self, tenant: &TenantId, now: UnixMs) -> (i64, u64) {
        let tenant = tenant.clone();
        let account = self.write(move |tx| accounts::get(tx, &tenant, now)).await.unwrap();
        (account.credit, account.used)
    }

    /// The six numbers of the usage, in their order, over all rows of a tenant.
    async fn usage(&self, tenant: &TenantId) -> Vec<i64> {
        self.numbers(
            "SELECT COALESCE(SUM(accepted), 0), COALESCE(SUM(segments), 0), COALESCE(SUM(sent), 0),
                 COALESCE(SUM(returned), 0), COALESCE(SUM(credits), 0), COALESCE(SUM(credits_returned), 0)
             FROM usage WHERE tenant_id = ?1",
            params![tenant],
            6,
        )
        .await
    }

    async fn numbers(&self, sql: &'static str, values: &[Value], columns: usize) -> Vec<i64> {
        let values = values.to_vec();
        self.store
            .read(move |tx| {
                tx.query_row(sql, &values, |row| (0..columns).map(|at| row.int(at)).collect())
            })
            .await
            .unwrap()
    }

    async fn warned(&self, tenant: &TenantId) -> Vec<String> {
        let tenant = tenant.clone();
        self.store
            .read(move |tx| {
                tx.query(
                    "SELECT body FROM webhook_jobs WHERE tenant_id = ?1 AND type = 'usage.quota_warning' ORDER BY id",
                    params![tenant],
                    |row| row.text(0),
                )
            })
            .await
            .unwrap()
    }
}

fn new(now: UnixMs) -> NewMessage {
    NewMessage {
        id: MessageId::new(now.0, clock::random()),
        test: false,
        recipient: "+12025550143".parse().unwrap(),
        from: None,
        channel: ChannelChoice::Auto,
        fallback: None,
        media: Vec::new(),
        class: Class::Transactional,
        text: "x".repeat(200),
        template: None,
        batch: None,
        metadata: None,
        send_at: None,
        expires_at: now.plus_ms(3_600_000),
        now,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_at_once_never_overdraw_the_quota() {
    let books = Books::open(Some(20), 0);
    let tenant = books.tenant("Acme").await;
    books.on_small(&tenant, 0).await;
    let all = (0..64).map(|_| books.send(&tenant, NOW));
    let all = futures_util::future::join_all(all).await;
    assert_eq!(all.iter().filter(|sent| sent.is_ok()).count(), 20);
    let refused = Refusal::QuotaExceeded { quota: 20, left: 0, resets_at: DECEMBER };
    assert!(all.iter().all(|sent| sent.as_ref().err().is_none_or(|why| *why == refused)));
    assert_eq!(books.account(&tenant, NOW).await, (0, 20));
    assert_eq!(books.numbers("SELECT COUNT(*) FROM messages", &[], 1).await, [20]);
    assert_eq!(books.usage(&tenant).await, [20, 40, 0, 0, 0, 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn sixty_four_at_once_never_overdraw_the_credit() {
    let books = Books::open(None, 3);
    let tenant = books.tenant("Acme").await;
    books.on_small(&tenant, 50).await;
    // In ones and in fours, as batches do.
    let all = (0..64_u32).map(|n| books.reserve(&tenant, if n % 2 == 0 { 1 } else { 4 }, NOW));
    let all = futures_util::future::join_all(all).await;
    let (credit, used) = books.account(&tenant, NOW).await;
    let units: u64 = all
        .iter()
        .enumerate()
        .filter(|(_, reserved)| reserved.is_ok())
        .map(|(n, _)| if n % 2 == 0 { 1 } else { 4 })
        .sum();
    assert_eq!((used, credit), (units, 50 - 3 * i64::try_from(units).unwrap()));
    assert!((0..3).contains(&credit), "what pays for a message was left: {credit}");
}

#[tokio::test]
async fn several_are_reserved_together_or_not_at_all() {
    let books = Books::open(Some(10), 2);
    let tenant = books.tenant("Acme").await;
    books.on_small(&tenant, 19).await;
    assert_eq!(
        books.reserve(&tenant, 11, NOW).await,
        Err(Refusal::QuotaExceeded { quota: 10, left: 10, resets_at: DECEMBER })
    );
    assert_eq!(
        books.reserve(&tenant, 10, NOW).await,
        Err(Refusal::InsufficientCredit { credit: 19, needed: 20, left: 9 })
    );
    let nine = books.reserve(&tenant, 9, NOW).await.unwrap();
    assert_eq!((nine.price(), books.account(&tenant, NOW).await), (2, (1, 9)));
    // What is not accepted after all is given back.
    books.write(move |tx| credit::release(tx, &nine, 4, NOW)).await;
    assert_eq!(books.account(&tenant, NOW).await, (9, 5));
}

#[tokio::test]
async fn what_no_phone_began_is_given_back_once() {
    let books = Books::open(Some(100), 5);
    let tenant = books.tenant("Acme").await;
    books.on_small(&tenant, 1_000).await;
    for status in [Status::Failed, Status::Blocked, Status::Expired, Status::Canceled] {
        let id = books.send(&tenant, NOW).await.unwrap();
        assert_eq!(books.account(&tenant, NOW).await, (995, 1), "{status}");
        books.ends(&tenant, &id, status, NOW).await;
        assert_eq!(books.account(&tenant, NOW).await, (1_000, 0), "{status}");
        // It is said again, and otherwise.
        books.ends(&tenant, &id, status, NOW).await;
        let (of, again) = (tenant.clone(), id.clone());
        books.write(move |tx| credit::give_back(tx, &of, (&again, true), NOW)).await;
        let (of, again) = (tenant.clone(), id.clone());
        books.write(move |tx| change::block_unread(tx, &of, &again, NOW)).await;
        assert_eq!(books.account(&tenant, NOW).await, (1_000, 0), "{status}");
    }
    let id = books.send(&tenant, NOW).await.unwrap();
    let (of, canceled) = (tenant.clone(), id.clone());
    let done = books.write(move |tx| messages::cancel(tx, &of, &canceled, NOW)).await;
    assert!(matches!(done, Some(Canceled::Now(_))), "{done:?}");
    let id = books.send(&tenant, NOW).await.unwrap();
    let (of, damaged) = (tenant.clone(), id.clone());
    books
        .write(move |tx| {
            let broken = "UPDATE messages SET class = 'x' WHERE id = ?1 AND tenant_id = ?2";
            tx.execute(broken, params![damaged, of])?;
            change::block_unread(tx, &of, &damaged, NOW)
        })
        .await;
    assert_eq!(books.account(&tenant, NOW).await, (1_000, 0));
    assert_eq!(books.usage(&tenant).await, [6, 12, 0, 6, 30, 30]);
    assert_eq!(books.numbers("SELECT COUNT(*) FROM charges", &[], 1).await, [0]);
}

#[tokio::test]
async fn what_a_phone_began_is_paid_for() {
    let books = Books::open(Some(100), 5);
    let tenant = books.tenant("Acme").await;
    books.on_small(&tenant, 1_000).await;
    let failed = books.send(&tenant, NOW).await.unwrap();
    let (of, id) = (tenant.clone(), failed.clone());
    books.write(move |tx| change::make(tx, &of, &id, &Change::step("started", NOW))).await;
    books.ends(&tenant, &failed, Status::Failed, NOW).await;
    let sent = books.send(&tenant, NOW).await.unwrap();
    for status in [Status::Sent, Status::Delivered, Status::Read] {
        books.ends(&tenant, &sent, status, NOW).await;
    }
    assert_eq!(books.account(&tenant, NOW).await, (990, 2));
    assert_eq!(books.usage(&tenant).await, [2, 4, 1, 0, 10, 0]);
}

#[tokio::test]
async fn a_dead_letter_that_is_tried_again_is_paid_for_once() {
    let books = Books::open(Some(10), 5);
    let acme = books.tenant("Acme").await;
    books.on_small(&acme, 20).await;
    let dead = async |began: bool| {
        let id = books.send(&acme, NOW).await.unwrap();
        let (tenant, letter) = (acme.clone(), id.clone());
        books
            .write(move |tx| {
                if began {
                    change::make(tx, &tenant, &letter, &Change::step("started", NOW))?;
                }
                change::make(tx, &tenant, &letter, &Change::to(Status::Failed, NOW))?;
                dead_letters::keep(tx, &tenant, &letter, Reason::AttemptsExhausted, NOW)
            })
            .await;
        id
    };
    let retry = async |id: MessageId| {
        let (tenant, new) = (acme.clone(), MessageId::new(NOW.0, clock::random()));
        match books.write(move |tx| dead_letters::retry(tx, &tenant, &id, (new, NOW))).await {
            Some(Retried::As(message)) => message.id,
            other => panic!("{other:?}"),
        }
    };
    // No phone ever began: it was given back, and the new message is charged.
    let never = dead(false).await;
    assert_eq!(books.account(&acme, NOW).await, (20, 0));
    let again = retry(never).await;
    assert_eq!(books.account(&acme, NOW).await, (15, 1));
    books.ends(&acme, &again, Status::Expired, NOW).await;
    assert_eq!(books.account(&acme, NOW).await, (20, 0));
    // A phone began: that is paid for, and pays for the new message, too.
    let began = dead(true).await;
    assert_eq!(books.account(&acme, NOW).await, (15, 1));
    let again = retry(began).await;
    assert_eq!(books.account(&acme, NOW).await, (15, 1));
    // Of this one nothing was begun; what a phone began of the one before is paid for all the same, however often it is tried.
    let (tenant, letter) = (acme.clone(), again.clone());
    books
        .write(move |tx| {
            change::make(tx, &tenant, &letter, &Change::to(Status::Failed, NOW))?;
            dead_letters::keep(tx, &tenant, &letter, Reason::AttemptsExhausted, NOW)
        })
        .await;
    assert_eq!(books.account(&acme, NOW).await, (15, 1));
    let third = retry(again).await;
    books.ends(&acme, &third, Status::Canceled, NOW).await;
    assert_eq!(books.account(&acme, NOW).await, (15, 1));
    assert_eq!(books.numbers("SELECT begun FROM charges", &[], 1).await, [1]);
}

#[tokio::test]
async fn a_month_begins_anew_and_a_clock_that_steps_back_gives_nothing() {
    let books = Books::open(Some(2), 0);
    let tenant = books.tenant("Acme").await;
    books.on_small(&tenant, 0).await;
    let old = books.send(&tenant, NOW).await.unwrap();
    books.send(&tenant, NOW).await.unwrap();
    books.send(&tenant, NOW).await.unwrap_err();
    books.send(&tenant, DECEMBER.plus_ms(-1)).await.unwrap_err();
    books.send(&tenant, DECEMBER).await.unwrap();
    assert_eq!(books.account(&tenant, DECEMBER).await, (0, 1));
    // What comes back of a month that is over is no message of the new one.
    books.ends(&tenant, &old, Status::Expired, DECEMBER).await;
    assert_eq!(books.account(&tenant, DECEMBER).await, (0, 1));
    books.send(&tenant, NOW).await.unwrap();
    books.send(&tenant, NOW).await.unwrap_err();
    books.send(&tenant, DECEMBER).await.unwrap_err();
}

#[tokio::test]
async fn warnings_are_told_once_a_month_each_to_whoever_pays() {
    let books = Books::open(Some(10), 0);
    let (agent, customer) = (books.tenant("Agent").await, books.tenant("Customer").await);
    books.on_small(&agent, 0).await;
    let (of, by, plans) = (customer.clone(), agent.clone(), books.plans.clone());
    books.write(move |tx| accounts::set_payer(tx, &of, Some(&by), &plans, NOW)).await.unwrap();
    for _ in 0..7 {
        books.send(&customer, NOW).await.unwrap();
    }
    assert_eq!(books.warned(&agent).await.len(), 0);
    let eighth = books.send(&customer, NOW).await.unwrap();
    assert_eq!(books.warned(&agent).await.len(), 1);
    // Falling below and rising above again says nothing new.
    books.ends(&customer, &eighth, Status::Expired, NOW).await;
    for _ in 0..3 {
        books.send(&customer, NOW).await.unwrap();
    }
    books.send(&customer, NOW).await.unwrap_err();
    let mut warned = books.warned(&agent).await;
    // Both were told in the same millisecond of the test's clock, so their ids say nothing of their order.
    warned.sort_by_key(|body| !body.contains("\"percent\":80"));
    assert_eq!(warned.len(), 2);
    for (body, percent, used) in [(&warned[0], 80, 8), (&warned[1], 100, 10)] {
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        let quota = serde_json::json!({"percent": percent, "used": used, "quota": 10, "month": "2026-11",
            "resets_at": "2026-12-01T00:00:00.000Z"});
        assert_eq!(
            (&body["data"]["quota"], &body["data"]["tenant"]),
            (&quota, &agent.as_str().into())
        );
    }
    books.reserve(&customer, 10, DECEMBER).await.unwrap();
    assert_eq!(books.warned(&agent).await.len(), 4);
    assert_eq!(books.warned(&customer).await.len(), 0);
    // Who pays is charged; who sends is counted.
    assert_eq!(books.usage(&agent).await[0], 0);
    assert_eq!(books.usage(&customer).await[0], 11);
}

#[tokio::test]
async fn a_quota_that_comes_later_counts_what_was_not_returned_and_warns_of_itself() {
    let books = Books::open(Some(10), 0);
    let tenant = books.tenant("Acme").await;
    for _ in 0..9 {
        books.send(&tenant, NOW).await.unwrap();
    }
    let never_begun = books.send(&tenant, NOW).await.unwrap();
    let begun = books.send(&tenant, NOW).await.unwrap();
    let (of, id) = (tenant.clone(), begun.clone());
    books.write(move |tx| change::make(tx, &of, &id, &Change::step("started", NOW))).await;
    for _again in 0..2 {
        books.ends(&tenant, &never_begun, Status::Failed, NOW).await;
        books.ends(&tenant, &begun, Status::Failed, NOW).await;
    }
    assert_eq!(books.usage(&tenant).await, [11, 22, 0, 1, 0, 0]);
    // What was not counted when it was accepted is not counted as returned.
    let (of, test) = (tenant.clone(), NewMessage { test: true, ..new(NOW) });
    books
        .write(move |tx| {
            let id = messages::accept(tx, &of, &test, &Reservation::FREE)?.id;
            messages::cancel(tx, &of, &id, NOW)
        })
        .await;
    assert_eq!(books.usage(&tenant).await, [11, 22, 0, 1, 0, 0]);
    // What nobody knew of for a while, and then did not go, is.
    let unknown = books.send(&tenant, NOW).await.unwrap();
    books.ends(&tenant, &unknown, Status::Unknown, NOW).await;
    assert_eq!(books.usage(&tenant).await, [12, 24, 0, 1, 0, 0]);
    books.ends(&tenant, &unknown, Status::Failed, NOW).await;
    assert_eq!(books.usage(&tenant).await, [12, 24, 0, 2, 0, 0]);
    assert_eq!(books.warned(&tenant).await.len(), 0);
    books.on_small(&tenant, 0).await;
    assert_eq!(books.account(&tenant, NOW).await, (0, 10));
    // What is used already reaches both percentages; the same plan once more says nothing more.
    books.on_small(&tenant, 0).await;
    let warned = books.warned(&tenant).await;
    assert_eq!(warned.len(), 2, "{warned:?}");
    books.send(&tenant, NOW).await.unwrap_err();
    // Nobody is warned of a quota that another one's takes the place of.
    let (agent, paid_for) = (books.tenant("Agent").await, books.tenant("Customer").await);
    for _ in 0..10 {
        books.send(&paid_for, NOW).await.unwrap();
    }
    let (of, by, plans) = (paid_for.clone(), agent.clone(), books.plans.clone());
    books.write(move |tx| accounts::set_payer(tx, &of, Some(&by), &plans, NOW)).await.unwrap();
    books.on_small(&paid_for, 0).await;
    assert_eq!(books.warned(&paid_for).await.len(), 0);
    // A plan without limits and back again warns anew, for it is a new quota.
    let (of, plans) = (tenant.clone(), books.plans.clone());
    assert!(books.write(move |tx| accounts::set_plan(tx, &of, None, &plans, NOW)).await);
    assert_eq!(books.warned(&tenant).await.len(), 2);
    books.on_small(&tenant, 0).await;
    assert_eq!(books.warned(&tenant).await.len(), 4);
}

#[tokio::test]
async fn nobody_pays_for_themselves_in_a_circle() {
    let books = Books::open(Some(10), 0);
    let (a, b, c) = (books.tenant("A").await, books.tenant("B").await, books.tenant("C").await);
    let nobody = TenantId::new(NOW.0, [9; 10]);
    let pays = async |of: &TenantId, by: &TenantId| {
        let (of, by, plans) = (of.clone(), by.clone(), books.plans.clone());
        books.write(move |tx| accounts::set_payer(tx, &of, Some(&by), &plans, NOW)).await
    };
    assert_eq!(pays(&a, &a).await, Err(PayerRefused::Itself));
    assert_eq!(pays(&a, &nobody).await, Err(PayerRefused::Unknown));
    assert_eq!(pays(&a, &b).await, Ok(()));
    assert_eq!(pays(&b, &a).await, Err(PayerRefused::IsPaidFor));
    assert_eq!(pays(&c, &a).await, Err(PayerRefused::IsPaidFor));
    assert_eq!(pays(&b, &c).await, Err(PayerRefused::PaysForOthers));
    assert_eq!(pays(&c, &b).await, Ok(()));
}

#[tokio::test]
async fn what_was_used_counts_when_a_plan_with_a_quota_comes() {
    let books = Books::open(Some(5), 0);
    let tenant = books.tenant("Acme").await;
    for _ in 0..4 {
        books.send(&tenant, NOW).await.unwrap();
    }
    assert_eq!(books.numbers("SELECT COUNT(*) FROM billing_accounts", &[], 1).await, [0]);
    assert_eq!(books.account(&tenant, NOW).await, (0, 4));
    books.on_small(&tenant, 0).await;
    assert_eq!(books.account(&tenant, NOW).await, (0, 4));
    books.send(&tenant, NOW).await.unwrap();
    books.send(&tenant, NOW).await.unwrap_err();
    // A plan that grows lets more through; one that nobody configures any more goes on as it was.
    let grown = plans(Some(6), 0);
    assert_eq!(books.write(move |tx| accounts::apply(tx, &grown, NOW)).await, [""; 0]);
    books.send(&tenant, NOW).await.unwrap();
    books.send(&tenant, NOW).await.unwrap_err();
    let gone = books.write(|tx| accounts::apply(tx, &Plans::default(), NOW)).await;
    assert_eq!(gone, ["small"]);
    books.send(&tenant, NOW).await.unwrap_err();
}

#[tokio::test]
async fn what_is_given_back_in_a_later_month_is_no_fault_of_that_month() {
    let books = Books::open(Some(10), 1);
    let tenant = books.tenant("Acme").await;
    books.on_small(&tenant, 10).await;
    let id = books.send(&tenant, NOW).await.unwrap();
    // It is put on a plan without limits, and only then does the message end unsent.
    let (whose, plans) = (tenant.clone(), books.plans.clone());
    books.write(move |tx| accounts::set_plan(tx, &whose, None, &plans, DECEMBER)).await;
    books.ends(&tenant, &id, Status::Expired, DECEMBER).await;
    assert_eq!(books.account(&tenant, DECEMBER).await, (10, 0));
    // And back on one with limits.
    let (whose, plans) = (tenant.clone(), books.plans.clone());
    assert!(
        books
            .write(move |tx| accounts::set_plan(tx, &whose, Some("small"), &plans, DECEMBER))
            .await
    );
    assert_eq!(books.account(&tenant, DECEMBER).await, (10, 0));
}

#[tokio::test]
async fn a_default_plan_with_limits_holds_for_everybody() {
    let books = Books::open(Some(5), 0);
    let tenant = books.tenant("Acme").await;
    let small =
        Plans::new("small".to_owned(), [("small".to_owned(), Terms { quota: Some(1), price: 0 })])
            .unwrap();
    books.write(move |tx| accounts::apply(tx, &small, NOW)).await;
    books.send(&tenant, NOW).await.unwrap();
    books.send(&tenant, NOW).await.unwrap_err();
    // And no longer, once it has none.
    books.write(|tx| accounts::apply(tx, &Plans::default(), NOW)).await;
    books.send(&tenant, NOW).await.unwrap();
}

#[tokio::test]
async fn what_fails_counts_nothing() {
    let books = Books::open(Some(5), 1);
    let tenant = books.tenant("Acme").await;
    books.on_small(&tenant, 10).await;
    let of = tenant.clone();
    let failed: Result<(), _> = books
        .store
        .write(move |tx| {
            let new = new(NOW);
            let reservation = messages::reserve(tx, &of, &new)?.unwrap();
            messages::accept(tx, &of, &new, &reservation)?;
            Err(StoreError::NoRow)
        })
        .await;
    failed.unwrap_err();
    assert_eq!(books.account(&tenant, NOW).await, (10, 0));
    assert_eq!(books.usage(&tenant).await, [0; 6]);
}

#[tokio::test]
async fn test_keys_cost_nothing() {
    let books = Books::open(Some(0), 1);
    let tenant = books.tenant("Acme").await;
    books.on_small(&tenant, 0).await;
    let of = tenant.clone();
    books
        .write(move |tx| {
            let new = NewMessage { test: true, ..new(NOW) };
            let reservation = messages::reserve(tx, &of, &new)?.unwrap();
            messages::accept(tx, &of, &new, &reservation)
        })
        .await;
    assert_eq!(books.usage(&tenant).await, [0; 6]);
}
