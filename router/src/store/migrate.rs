//! Brings a file's schema up to date, or refuses it.

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use rusqlite::{Connection, TransactionBehavior};

use super::StoreError;
use crate::clock::Clock;

/// One step of the schema. A step that has been released is never edited: the next one is added.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Counts up from 1 without gaps.
    pub version: u32,
    /// The file's name, for people.
    pub name: &'static str,
    /// What it runs, in one transaction.
    pub sql: &'static str,
}

/// Every step, oldest first.
pub const MIGRATIONS: &[Migration] = &[
    Migration { version: 1, name: "init", sql: include_str!("../../migrations/0001_init.sql") },
    Migration {
        version: 2,
        name: "retention",
        sql: include_str!("../../migrations/0002_retention.sql"),
    },
    Migration {
        version: 3,
        name: "standby",
        sql: include_str!("../../migrations/0003_standby.sql"),
    },
    Migration {
        version: 4,
        name: "compliance",
        sql: include_str!("../../migrations/0004_compliance.sql"),
    },
    Migration {
        version: 5,
        name: "warming",
        sql: include_str!("../../migrations/0005_warming.sql"),
    },
    Migration { version: 6, name: "queue", sql: include_str!("../../migrations/0006_queue.sql") },
    Migration {
        version: 7,
        name: "dead_letters",
        sql: include_str!("../../migrations/0007_dead_letters.sql"),
    },
    Migration { version: 8, name: "keys", sql: include_str!("../../migrations/0008_keys.sql") },
    Migration {
        version: 9,
        name: "webhooks",
        sql: include_str!("../../migrations/0009_webhooks.sql"),
    },
    Migration { version: 10, name: "audit", sql: include_str!("../../migrations/0010_audit.sql") },
    Migration {
        version: 11,
        name: "billing",
        sql: include_str!("../../migrations/0011_billing.sql"),
    },
    Migration {
        version: 12,
        name: "templates",
        sql: include_str!("../../migrations/0012_templates.sql"),
    },
    Migration {
        version: 13,
        name: "routes",
        sql: include_str!("../../migrations/0013_routes.sql"),
    },
    Migration {
        version: 14,
        name: "stripe",
        sql: include_str!("../../migrations/0014_stripe.sql"),
    },
    Migration {
        version: 15,
        name: "providers",
        sql: include_str!("../../migrations/0015_providers.sql"),
    },
    Migration {
        version: 16,
        name: "batches",
        sql: include_str!("../../migrations/0016_batches.sql"),
    },
    Migration {
        version: 17,
        name: "stripe_credits",
        sql: include_str!("../../migrations/0017_stripe_credits.sql"),
    },
    Migration {
        version: 18,
        name: "sandbox",
        sql: include_str!("../../migrations/0018_sandbox.sql"),
    },
    Migration { version: 19, name: "ends", sql: include_str!("../../migrations/0019_ends.sql") },
    Migration {
        version: 20,
        name: "doubts",
        sql: include_str!("../../migrations/0020_doubts.sql"),
    },
    Migration {
        version: 21,
        name: "questions",
        sql: include_str!("../../migrations/0021_questions.sql"),
    },
    Migration { version: 22, name: "lists", sql: include_str!("../../migrations/0022_lists.sql") },
    Migration {
        version: 23,
        name: "clustered",
        sql: include_str!("../../migrations/0023_clustered.sql"),
    },
    Migration { version: 24, name: "idle", sql: include_str!("../../migrations/0024_idle.sql") },
    Migration {
        version: 25,
        name: "subscriptions",
        sql: include_str!("../../migrations/0025_subscriptions.sql"),
    },
    Migration {
        version: 26,
        name: "persons",
        sql: include_str!("../../migrations/0026_persons.sql"),
    },
    Migration {
        version: 27,
        name: "in_hand",
        sql: include_str!("../../migrations/0027_in_hand.sql"),
    },
    Migration { version: 28, name: "room", sql: include_str!("../../migrations/0028_room.sql") },
    Migration { version: 29, name: "begun", sql: include_str!("../../migrations/0029_begun.sql") },
    Migration {
        version: 30,
        name: "stripe_ended",
        sql: include_str!("../../migrations/0030_stripe_ended.sql"),
    },
    Migration {
        version: 31,
        name: "canaries",
        sql: include_str!("../../migrations/0031_canaries.sql"),
    },
    Migration {
        version: 32,
        name: "starts",
        sql: include_str!("../../migrations/0032_starts.sql"),
    },
    Migration { version: 33, name: "due", sql: include_str!("../../migrations/0033_due.sql") },
    Migration {
        version: 34,
        name: "by_recipient",
        sql: include_str!("../../migrations/0034_by_recipient.sql"),
    },
    Migration {
        version: 35,
        name: "subscriptions",
        sql: include_str!("../../migrations/0035_subscriptions.sql"),
    },
    Migration { version: 36, name: "quiet", sql: include_str!("../../migrations/0036_quiet.sql") },
    Migration { version: 37, name: "unfit", sql: include_str!("../../migrations/0037_unfit.sql") },
    Migration { version: 39, name: "words", sql: include_str!("../../migrations/0039_words.sql") },
    Migration {
        version: 40,
        name: "acquainted",
        sql: include_str!("../../migrations/0040_acquainted.sql"),
    },
    Migration {
        version: 41,
        name: "retired",
        sql: include_str!("../../migrations/0041_retired.sql"),
    },
    Migration {
        version: 45,
        name: "held_of",
        sql: include_str!("../../migrations/0045_held_of.sql"),
    },
    Migration { version: 46, name: "open", sql: include_str!("../../migrations/0046_open.sql") },
    Migration {
        version: 47,
        name: "in_group",
        sql: include_str!("../../migrations/0047_in_group.sql"),
    },
];

/// Applies the steps that are missing, each in a transaction of its own; answers how many those were.
///
/// Refuses a file that a newer program has migrated further, and one whose applied steps are not the ones compiled in:
/// both would make the store functions wrong in ways that no test has seen.
pub fn migrate(connection: &mut Connection) -> Result<usize, StoreError> {
    migrate_with(connection, MIGRATIONS)
}

fn migrate_with(connection: &mut Connection, steps: &[Migration]) -> Result<usize, StoreError> {
    connection.execute_batch(
        "CREATE TABLE IF NOT EXISTS schema_migrations (
            version BIGINT PRIMARY KEY, name TEXT NOT NULL, sha256 TEXT NOT NULL, applied_at BIGINT NOT NULL)",
    )?;
    let applied: BTreeMap<u32, String> = connection
        .prepare("SELECT version, sha256 FROM schema_migrations")?
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<Result<_, _>>()?;

    let newest = steps.last().map_or(0, |step| step.version);
    if let Some(version) = applied.keys().find(|version| **version > newest) {
        return Err(StoreError::Schema(format!(
            "it is at version {version}, this program knows up to {newest}: use a newer program"
        )));
    }
    let mut count = 0;
    for step in steps {
        let sha256 = sha256(step.sql);
        match applied.get(&step.version) {
            Some(was) if *was == sha256 => {}
            Some(_) => {
                return Err(StoreError::Schema(format!(
                    "migration {} ({}) is not the one that was applied to this file",
                    step.version, step.name
                )));
            }
            None => {
                apply(connection, step, &sha256)?;
                count += 1;
            }
        }
    }
    Ok(count)
}

fn apply(connection: &mut Connection, step: &Migration, sha256: &str) -> Result<(), StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(step.sql)?;
    transaction.execute(
        "INSERT INTO schema_migrations (version, name, sha256, applied_at) VALUES (?1, ?2, ?3, ?4)",
        rusqlite::params![step.version, step.name, sha256, Clock::system().now().0],
    )?;
    transaction.commit()?;
    tracing::info!(version = step.version, name = step.name, "migration applied");
    Ok(())
}

fn sha256(text: &str) -> String {
    HEXLOWER.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, text.as_bytes()).as_ref())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Migration = Migration { version: 1, name: "one", sql: "CREATE TABLE a (x BIGINT)" };
    const TWO: Migration = Migration { version: 2, name: "two", sql: "CREATE TABLE b (x BIGINT)" };
    const BROKEN: Migration = Migration {
        version: 2,
        name: "broken",
        sql: "CREATE TABLE half (x BIGINT); INSERT INTO missing VALUES (1)",
    };

    fn refusal(result: Result<usize, StoreError>) -> String {
        match result {
            Err(StoreError::Schema(text)) => text,
            other => panic!("expected a refusal, got {other:?}"),
        }
    }

    #[test]
    fn steps_are_applied_once_and_in_order() {
        let mut connection = Connection::open_in_memory().unwrap();
        assert_eq!(migrate_with(&mut connection, &[ONE]).unwrap(), 1);
        assert_eq!(migrate_with(&mut connection, &[ONE, TWO]).unwrap(), 1);
        assert_eq!(migrate_with(&mut connection, &[ONE, TWO]).unwrap(), 0);
        connection.execute_batch("INSERT INTO b VALUES (1)").unwrap();
    }

    #[test]
    fn a_file_of_a_newer_program_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate_with(&mut connection, &[ONE, TWO]).unwrap();
        assert!(refusal(migrate_with(&mut connection, &[ONE])).contains("newer program"));
    }

    #[test]
    fn an_edited_step_is_refused() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate_with(&mut connection, &[ONE]).unwrap();
        let edited = Migration { sql: "CREATE TABLE a (y BIGINT)", ..ONE };
        assert!(refusal(migrate_with(&mut connection, &[edited])).contains("migration 1"));
    }

    #[test]
    fn a_step_that_fails_leaves_nothing_behind() {
        let mut connection = Connection::open_in_memory().unwrap();
        migrate_with(&mut connection, &[ONE, BROKEN]).unwrap_err();
        connection.prepare("SELECT x FROM half").unwrap_err();
        assert_eq!(migrate_with(&mut connection, &[ONE, TWO]).unwrap(), 1);
    }

    #[test]
    fn the_compiled_steps_count_up_and_apply() {
        // A number may be left out, and none is ever used again.
        assert!(MIGRATIONS.windows(2).all(|pair| pair[0].version < pair[1].version));
        migrate(&mut Connection::open_in_memory().unwrap()).unwrap();
    }

    /// The steps up to one, then `rows`, then the others; what `answer` selects of it, a text a row.
    fn carried_over(step: usize, rows: &str, answer: &str) -> Vec<String> {
        let mut connection = Connection::open_in_memory().unwrap();
        connection.pragma_update(None, "foreign_keys", false).unwrap();
        migrate_with(&mut connection, &MIGRATIONS[..step]).unwrap();
        connection.execute_batch(rows).unwrap();
        migrate(&mut connection).unwrap();
        let mut statement = connection.prepare(answer).unwrap();
        let rows = statement.query_map([], |row| row.get(0)).unwrap();
        rows.map(Result::unwrap).collect()
    }

    #[test]
    fn what_is_on_its_way_and_whom_a_phone_knows_is_carried_over() {
        let message = |id: &str, direction: &str, status: &str| {
            format!(
                "INSERT INTO messages (id, tenant_id, direction, kind, test, recipient, channel_asked, class, status,
                     expires_at, attempts, sequence, cancel_asked, created_at, updated_at)
                 VALUES ('{id}', 'ten', '{direction}', 'tenant', 0, 'r', 'auto', 'otp', '{status}', 1, 0, 1, 0, 1, 1);"
            )
        };
        let rows = [
            message("a", "outbound", "queued"),
            message("b", "outbound", "scheduled"),
            message("c", "outbound", "dispatching"),
            message("d", "outbound", "sent"),
            message("e", "inbound", "received"),
            "INSERT INTO bindings VALUES ('ten', 'r', 'pho', 5, 'inbound', 4, 3);".to_owned(),
        ];
        let answer = "SELECT id || on_the_way FROM messages UNION ALL
             SELECT recipient || phone_id || tenant_id || last_at || last_direction || last_inbound_at || unanswered FROM bindings ORDER BY 1";
        assert_eq!(
            carried_over(33, &rows.concat(), answer),
            ["a1", "b1", "c1", "d0", "e0", "rphoten5inbound43"]
        );
    }

    #[test]
    fn what_is_known_of_subscriptions_is_carried_over() {
        let rows = "INSERT INTO stripe_ended (customer, subscription, created, rank, at)
                 VALUES ('cus_1', 'sub_old', 10, 2, 100), ('cus_3', 'sub_gone', 11, 2, 101);
             INSERT INTO stripe_waiting (customer, subscription, plan, created, rank, at, since)
                 VALUES ('cus_2', 'sub_early', 'growth', 12, 1, 102, 9);
             INSERT INTO billing_accounts (tenant_id, plan, price, credit, month, used, warned, stripe_customer,
                 stripe_subscription, stripe_at, stripe_rank, updated_at, stripe_since, stripe_ended)
             VALUES ('ten_1', 'growth', 1, 0, 0, 0, 0, 'cus_1', 'sub_new', 13, 1, 103, 8, 0),
                 ('ten_3', 'starter', 1, 0, 0, 0, 0, 'cus_3', 'sub_gone', 11, 2, 104, 7, 1),
                 ('ten_4', 'starter', 1, 0, 0, 0, 0, NULL, NULL, NULL, NULL, 105, 0, 0);";
        let answer = "SELECT customer || ' ' || subscription || ' ' || since || ' ' || created || ' ' || rank || ' '
                 || COALESCE(plan, 'ended') || ' ' || passing FROM stripe_subscriptions ORDER BY 1";
        assert_eq!(
            carried_over(34, rows, answer),
            [
                "cus_1 sub_new 8 13 1 growth 0",
                "cus_1 sub_old 0 10 2 ended 1",
                "cus_2 sub_early 9 12 1 growth 1",
                "cus_3 sub_gone 7 11 2 ended 1",
            ]
        );
        let plans =
            "SELECT tenant_id || ' ' || COALESCE(plan, '-') FROM billing_accounts ORDER BY 1";
        assert_eq!(
            carried_over(34, rows, plans),
            ["ten_1 growth", "ten_3 starter", "ten_4 starter"]
        );
    }
}
