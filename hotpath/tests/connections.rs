//! The socket against a peer that cuts, floods, hangs up and stays silent.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use _native::connection::{Address, Connection, Server};
use _native::flight::{Dial, Link};
use _native::resp::Value;

const INFO: &[u8] = b"$30\r\n# Server\r\nrun_id:abc\r\nos:Linux\r\n";
const TIMEOUT: Duration = Duration::from_millis(300);

fn nothing() {}

struct Peer {
    path: PathBuf,
    thread: Option<JoinHandle<Vec<u8>>>,
}

impl Peer {
    /// Serve one connection: read a little, then do what the test says; returns all that was read.
    fn serve(name: &str, act: impl FnOnce(&mut UnixStream, &mut Vec<u8>) + Send + 'static) -> Self {
        let path = std::env::temp_dir().join(format!("vf-peer-{}-{name}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut seen = Vec::new();
            act(&mut stream, &mut seen);
            seen
        });
        Self { path, thread: Some(thread) }
    }

    fn dial(&self, password: Option<&str>, db: u32) -> Result<Connection, String> {
        let mut server = Server {
            address: Address::Unix(self.path.to_str().unwrap().to_owned()),
            username: None,
            password: password.map(str::to_owned),
            db,
        };
        server.dial(&mut nothing).map_err(|lost| lost.0)
    }

    fn seen(mut self) -> String {
        let seen = self.thread.take().unwrap().join().unwrap();
        std::fs::remove_file(&self.path).unwrap();
        String::from_utf8(seen).unwrap()
    }
}

fn hear(stream: &mut UnixStream, seen: &mut Vec<u8>) {
    let mut buffer = [0; 4_096];
    let count = stream.read(&mut buffer).unwrap();
    seen.extend_from_slice(&buffer[..count]);
}

fn ping(connection: &mut Connection, count: usize) -> Result<Vec<Value>, String> {
    connection
        .exchange(b"*1\r\n$4\r\nPING\r\n", count, TIMEOUT, &mut nothing)
        .map_err(|lost| lost.0)
}

#[test]
fn a_connection_authenticates_selects_and_learns_the_run_id() {
    let peer = Peer::serve("hello", |stream, seen| {
        for reply in [b"+OK\r\n", b"+OK\r\n", INFO] {
            hear(stream, seen);
            stream.write_all(reply).unwrap();
        }
    });
    assert_eq!(peer.dial(Some("secret"), 3).unwrap().run_id(), "abc");
    let expected = "*2\r\n$4\r\nAUTH\r\n$6\r\nsecret\r\n*2\r\n$6\r\nSELECT\r\n$1\r\n3\r\n\
                    *2\r\n$4\r\nINFO\r\n$6\r\nserver\r\n";
    assert_eq!(peer.seen(), expected);
}

#[test]
fn a_refused_password_is_said_without_naming_it() {
    let peer = Peer::serve("password", |stream, seen| {
        hear(stream, seen);
        stream.write_all(b"-WRONGPASS invalid username-password pair\r\n").unwrap();
    });
    let why = peer.dial(Some("secret"), 0).err().unwrap();
    assert_eq!(why, "AUTH was refused: WRONGPASS invalid username-password pair");
    peer.seen();
}

#[test]
fn replies_cut_into_single_bytes_are_put_together() {
    let peer = Peer::serve("cut", |stream, seen| {
        hear(stream, seen);
        stream.write_all(INFO).unwrap();
        hear(stream, seen);
        for byte in b"*2\r\n:1\r\n$4\r\nR1|2\r\n:7\r\n" {
            stream.write_all(&[*byte]).unwrap();
        }
    });
    let mut connection = peer.dial(None, 0).unwrap();
    let first = Value::Array(vec![Value::Int(1), Value::Bulk(b"R1|2".to_vec())]);
    assert_eq!(ping(&mut connection, 2), Ok(vec![first, Value::Int(7)]));
    peer.seen();
}

#[test]
fn a_reply_too_many_nonsense_and_a_hang_up_end_the_connection() {
    let endings: [(&str, &[u8], &str); 3] = [
        ("many", b":1\r\n:2\r\n", "a reply too many"),
        ("nonsense", b"hello\r\n", "the reply is no RESP2"),
        ("hangup", b"*2\r\n:1\r\n", "the server closed the connection"),
    ];
    for (name, bytes, expected) in endings {
        let peer = Peer::serve(name, move |stream, seen| {
            hear(stream, seen);
            stream.write_all(INFO).unwrap();
            hear(stream, seen);
            stream.write_all(bytes).unwrap();
        });
        let mut connection = peer.dial(None, 0).unwrap();
        assert_eq!(ping(&mut connection, 1), Err(expected.to_owned()));
        peer.seen();
    }
}

#[test]
fn a_silent_server_costs_the_time_limit_and_ticks_meanwhile() {
    let peer = Peer::serve("silent", |stream, seen| {
        hear(stream, seen);
        stream.write_all(INFO).unwrap();
        hear(stream, seen);
        let _ = stream.read(&mut [0; 8]);
    });
    let mut connection = peer.dial(None, 0).unwrap();
    let (started, mut ticks) = (Instant::now(), 0);
    let lost = connection.exchange(b"*1\r\n$4\r\nPING\r\n", 1, TIMEOUT, &mut || ticks += 1);
    assert_eq!(lost.err().unwrap().0, "no answer within 300 ms");
    assert!((TIMEOUT..4 * TIMEOUT).contains(&started.elapsed()));
    assert!(ticks >= 3);
    drop(connection);
    peer.seen();
}

#[test]
fn a_request_larger_than_the_socket_takes_is_sent_while_replies_come() {
    let peer = Peer::serve("large", |stream, seen| {
        hear(stream, seen);
        stream.write_all(INFO).unwrap();
        let mut left = 4_000_000;
        let mut buffer = vec![0; 100_000];
        while left > 0 {
            left -= stream.read(&mut buffer).unwrap().min(left);
        }
        stream.write_all(b":1\r\n").unwrap();
    });
    let mut connection = peer.dial(None, 0).unwrap();
    let request = vec![b'x'; 4_000_000];
    let replies = connection.exchange(&request, 1, Duration::from_secs(5), &mut nothing);
    assert_eq!(replies.map_err(|lost| lost.0), Ok(vec![Value::Int(1)]));
    peer.seen();
}

#[test]
fn addresses_have_two_forms() {
    assert_eq!(Address::parse("unix:/a/b"), Some(Address::Unix("/a/b".into())));
    assert_eq!(Address::parse("[::1]:6379"), Some(Address::Tcp("[::1]:6379".into())));
    for text in ["", "unix:", "host", "host:", ":6379", "host:99999", "redis://h:1"] {
        assert_eq!(Address::parse(text), None, "{text}");
    }
}
