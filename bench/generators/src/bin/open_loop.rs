//! Claims that arrive as strangers do: by chance, at a rate, whether or not the server keeps up.
//!
//! `open_loop HOST:PORT PATH RATE SECONDS CONNECTIONS KEYED SEED`, the API key on standard input.
//! Each latency counts from the instant a claim was due, so a claim that waited for a free
//! connection has waited. Prints one JSON line.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vauchflow_generators::chance::Chance;
use vauchflow_generators::histogram::Histogram;
use vauchflow_generators::http::{self, Requests};
use vauchflow_generators::{cpu_used, ready::Ready};

/// After the last arrival: a server that answers at all has answered by then.
const PATIENCE: Duration = Duration::from_secs(10);
/// An answer and its headers are below this; a longer one is read in several goes.
const READ_BYTES: usize = 16_384;

/// Answers are told apart by what they mean to a claim.
const KINDS: [(&str, u16); 4] = [
    ("ok", 200),
    ("conflict", 409),
    ("away", 503),
    ("unknown", 504),
];

struct Connection {
    stream: TcpStream,
    received: Vec<u8>,
    /// When the claim that is under way was due.
    due: Option<Instant>,
}

struct Loop {
    host: String,
    requests: Requests,
    ready: Ready,
    connections: Vec<Connection>,
    /// Opened as they are needed; more than any server's queue holds, or it is never full.
    connections_max: usize,
    idle: Vec<usize>,
    /// Due, and no connection was free.
    waiting: VecDeque<(u64, Instant)>,
    latencies: [Histogram; KINDS.len()],
    others: u64,
    lost: u64,
    /// How late claims were sent, whatever the reason.
    lateness: Histogram,
    buffer: Vec<u8>,
}

impl Loop {
    fn connect(&mut self) -> io::Result<()> {
        let stream = TcpStream::connect(&self.host)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let at = self.connections.len();
        self.ready.watch(stream.as_raw_fd(), at as u64)?;
        self.connections.push(Connection {
            stream,
            received: Vec::new(),
            due: None,
        });
        self.idle.push(at);
        Ok(())
    }

    fn send(&mut self, number: u64, due: Instant) {
        if self.idle.is_empty() && self.connections.len() < self.connections_max {
            // Refused: the claim waits for a connection that is there.
            let _ = self.connect();
        }
        let Some(at) = self.idle.pop() else {
            self.waiting.push_back((number, due));
            return;
        };
        self.lateness.add(micros(due.elapsed()));
        let bytes = self.requests.claim(number);
        let connection = &mut self.connections[at];
        connection.due = Some(due);
        // A claim is a few hundred bytes into an empty socket buffer: whole, or the peer is gone.
        if connection
            .stream
            .write(&bytes)
            .is_ok_and(|written| written == bytes.len())
        {
            return;
        }
        self.drop_connection(at);
    }

    /// The peer is gone; its claim counts as lost and another connection may take its place.
    fn drop_connection(&mut self, at: usize) {
        if self.connections[at].due.take().is_some() {
            self.lost += 1;
        }
        let _ = self.connections[at]
            .stream
            .shutdown(std::net::Shutdown::Both);
        self.idle.retain(|idle| *idle != at);
        // A refused connection leaves one fewer, and its claims wait; the answer tells.
        let _ = self.connect();
    }

    fn receive(&mut self, at: usize) {
        let connection = &mut self.connections[at];
        match connection.stream.read(&mut self.buffer) {
            Ok(0) => return self.drop_connection(at),
            Ok(count) => connection.received.extend_from_slice(&self.buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
            Err(_) => return self.drop_connection(at),
        }
        let Some(answer) = http::read(&connection.received) else {
            return;
        };
        connection.received.drain(..answer.length);
        let Some(due) = connection.due.take() else {
            return;
        };
        let latency = micros(due.elapsed());
        match KINDS
            .iter()
            .position(|(_, status)| *status == answer.status)
        {
            Some(kind) => self.latencies[kind].add(latency),
            None => self.others += 1,
        }
        self.idle.push(at);
        if let Some((number, due)) = self.waiting.pop_front() {
            self.send(number, due);
        }
    }

    fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || self.connections.iter().any(|one| one.due.is_some())
    }
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros() as u64
}

fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [host, path, rate, seconds, connections, keyed, seed] = args.as_slice() else {
        return Err(io::Error::other(
            "HOST:PORT PATH RATE SECONDS CONNECTIONS KEYED SEED",
        ));
    };
    let number = |text: &String| text.parse::<f64>().map_err(io::Error::other);
    let (per_s, seconds) = (number(rate)?, number(seconds)?);
    let mut token = String::new();
    io::stdin().read_line(&mut token)?;
    let requests = Requests {
        host: host.clone(),
        path: path.clone(),
        token: token.trim().to_owned(),
        seed: number(seed)? as u64,
        is_keyed: keyed == "1",
    };
    let mut chance = Chance::new(requests.seed);
    let mut running = Loop {
        host: host.clone(),
        requests,
        ready: Ready::new()?,
        connections: Vec::new(),
        connections_max: number(connections)? as usize,
        idle: Vec::new(),
        waiting: VecDeque::new(),
        latencies: Default::default(),
        others: 0,
        lost: 0,
        lateness: Histogram::default(),
        buffer: vec![0; READ_BYTES],
    };
    running.connect()?;
    let started = Instant::now();
    let end = started + Duration::from_secs_f64(seconds);
    let mut due = started;
    let mut offered = 0;
    loop {
        let now = Instant::now();
        while due <= now && due < end {
            running.send(offered, due);
            offered += 1;
            due += Duration::from_nanos(chance.gap_ns(per_s));
        }
        if due >= end && (!running.is_busy() || now > end + PATIENCE) {
            break;
        }
        let rest = if due < end {
            due.saturating_duration_since(Instant::now())
        } else {
            PATIENCE
        };
        for token in running.ready.wait(rest.min(PATIENCE))? {
            running.receive(token as usize);
        }
    }
    report(&running, offered, started, end);
    Ok(())
}

#[allow(clippy::cast_precision_loss)]
fn report(running: &Loop, offered: u64, started: Instant, end: Instant) {
    let elapsed = started.elapsed().as_secs_f64();
    let answered: u64 =
        running.latencies.iter().map(Histogram::count).sum::<u64>() + running.others;
    let mut text = format!(
        "{{\"offered\":{offered},\"answered\":{answered},\"others\":{},\"lost\":{},\
         \"unanswered\":{},\"seconds\":{:.3},\"elapsed_s\":{elapsed:.3},\"cpu_share\":{:.3},\
         \"connections\":{},\"late_p50_us\":{},\"late_p99_us\":{}",
        running.others,
        running.lost,
        offered - answered - running.lost,
        (end - started).as_secs_f64(),
        cpu_used().as_secs_f64() / elapsed,
        running.connections.len(),
        running.lateness.at(0.5),
        running.lateness.at(0.99),
    );
    for ((name, _), latency) in KINDS.iter().zip(&running.latencies) {
        let _ = write!(
            text,
            ",\"{name}\":{{\"count\":{},\"p50_us\":{},\"p90_us\":{},\"p99_us\":{},\"p999_us\":{},\
             \"max_us\":{}}}",
            latency.count(),
            latency.at(0.5),
            latency.at(0.9),
            latency.at(0.99),
            latency.at(0.999),
            latency.max()
        );
    }
    println!("{text}}}");
}
