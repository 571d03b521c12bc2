//! The listener over real sockets, before a server of a few lines.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use _native::listener::{self, Hot};
use _native::upstream::Failure;
use bytes::Bytes;
use http_body_util::Full;
use hyper::Response;
use hyper::http::request::Parts;
use tokio::sync::oneshot;

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Takes what goes to /hot; answers a body of digits with itself, leaves any other, and waits for
/// the release where it says "wait".
struct Echo {
    waiting: Mutex<Vec<oneshot::Sender<()>>>,
}

fn text(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::new(body.into())).expect("a plain answer")
}

impl Hot for Echo {
    type Taken = ();
    const BODY_BYTES_MAX: u64 = 64;

    fn take(&self, head: &Parts) -> Option<()> {
        (head.uri.path() == "/hot").then_some(())
    }

    async fn decide(self: &Arc<Self>, (): (), body: &Bytes) -> Option<Response<Full<Bytes>>> {
        if &body[..] == b"wait" {
            let (release, released) = oneshot::channel();
            self.waiting.lock().expect("no test panics in there").push(release);
            let _ = released.await;
        } else if !body.iter().all(u8::is_ascii_digit) {
            return None;
        }
        Some(text(200, body.clone()))
    }

    fn too_slow(&self) -> Response<Full<Bytes>> {
        text(400, "slow")
    }

    fn failed(&self, failure: Failure) -> Response<Full<Bytes>> {
        let status = match failure {
            Failure::NotSent => 503,
            Failure::CutOff => 400,
            Failure::Unanswered => 504,
        };
        text(status, "failed")
    }
}

struct Running {
    port: u16,
    hot: Arc<Echo>,
    socket: PathBuf,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Running {
    fn start() -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let socket =
            std::env::temp_dir().join(format!("vf-listener-{}-{number}", std::process::id()));
        let listening = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listening.local_addr().expect("it is bound").port();
        let hot = Arc::new(Echo { waiting: Mutex::default() });
        let (end, ended) = oneshot::channel();
        let (served, path) = (hot.clone(), socket.clone());
        let thread = std::thread::spawn(move || listener::run(listening, served, &path, ended));
        Self { port, hot, socket, end: Some(end), thread: Some(thread) }
    }

    /// Behind it: a server that tells what it got, one request a connection.
    fn behind(&self, answer: &'static str) -> mpsc::Receiver<String> {
        let listening = UnixListener::bind(&self.socket).expect("a free path");
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listening.incoming() {
                let mut stream = stream.expect("a connection");
                let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).unwrap_or(0) > 0 {}
                let length = head.lines().find_map(|l| l.strip_prefix("content-length: "));
                let mut body = vec![0; length.map_or(0, |l| l.parse().expect("a number"))];
                reader.read_exact(&mut body).expect("the whole body");
                let _ = tell.send(head + &String::from_utf8_lossy(&body));
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        told
    }

    fn send(&self, request: &str) -> TcpStream {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        stream.write_all(request.as_bytes()).expect("it reads");
        stream
    }

    fn ask(&self, request: &str) -> String {
        let mut answer = String::new();
        self.send(request).read_to_string(&mut answer).expect("an answer");
        answer
    }

    fn join(&mut self) {
        let thread = self.thread.take().expect("it runs");
        thread.join().expect("no panic").expect("no error");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

const OK: &str = "HTTP/1.1 202 Accepted\r\nconnection: close\r\nkeep-alive: 5\r\nx-own: 1\r\n\
                  content-length: 4\r\n\r\nback";

#[test]
fn what_is_taken_never_goes_behind() {
    let running = Running::start();
    let told = running.behind(OK);

    let answer =
        running.ask("POST /hot HTTP/1.1\r\nconnection: close\r\ncontent-length: 3\r\n\r\n123");

    assert!(
        answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n123"),
        "{answer}"
    );
    assert!(told.try_recv().is_err());
}

#[test]
fn everything_else_goes_behind_as_it_came() {
    let running = Running::start();
    let told = running.behind(OK);

    let answer = running.ask(
        "PUT /v1/A%2fB%20?q=%41+1 HTTP/1.1\r\nhost: shop.example\r\nx-request-id: r-1\r\n\
         x-vauchflow-peer: 9.9.9.9:1\r\nte: trailers\r\nx-private: 1\r\n\
         connection: close, x-private\r\ncontent-length: 5\r\n\r\nhello",
    );

    assert!(answer.starts_with("HTTP/1.1 202 Accepted\r\n"), "{answer}");
    assert!(answer.contains("x-own: 1\r\n") && answer.ends_with("\r\n\r\nback"), "{answer}");
    assert!(!answer.contains("keep-alive"), "{answer}");
    let got = told.recv().expect("it was asked");
    assert!(got.starts_with("PUT /v1/A%2fB%20?q=%41+1 HTTP/1.1\r\n"), "{got}");
    assert!(
        got.contains("host: shop.example\r\n") && got.contains("x-request-id: r-1\r\n"),
        "{got}"
    );
    assert!(got.ends_with("\r\n\r\nhello"), "{got}");
    assert!(!got.contains("9.9.9.9") && got.contains("x-vauchflow-peer: 127.0.0.1:"), "{got}");
    assert!(!got.contains("te: ") && !got.contains("x-private"), "{got}");
}

#[test]
fn what_was_taken_and_left_goes_behind_whole() {
    let running = Running::start();
    let told = running.behind(OK);

    let answer =
        running.ask("POST /hot HTTP/1.1\r\nconnection: close\r\ncontent-length: 5\r\n\r\nwords");

    assert!(answer.starts_with("HTTP/1.1 202 Accepted\r\n"), "{answer}");
    assert!(told.recv().expect("it was asked").ends_with("\r\n\r\nwords"));
}

#[test]
fn nobody_behind_and_no_answer_from_there_are_told_apart() {
    let running = Running::start();
    let request = "GET / HTTP/1.1\r\nconnection: close\r\n\r\n";

    assert!(running.ask(request).starts_with("HTTP/1.1 503 "));
    let _told = running.behind("");
    assert!(running.ask(request).starts_with("HTTP/1.1 504 "));
}

#[test]
fn a_head_request_gets_a_head() {
    let running = Running::start();
    let _told = running.behind("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\n");

    let answer = running.ask("HEAD / HTTP/1.1\r\nconnection: close\r\n\r\n");

    assert!(answer.contains("content-length: 4\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn at_the_end_what_is_under_way_is_answered_and_nobody_else_comes_in() {
    let mut running = Running::start();
    let mut waiting = running.send("POST /hot HTTP/1.1\r\ncontent-length: 4\r\n\r\nwait");
    let idle = TcpStream::connect(("127.0.0.1", running.port)).expect("it listens");
    let until = Instant::now() + Duration::from_secs(10);
    while running.hot.waiting.lock().expect("no panic").is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }

    drop(running.end.take());
    while TcpStream::connect(("127.0.0.1", running.port)).is_ok() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(TcpStream::connect(("127.0.0.1", running.port)).is_err());
    for release in running.hot.waiting.lock().expect("no panic").drain(..) {
        release.send(()).expect("it waits");
    }

    let mut answer = String::new();
    waiting.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("wait"), "{answer}");
    running.join();
    drop(idle);
}
