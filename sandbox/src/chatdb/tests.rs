use super::*;

const OWN: &str = "+15550100001";

fn fresh(macos: MacOs) -> (tempfile::TempDir, ChatDb) {
    let dir = tempfile::tempdir().unwrap();
    let db = ChatDb::open(&dir.path().join("chat.db"), macos, OWN).unwrap();
    (dir, db)
}

fn reader(dir: &tempfile::TempDir) -> Connection {
    let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY;
    Connection::open_with_flags(dir.path().join("chat.db"), flags).unwrap()
}

fn one<T: rusqlite::types::FromSql>(conn: &Connection, sql: &str) -> T {
    conn.query_row(sql, [], |row| row.get(0)).expect(sql)
}

fn direct(to: &str) -> Conversation {
    Conversation::Direct(to.to_owned())
}

fn outbound(to: &Conversation, service: Service, look: FirstLook) -> Outbound<'_> {
    let guid = new_guid();
    Outbound { guid, conversation: to, service, text: "hé 😃", date: AppleNs::now(), look }
}

fn inbound<'a>(conversation: &'a Conversation, from: &'a str) -> Inbound<'a> {
    Inbound {
        guid: new_guid(),
        from,
        conversation,
        service: Service::Imessage,
        text: "in",
        date: AppleNs::now(),
    }
}

#[test]
fn every_schema_has_the_columns_of_its_version() {
    for (macos, columns) in MacOs::ALL.into_iter().zip([75, 79, 85, 91, 95, 103]) {
        let (_dir, db) = fresh(macos);
        assert_eq!(db.columns["message"].len(), columns, "{macos}");
        for table in ["chat", "handle", "attachment", "chat_message_join", "kvtable"] {
            let sql = format!("SELECT count(*) FROM {table}");
            assert_eq!(one::<i64>(&db.conn, &sql), 0, "{macos} {table}");
        }
        assert_eq!(one::<String>(&db.conn, "PRAGMA journal_mode"), "wal");
    }
}

#[test]
fn a_row_is_visible_before_its_chat_and_each_state_before_the_next() {
    for macos in MacOs::ALL {
        let (dir, mut db) = fresh(macos);
        let read = reader(&dir);
        let to = direct("+12025550100");
        let row = db.write_outbound(&outbound(&to, Service::Imessage, FirstLook::Sending)).unwrap();
        let state =
            "SELECT printf('%d%d%d%d', is_finished, is_sent, is_delivered, error) FROM message";
        assert_eq!(one::<String>(&read, state), "0000", "{macos}");
        assert_eq!(one::<i64>(&read, "SELECT count(*) FROM chat_message_join"), 0);
        db.join(&row).unwrap();
        assert_eq!(one::<i64>(&read, "SELECT count(*) FROM chat_message_join"), 1);
        db.set_sent(row.rowid).unwrap();
        assert_eq!(one::<String>(&read, state), "1100");
        db.set_delivered(row.rowid, AppleNs(5)).unwrap();
        assert_eq!(one::<String>(&read, state), "1110");
        assert_eq!(one::<i64>(&read, "SELECT date_delivered FROM message"), 5);
        db.set_read(row.rowid, AppleNs(9)).unwrap();
        assert_eq!(one::<i64>(&read, "SELECT date_read FROM message"), 9);
        assert_eq!(one::<i64>(&read, "SELECT date_delivered FROM message"), 5);

        let text: Option<String> = one(&read, "SELECT text FROM message");
        assert_eq!(text.is_some(), macos == MacOs::Monterey, "{macos}");
        let blob: Vec<u8> = one(&read, "SELECT attributedBody FROM message");
        assert!(blob.windows(8).any(|w| w == "hé 😃".as_bytes()), "{macos}");
        let guid: String = one(&read, "SELECT guid FROM chat");
        let prefix = if macos >= MacOs::Tahoe { "any" } else { "iMessage" };
        assert_eq!(guid, format!("{prefix};-;+12025550100"));
        assert_eq!(one::<String>(&read, "SELECT service_name FROM chat"), "iMessage");
        let guid: String = one(&read, "SELECT guid FROM message");
        assert_eq!(guid.len(), 36);
        assert_eq!(guid, guid.to_uppercase());
        assert_eq!(one::<String>(&read, "SELECT destination_caller_id FROM message"), OWN);
    }
}

#[test]
fn one_person_has_a_handle_per_service_and_from_26_on_one_chat() {
    for (macos, chats) in [(MacOs::Sequoia, 2), (MacOs::Tahoe, 1)] {
        let (_dir, mut db) = fresh(macos);
        let to = direct("+12025550110");
        db.write_outbound(&outbound(&to, Service::Imessage, FirstLook::Failed(22))).unwrap();
        db.write_outbound(&outbound(&to, Service::Sms, FirstLook::Sending)).unwrap();
        assert_eq!(one::<i64>(&db.conn, "SELECT count(*) FROM handle"), 2);
        assert_eq!(one::<i64>(&db.conn, "SELECT count(*) FROM chat"), chats);
        let last = "SELECT service_name FROM chat ORDER BY ROWID DESC LIMIT 1";
        assert_eq!(one::<String>(&db.conn, last), "SMS");
        assert_eq!(one::<i64>(&db.conn, "SELECT error FROM message WHERE ROWID = 1"), 22);
    }
}

#[test]
fn a_ghost_is_empty_and_nowhere() {
    let (_dir, mut db) = fresh(MacOs::Tahoe);
    let to = direct("+12025550122");
    db.write_outbound(&outbound(&to, Service::Imessage, FirstLook::Ghost)).unwrap();
    assert_eq!(one::<String>(&db.conn, "SELECT text FROM message"), "");
    assert_eq!(one::<i64>(&db.conn, "SELECT count(*) FROM chat"), 0);
    let service: String =
        one(&db.conn, "SELECT h.service FROM message m JOIN handle h ON h.ROWID = m.handle_id");
    assert_eq!(service, "SMS");
}

#[test]
fn a_downgrade_changes_service_and_handle() {
    let (_dir, mut db) = fresh(MacOs::Sequoia);
    let to = direct("+12025550121");
    let row = db.write_outbound(&outbound(&to, Service::Imessage, FirstLook::Sending)).unwrap();
    db.set_downgraded(row.rowid, "+12025550121").unwrap();
    let seen: String = one(
        &db.conn,
        "SELECT m.service || m.was_downgraded || m.is_sent || h.service
         FROM message m JOIN handle h ON h.ROWID = m.handle_id",
    );
    assert_eq!(seen, "SMS11SMS");
}

#[test]
fn a_late_failure_leaves_the_hint_that_apples_trigger_writes() {
    let (_dir, mut db) = fresh(MacOs::Sequoia);
    let to = direct("+12025550112");
    let row = db.write_outbound(&outbound(&to, Service::Imessage, FirstLook::Sending)).unwrap();
    db.set_failed(row.rowid, 3).unwrap();
    let hint = "SELECT value FROM kvtable WHERE key = 'lastFailedMessageRowID'";
    assert_eq!(one::<i64>(&db.conn, hint), row.rowid);
}

#[test]
fn a_group_has_its_members_and_the_name_of_its_room() {
    for macos in MacOs::ALL {
        let (_dir, mut db) = fresh(macos);
        let members = vec!["+12025550101".to_owned(), "+12025550102".to_owned()];
        let group = Conversation::Group { id: "chat500".into(), members: members.clone() };
        let row = db.write_inbound(&inbound(&group, "+12025550101")).unwrap();
        db.join(&row).unwrap();
        let guid = db.chat_guid(&group, Service::Imessage);
        assert!(guid.ends_with(";+;chat500"), "{macos}");
        let chat = db.chat_of_guid(&guid).unwrap().expect("the group");
        let id = "chat500".to_owned();
        assert_eq!(chat.conversation, Conversation::Group { id, members });
        // Written by Apple's trigger when the join is inserted.
        assert_eq!(one::<String>(&db.conn, "SELECT cache_roomnames FROM message"), "chat500");
        assert!(db.has_group("chat500").unwrap());
        assert_eq!(db.chat_of_guid("any;-;chat500").unwrap(), None);
    }
}

#[test]
fn a_late_copy_has_the_old_date_a_new_guid_and_a_new_row() {
    let (_dir, mut db) = fresh(MacOs::Sequoia);
    let from = direct("+12025550101");
    let row = db.write_inbound(&inbound(&from, "+12025550101")).unwrap();
    db.join(&row).unwrap();
    let copy = db.write_late_copy(&row.guid).unwrap();
    assert_eq!((copy.date, copy.chat), (row.date, row.chat));
    assert_ne!(copy.guid, row.guid);
    assert!(copy.rowid > row.rowid);
    assert!(db.write_late_copy("nowhere").is_err());
}

#[test]
fn a_guid_is_written_once() {
    let (_dir, mut db) = fresh(MacOs::Sequoia);
    let from = direct("+12025550101");
    let again = inbound(&from, "+12025550101");
    db.write_inbound(&again).unwrap();
    assert!(db.write_inbound(&again).is_err());
    assert_eq!(db.messages().unwrap(), 1);
}

#[test]
fn the_wal_can_be_dropped_under_a_reader() {
    let (dir, mut db) = fresh(MacOs::Sequoia);
    let from = direct("+12025550101");
    db.write_inbound(&inbound(&from, "+12025550101")).unwrap();
    let read = reader(&dir);
    assert_eq!(one::<i64>(&read, "SELECT count(*) FROM message"), 1);
    db.drop_wal().unwrap();
    db.write_inbound(&inbound(&from, "+12025550101")).unwrap();
    assert_eq!(one::<i64>(&reader(&dir), "SELECT count(*) FROM message"), 2);
    assert_eq!(one::<String>(&db.conn, "PRAGMA integrity_check"), "ok");
}

#[test]
fn an_existing_file_is_continued() {
    let (dir, mut db) = fresh(MacOs::Tahoe);
    let from = direct("+12025550101");
    db.write_inbound(&inbound(&from, "+12025550101")).unwrap();
    drop(db);
    let mut db = ChatDb::open(&dir.path().join("chat.db"), MacOs::Tahoe, OWN).unwrap();
    assert_eq!(db.messages().unwrap(), 1);
    let row = db.write_inbound(&inbound(&from, "+12025550101")).unwrap();
    assert_eq!(row.rowid, 2);
}

#[test]
fn a_delete_by_another_program_fails_as_on_a_mac() {
    let (dir, db) = fresh(MacOs::Sequoia);
    let other = Connection::open(dir.path().join("chat.db")).unwrap();
    let insert = "INSERT INTO attachment (guid, original_guid) VALUES ('a', 'a')";
    other.execute(insert, []).unwrap();
    let error = other.execute("DELETE FROM attachment", []).unwrap_err();
    assert!(error.to_string().contains("attachment_path"), "{error}");
    assert_eq!(db.conn.execute("DELETE FROM attachment", []).unwrap(), 1);
}
