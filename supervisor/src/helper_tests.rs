use std::os::unix::fs::PermissionsExt as _;

use tokio::io::AsyncReadExt as _;

use super::*;

/// A networksetup that keeps its order in a file, one name a line, and notes every call.
const NETWORKSETUP: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
printf '%s|' "$@" >> calls; echo >> calls
case "$1" in
-listnetworkserviceorder)
  echo 'An asterisk (*) denotes that a network service is disabled.'
  n=0
  while read -r name; do
    n=$((n + 1))
    printf '(%s) %s\n(Hardware Port: %s, Device: en%s)\n\n' $n "$name" "$name" $n
  done < order ;;
-ordernetworkservices)
  shift
  if [ -e fails ]; then echo '** Error: Command requires admin privileges.'; exit 0; fi
  if [ -e lies ]; then exit 0; fi
  printf '%s\n' "$@" > order ;;
*) exit 9 ;;
esac
"#;

/// A helper over a networksetup that plays.
pub(crate) struct House {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) helper: Helper,
    tracker: TaskTracker,
}

pub(crate) fn own_uid() -> u32 {
    Uid::current().as_raw()
}

impl House {
    pub(crate) async fn new(uid: u32) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let networksetup = dir.path().join("networksetup");
        std::fs::write(&networksetup, NETWORKSETUP).unwrap();
        std::fs::set_permissions(&networksetup, std::fs::Permissions::from_mode(0o700)).unwrap();
        std::fs::write(dir.path().join("order"), "Ethernet\nA; touch stolen\niPhone USB\n")
            .unwrap();
        let socket = dir.path().join("helper.sock");
        let options = HelperOptions { socket: socket.clone(), uid: own_uid(), networksetup };
        let listener = listen(&options).await.unwrap();
        let tracker = TaskTracker::new();
        let server = Server {
            networksetup: Arc::new(Mutex::new(options.networksetup)),
            uid,
            tracker: tracker.clone(),
        };
        tracker.spawn(async move {
            server.accept(&listener, &CancellationToken::new()).await;
        });
        Self { dir, helper: Helper::new(socket), tracker }
    }

    pub(crate) fn file(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    async fn order(&self, names: &[&str]) -> Result<Vec<String>, String> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let done = self.helper.order(&names).await;
        done.map(|services| services::names(&services)).map_err(|error| error.to_string())
    }

    async fn say(&self, text: &str) -> String {
        let mut stream = UnixStream::connect(&self.helper.socket).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // Who is not answered may be hung up on.
        drop(stream.read_to_string(&mut answer).await);
        answer
    }
}

#[tokio::test]
async fn services_are_listed_and_put_into_order_without_a_shell() {
    let house = House::new(own_uid()).await;
    let services = house.helper.services().await.unwrap();
    assert_eq!(services[2].device.as_deref(), Some("en3"));
    let wanted = ["iPhone USB", "A; touch stolen", "Ethernet"];
    assert_eq!(house.order(&wanted).await.unwrap(), wanted);
    assert_eq!(house.file("order"), "iPhone USB\nA; touch stolen\nEthernet\n");
    assert!(!house.dir.path().join("stolen").exists());
    let mode = std::fs::metadata(&house.helper.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!house.tracker.is_empty());
}

#[tokio::test]
async fn only_the_services_that_there_are_reach_the_program() {
    let house = House::new(own_uid()).await;
    let before = house.file("order");
    for names in [
        &["Ethernet", "iPhone USB"][..],
        &["Ethernet", "A; touch stolen", "iPhone USB", "-setnetworkserviceenabled"],
        &["Ethernet", "Ethernet", "iPhone USB"],
        &["Ethernet", "A", "iPhone USB"],
        &[],
    ] {
        let error = house.order(names).await.unwrap_err();
        assert!(error.contains("every network service once"), "{error}");
    }
    assert_eq!(house.file("order"), before);
    assert!(!house.file("calls").contains("-ordernetworkservices"));
}

#[tokio::test]
async fn what_networksetup_did_is_believed_only_when_it_can_be_read_back() {
    let house = House::new(own_uid()).await;
    let wanted = ["iPhone USB", "A; touch stolen", "Ethernet"];
    std::fs::write(house.dir.path().join("fails"), "").unwrap();
    let error = house.order(&wanted).await.unwrap_err();
    assert!(error.contains("requires admin privileges"), "{error}");
    std::fs::rename(house.dir.path().join("fails"), house.dir.path().join("lies")).unwrap();
    let error = house.order(&wanted).await.unwrap_err();
    assert!(error.contains("another one"), "{error}");
}

#[tokio::test]
async fn verbs_are_fixed() {
    let house = House::new(own_uid()).await;
    for text in [
        "{\"verb\":\"run\",\"program\":\"/bin/sh\"}\n",
        "{\"verb\":\"services\",\"more\":1}\n",
        "{\"verb\":\"order\"}\n",
        "nonsense\n",
    ] {
        let answer = house.say(text).await;
        assert!(answer.starts_with("{\"refused\":\"no question"), "{text} {answer}");
    }
    let long = format!("{{\"verb\":\"{}\"}}\n", "x".repeat(LINE_MAX));
    assert_eq!(house.say(&long).await, "");
    assert_eq!(house.file("calls"), "");
    assert!(house.say("{\"verb\":\"services\"}\n").await.contains("iPhone USB"));
}

#[tokio::test]
async fn nobody_else_is_answered() {
    // Root may always ask, so that this shows for others only; who that is plays no part.
    let allowed = own_uid() == 0;
    let house = House::new(own_uid() + 1).await;
    assert_eq!(house.helper.services().await.is_ok(), allowed);
    assert!(!is_welcome(501, 502) && is_welcome(501, 501) && is_welcome(501, 0));
}

#[tokio::test]
async fn a_socket_that_was_left_is_replaced_and_nothing_else_is() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let options = HelperOptions {
        socket: socket.clone(),
        uid: own_uid(),
        networksetup: PathBuf::from("/none"),
    };
    let first = listen(&options).await.unwrap();
    assert_eq!(listen(&options).await.unwrap_err().status, 75);
    drop(first);
    drop(listen(&options).await.unwrap());
    std::fs::remove_file(&socket).unwrap();
    std::fs::write(&socket, "mine").unwrap();
    assert_eq!(listen(&options).await.unwrap_err().status, 78);
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "mine");
}
