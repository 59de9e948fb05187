#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "a test may panic, and says what it skips"
)]

use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use genops_evidence::{Log, Options, Verify};

use super::*;

/// Appends `count` records to the log in `folder`, and publishes them.
fn grow(folder: &Path, count: u64) {
    let options = Options { segment_bytes: 1 << 20, ..Options::new("example.com/ship") };
    let (mut log, _) = Log::open(folder, options).unwrap();
    log.keep(b"what a record names").unwrap();
    for _ in 0..count {
        let text = format!("{{\"seq\":{},\"text\":\"{}\"}}", log.next_index(), "z".repeat(90));
        log.append(text.as_bytes()).unwrap();
    }
    log.close().unwrap();
}

/// Returns the number of records held by a copy; the copy has to verify.
#[track_caller]
fn verified(copy: &Path) -> u64 {
    let each = &mut |_, _: &[u8]| {};
    let report = Verify { directory: copy, key: None, each, progress: &mut |_, _| {} }.run();
    assert_eq!(report.problems, [], "{}", copy.display());
    assert!(report.shipped);
    report.records
}

/// A shipping thread, and the place of its state.
struct Shipping {
    shipper: Shipper,
    metrics: Arc<Metrics>,
}

impl Shipping {
    fn start(log: &Path, state: &Path, ship: &Ship) -> Self {
        let metrics = Arc::default();
        let shipper = Shipper::start(log, state, ship.clone(), &metrics).unwrap();
        Self { shipper, metrics }
    }

    fn wait_for(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_mins(1);
        while !done(self) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.shipper.news());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn wait_for_news(&self) -> News {
        let mut news = None;
        self.wait_for("news", |it| {
            news = it.shipper.news();
            news.is_some()
        });
        news.unwrap()
    }
}

fn directory(to: &Path) -> Ship {
    Ship {
        to: Destination::Directory(to.to_owned()),
        endpoint: None,
        region: None,
        credentials_file: None,
        every: Duration::from_millis(50),
    }
}

fn head(copy: &Path, size: u64) -> bool {
    copy.join(files::head(size)).exists()
}

#[test]
fn a_copy_in_a_directory_verifies_and_goes_on_where_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let [log, copy, state] = ["log", "copy", "state/shipped.json"].map(|it| folder.path().join(it));
    grow(&log, 1_300);
    let ship = directory(&copy);
    let shipping = Shipping::start(&log, &state, &ship);
    shipping.wait_for("the first head", |_| head(&copy, 1_300));
    assert_eq!(verified(&copy), 1_300);
    assert_eq!(shipping.shipper.shipped(), 1_280);
    shipping.shipper.finish();
    grow(&log, 700);
    let shipping = Shipping::start(&log, &state, &ship);
    shipping.wait_for("the second head", |_| head(&copy, 2_000));
    // 2 bundles and tiles, the rest of the log, its head: no file from before.
    let objects = shipping.metrics.shipped_objects.get();
    assert!(objects < 12, "{objects} objects were created");
    shipping.shipper.finish();
    assert_eq!(verified(&copy), 2_000);
    // Without its state file, the thread compares, and creates no object.
    std::fs::remove_file(&state).unwrap();
    let shipping = Shipping::start(&log, &state, &ship);
    shipping.wait_for("a look at everything", |_| state.exists());
    assert_eq!(shipping.metrics.shipped_objects.get(), 0);
    shipping.shipper.finish();
}

#[test]
fn every_damage_to_a_copy_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let [log, copy, state] = ["log", "copy", "state.json"].map(|it| folder.path().join(it));
    for (records, size) in [(300, 300), (760, 1_060)] {
        grow(&log, records);
        let shipping = Shipping::start(&log, &state, &directory(&copy));
        shipping.wait_for("a head", |_| head(&copy, size));
        shipping.shipper.finish();
    }
    assert_eq!(verified(&copy), 1_060);
    let mut names = Vec::new();
    let mut open = vec![copy.clone()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { open.push(path) } else { names.push(path) }
        }
    }
    let broken = || {
        let each = &mut |_, _: &[u8]| {};
        let report = Verify { directory: &copy, key: None, each, progress: &mut |_, _| {} }.run();
        report.problem_count > 0
    };
    // An older head may be withheld with its incomplete tiles, and so may attachments named by no
    // record.
    let spare = |path: &Path| {
        path.ends_with(files::head(300)) || path.parent().is_some_and(|it| it.ends_with("blob"))
    };
    for path in names {
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(broken() || spare(&path), "{} removed", path.display());
        for at in [0, bytes.len() / 2, bytes.len() - 1] {
            let mut flipped = bytes.clone();
            flipped[at] ^= 2;
            std::fs::write(&path, flipped).unwrap();
            assert!(broken(), "{} flipped at {at}", path.display());
        }
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
        assert!(broken(), "{} cut", path.display());
        std::fs::write(&path, &bytes).unwrap();
    }
    assert_eq!(verified(&copy), 1_060);
}

#[test]
fn what_is_there_and_is_something_else_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let [log, copy, state] = ["log", "copy", "state.json"].map(|it| folder.path().join(it));
    grow(&log, 600);
    std::fs::create_dir_all(copy.join("tile/0")).unwrap();
    std::fs::write(copy.join("tile/0/001"), "somebody else's").unwrap();
    let shipping = Shipping::start(&log, &state, &directory(&copy));
    let news = shipping.wait_for_news();
    let News::Refused(why) = &news else { panic!("{news:?}") };
    assert!(why.contains("`tile/0/001` is there already"), "{why}");
    assert_eq!(std::fs::read(copy.join("tile/0/001")).unwrap(), b"somebody else's");
    shipping.shipper.finish();
}

/// A real S3 server, in a process of its own.
struct Server {
    child: Child,
    root: PathBuf,
}

impl Server {
    /// `None`: set-up has not installed the server.
    fn start(root: &Path, address: SocketAddr) -> Option<Self> {
        let own = concat!(env!("CARGO_MANIFEST_DIR"), "/../.cache/venv");
        let venv = std::env::var_os("GENOPS_VENV").map_or_else(|| own.into(), PathBuf::from);
        let program = venv.join("bin/localbucket");
        if !program.exists() {
            println!("skipped: no {}; `cargo xtask test` installs it", program.display());
            return None;
        }
        std::fs::create_dir_all(root.join("evidence")).unwrap();
        let child = Command::new(program)
            .args(["--port", &address.port().to_string()])
            .arg(root)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "the server does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Self { child, root: root.to_owned() })
    }

    fn ship(&self, endpoint: SocketAddr) -> Ship {
        let credentials = self.root.join("credentials");
        std::fs::write(&credentials, "access_key_id: genops\nsecret_access_key: hunter2\n")
            .unwrap();
        Ship {
            to: Destination::S3 { bucket: "evidence".to_owned(), prefix: "host/a".to_owned() },
            endpoint: Some(format!("http://{endpoint}")),
            region: Some("eu-central-1".to_owned()),
            credentials_file: Some(credentials),
            every: Duration::from_millis(100),
        }
    }

    fn copy(&self) -> PathBuf {
        self.root.join("evidence/host/a")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.child.kill().unwrap_or_default();
        self.child.wait().map(|_| ()).unwrap_or_default();
    }
}

fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

#[test]
fn a_server_that_is_down_for_a_while_gets_everything_once() {
    let folder = tempfile::tempdir().unwrap();
    let [log, root, state] = ["log", "s3", "state.json"].map(|it| folder.path().join(it));
    let address = free_address();
    let Some(server) = Server::start(&root, address) else { return };
    let ship = server.ship(address);
    grow(&log, 1_100);
    let shipping = Shipping::start(&log, &state, &ship);
    shipping.wait_for("the first head", |_| head(&server.copy(), 1_100));
    assert_eq!(verified(&server.copy()), 1_100);
    let copy = server.copy();
    drop(server);
    grow(&log, 900);
    let news = shipping.wait_for_news();
    assert!(matches!(news, News::Failed(_)), "{news:?}");
    assert!(shipping.metrics.ship_failures.get() >= 3);
    let server = Server::start(&root, address).unwrap();
    shipping.wait_for("the second head", |_| head(&copy, 2_000));
    assert_eq!(shipping.wait_for_news(), News::Resumed);
    assert_eq!(verified(&copy), 2_000);
    shipping.shipper.finish();
    // Another history under the same name is refused, and the existing files stay.
    let there = std::fs::read(copy.join("tile/entries/000")).unwrap();
    let other = folder.path().join("other");
    grow(&other, 300);
    let shipping = Shipping::start(&other, &folder.path().join("other.json"), &ship);
    let news = shipping.wait_for_news();
    assert!(matches!(news, News::Refused(_)), "{news:?}");
    assert_eq!(std::fs::read(copy.join("tile/entries/000")).unwrap(), there);
    shipping.shipper.finish();
    drop(server);
}
