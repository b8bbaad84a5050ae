use diesel::prelude::*;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use super::*;
use crate::logger::LoggerConfig;
use crate::testing::eventually;

/// A failed core waits less than this before it starts anew.
const DEADLINE: Duration = Duration::from_secs(60);

struct Core {
    dir: TempDir,
    address: SocketAddr,
    stop: CancellationToken,
    ended: JoinHandle<anyhow::Result<()>>,
}

impl Core {
    /// A core on a database that another one may use, too; all else is its own.
    async fn start(database: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Self::config(dir.path(), database);
        let (_, log) = crate::logger::scoped(&LoggerConfig::default()).unwrap();
        let (stop, (ready, listening)) = (CancellationToken::new(), oneshot::channel());
        let ended = tokio::spawn(run(config, log, stop.clone(), ready));
        let address = tokio::time::timeout(DEADLINE, listening).await.expect("it answers in time").unwrap();
        Self { dir, address, stop, ended }
    }

    fn config(dir: &Path, database: &Path) -> CoreConfig {
        CoreConfig {
            data_dir: dir.to_owned(),
            listen: "127.0.0.1:0".parse().unwrap(),
            database_url: Some(format!("sqlite://{}", database.display()).into()),
            ..CoreConfig::default()
        }
    }

    /// Logs in, which is to be committed: the status of the answer.
    async fn login(&self, password: &str) -> u16 {
        let body = serde_json::json!({ "user": "admin", "password": password }).to_string();
        let head = "POST /api/v1/login HTTP/1.1\r\nHost: core\r\nContent-Type: application/json\r\nConnection: close";
        let request = format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let text = String::from_utf8_lossy(&answer);
        text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{text}"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_was_replaced_ends_and_leaves_the_swarm_to_the_other() {
    let shared = tempfile::tempdir().unwrap();
    let database = shared.path().join("swarm.db");
    let first = Core::start(&database).await;
    let password = std::fs::read_to_string(first.dir.path().join("admin-password")).unwrap();
    assert_eq!(first.login(password.trim()).await, 200);
    let second = Core::start(&database).await;
    assert_eq!(first.login(password.trim()).await, 503);
    let ended = tokio::time::timeout(DEADLINE, first.ended).await.expect("it ends in time").unwrap();
    assert!(is_deposed(&ended.unwrap_err()));
    assert_eq!(second.login(password.trim()).await, 200, "the other one was not deposed in turn");
    second.stop.cancel();
    tokio::time::timeout(DEADLINE, second.ended).await.expect("it stops in time").unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_core_that_is_started_from_a_copy_knows_what_the_first_one_knew() {
    let shared = tempfile::tempdir().unwrap();
    let [database, copy] = ["swarm.db", "copy.db"].map(|name| shared.path().join(name));
    let first = Core::start(&database).await;
    let password = std::fs::read_to_string(first.dir.path().join("admin-password")).unwrap();
    assert_eq!(first.login(password.trim()).await, 200);
    let (from, to) = (database.display().to_string(), copy.clone());
    blocking::run(move || crate::store::backup(&from.as_str().into(), &to)).await.unwrap();
    let second = Core::start(&copy).await;
    assert_eq!(second.login(password.trim()).await, 200, "it has the accounts");
    assert_eq!(first.login(password.trim()).await, 200, "the first one goes on undisturbed");
    for core in [first, second] {
        core.stop.cancel();
        tokio::time::timeout(DEADLINE, core.ended).await.expect("it stops in time").unwrap().unwrap();
    }
}

/// Whether anything still holds the blobs in `dir`: whoever does has a directory for uploads there.
fn blobs_are_held(dir: &Path) -> bool {
    std::fs::read_dir(dir.join("blobs/tmp")).unwrap().next().is_some()
}

#[tokio::test]
async fn a_start_that_fails_half_way_has_ended_before_the_next_one() {
    let dir = tempfile::tempdir().unwrap();
    let config =
        CoreConfig { data_dir: dir.path().to_owned(), listen: "127.0.0.1:0".parse().unwrap(), ..CoreConfig::default() };
    let start = async |stop: CancellationToken| {
        let (_, log) = crate::logger::scoped(&LoggerConfig::default()).unwrap();
        let (bound, listening) = oneshot::channel();
        let running = async {
            let ended = term(config.clone(), log, stop.clone(), History::default(), bound).await;
            // At once, before anything else can run.
            (ended, blobs_are_held(dir.path()))
        };
        let stopping = async {
            let listens = listening.await.is_ok();
            stop.cancel();
            listens
        };
        tokio::time::timeout(DEADLINE, async { tokio::join!(running, stopping) }).await.expect("it ends in time")
    };
    let ((ended, _), listened) = start(CancellationToken::new()).await;
    assert!(listened && ended.is_ok());
    let change = |sql: &str| {
        let mut database = SqliteConnection::establish(&dir.path().join("swarm.db").display().to_string()).unwrap();
        diesel::sql_query(sql).execute(&mut database).unwrap();
    };
    change("CREATE TRIGGER refuse BEFORE UPDATE ON owner_groups BEGIN SELECT RAISE(ABORT, 'by a fault'); END");
    let ((ended, held), listened) = start(CancellationToken::new()).await;
    assert!(!held, "its log, or anything else");
    let failure = ended.unwrap_err().to_string();
    assert!(!listened && failure.contains("by a fault"), "{failure}");
    change("DROP TRIGGER refuse");
    let ((ended, _), listened) = start(CancellationToken::new()).await;
    assert!(listened && ended.is_ok());
}

#[tokio::test]
async fn a_stop_does_not_wait_for_a_database_that_does_not_open() {
    let [dir, shared] = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let config = Core::config(dir.path(), &shared.path().join("swarm.db"));
    // Whoever opens a store holds its directory meanwhile.
    let folder = std::fs::File::open(shared.path()).unwrap();
    folder.lock().unwrap();
    let (_, log) = crate::logger::scoped(&LoggerConfig::default()).unwrap();
    let (stop, (ready, _listening)) = (CancellationToken::new(), oneshot::channel());
    let core = tokio::spawn(run(config, log, stop.clone(), ready));
    eventually("it opens something", async || dir.path().join("blobs").exists()).await;
    stop.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(10), core).await;
    folder.unlock().unwrap();
    ended.expect("it ends in time").unwrap().unwrap();
}
