//! How much of what the server can do the batcher gets: the same claims, packed by hand or through it.
//!
//! `packed SOCKET batcher|sender BATCH DEPTH SECONDS` arms a lease of its own on a Valkey that
//! listens on a unix socket, claims with a fresh key and customer each, and drops the lease.
//! `sender` writes DEPTH prebuilt script calls of BATCH claims at once and reads only whether they
//! won, as a benchmark of the server does. `batcher` gives claims to the batcher one by one, as an
//! event loop would, with BATCH × DEPTH of them under way. Prints one JSON line.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use _native::batcher::{Core, Item, Limits};
use _native::connection::{Address, Server};
use _native::flight;
use _native::marks::Marks;
use _native::outcome::Outcome;
use _native::script::{CLAIM_LUA, Kind, LEASE_LUA};
use vauchflow_generators::cpu_used;
use vauchflow_generators::ready::Ready;

/// One fixed lease: the generator deletes its keys before and after.
const LEASE: &str = "00000000-0000-4000-8000-00000000be9c";
const LEASE_BYTES: [u8; 16] = [0, 0, 0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0xbe, 0x9c];
/// More than any run gives out, and within the 53 bits of a number in Lua.
const SIZE: &str = "1000000000000";
const FINGERPRINT: &str = "0123456789abcdef0123456789abcdef";
/// As long as a claim's own: two amounts and what the caller sent.
const PAYLOAD: &[u8] = b"[8999,4500,null,null]";
const PATIENCE: Duration = Duration::from_secs(5);

struct Client(UnixStream);

impl Client {
    /// Send one command and read whatever comes back at once; errors are the caller's to see.
    fn ask(&mut self, args: &[&[u8]]) -> io::Result<String> {
        let mut out = format!("*{}\r\n", args.len()).into_bytes();
        for arg in args {
            out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
            out.extend_from_slice(arg);
            out.extend_from_slice(b"\r\n");
        }
        self.0.write_all(&out)?;
        let mut reply = vec![0; 4_096];
        let count = self.0.read(&mut reply)?;
        Ok(String::from_utf8_lossy(&reply[..count]).into_owned())
    }

    fn act(&mut self, args: &[&str]) -> io::Result<()> {
        let keys = ["s", "k", "c", "x"].map(|suffix| format!("vf:{{{LEASE}}}:{suffix}"));
        let mut all: Vec<&[u8]> = vec![b"EVAL", LEASE_LUA.as_bytes(), b"4"];
        all.extend(keys.iter().map(String::as_bytes));
        all.push(LEASE.as_bytes());
        all.extend(args.iter().map(|arg| arg.as_bytes()));
        match self.ask(&all)?.as_str() {
            ":1\r\n" => Ok(()),
            reply => Err(io::Error::other(format!("{}: {reply}", args[0]))),
        }
    }

    fn drop_lease(&mut self) -> io::Result<String> {
        let keys = ["s", "k", "c", "x"].map(|suffix| format!("vf:{{{LEASE}}}:{suffix}"));
        let mut all: Vec<&[u8]> = vec![b"UNLINK"];
        all.extend(keys.iter().map(String::as_bytes));
        self.ask(&all)
    }

    fn arm(&mut self) -> io::Result<()> {
        self.drop_lease()?;
        let facts = [
            "issued",
            "0",
            "size",
            SIZE,
            "accounted",
            "0",
            "backlog_max",
            SIZE,
            "start_ms",
            "0",
            "end_ms",
            "0",
            "customer_limit",
            "1",
        ];
        self.act(&[["begin", "bench"].as_slice(), facts.as_slice()].concat())?;
        self.act(&["ready", "bench", "open"])
    }
}

fn item(number: u64) -> Box<[u8]> {
    let (key, customer) = (
        format!("bench-{number:012}"),
        format!("cus_bench-{number:012}"),
    );
    Kind::Lease.item(&key, FINGERPRINT, &customer, PAYLOAD)
}

/// Return how many claims were won within the time, and how long it took.
fn send(
    client: &mut Client,
    batch: u64,
    depth: u64,
    time: Duration,
) -> io::Result<(u64, Duration)> {
    let loaded = client.ask(&[b"SCRIPT", b"LOAD", CLAIM_LUA.as_bytes()])?;
    let sha = loaded.lines().nth(1).unwrap_or_default().to_owned();
    let head = Kind::Lease.head(LEASE, LEASE);
    let mut buffer = vec![0; 1 << 20];
    let (mut won, mut calls) = (0, Vec::new());
    let started = Instant::now();
    while started.elapsed() < time {
        calls.clear();
        for call in 0..depth {
            let first = won + call * batch;
            let items: Vec<_> = (first..first + batch).map(item).collect();
            Kind::Lease.put_call(&mut calls, &sha, &head, items.iter().map(AsRef::as_ref));
        }
        client.0.write_all(&calls)?;
        // A reply is its own line, then one for the time, the size and each claim: a number if won.
        let mut left = depth * (batch + 3);
        while left > 0 {
            let count = client.0.read(&mut buffer)?;
            if count == 0 || buffer[..count].contains(&b'-') {
                return Err(io::Error::other("a claim was not won"));
            }
            left -= buffer[..count].split(|byte| *byte == b'\n').count() as u64 - 1;
        }
        won += depth * batch;
    }
    Ok((won, started.elapsed()))
}

/// The same through the batcher: this thread is the event loop, and the batcher has its own.
fn batch(socket: &str, batch: u64, depth: u64, time: Duration) -> io::Result<(u64, u64, Duration)> {
    let limits = Limits {
        batch_max: batch as usize,
        queue_max: (batch * depth) as usize,
        flight_timeout: PATIENCE,
    };
    let core = Arc::new(Core::new(limits, Marks::open(None)?)?);
    let server = Server {
        address: Address::Unix(socket.to_owned()),
        username: None,
        password: None,
        db: 0,
    };
    let thread = std::thread::spawn({
        let core = Arc::clone(&core);
        move || flight::run(&core, server)
    });
    let deadline = Instant::now() + PATIENCE;
    let run_id = loop {
        if let Some(run_id) = core.status().run_id {
            break run_id;
        }
        if Instant::now() > deadline {
            return Err(io::Error::other("the batcher does not connect"));
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let slot = core
        .open_lease(LEASE, LEASE_BYTES, &run_id)
        .ok_or_else(|| io::Error::other("no room for a mark"))?;
    let mut ready = Ready::new()?;
    ready.watch(core.answers.fd(), 0)?;
    let (mut next, mut won) = (0, 0);
    let mut submit = |count: u64| -> io::Result<()> {
        for number in next..next + count {
            let item = Item {
                ticket: number,
                deadline: Instant::now() + PATIENCE,
                bytes: item(number),
            };
            core.submit(slot, item)
                .map_err(|outcome| io::Error::other(format!("{outcome:?}")))?;
        }
        next += count;
        Ok(())
    };
    let started = Instant::now();
    // What is in the air has left the queue, so that one batch more is under way.
    submit(batch * depth)?;
    while started.elapsed() < time {
        ready.wait(PATIENCE)?;
        let answers = core.drain();
        if answers
            .iter()
            .any(|(_, answer)| answer.outcome != Outcome::Won)
        {
            return Err(io::Error::other("a claim was not won"));
        }
        won += answers.len() as u64;
        submit(answers.len() as u64)?;
    }
    let elapsed = started.elapsed();
    let calls = core.status().batches;
    core.close();
    core.work.signal();
    thread
        .join()
        .map_err(|_| io::Error::other("the batcher died"))?;
    Ok((won, calls, elapsed))
}

#[allow(clippy::cast_precision_loss)]
fn main() -> io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [socket, mode, size, depth, seconds] = args.as_slice() else {
        return Err(io::Error::other(
            "SOCKET batcher|sender BATCH DEPTH SECONDS",
        ));
    };
    let number = |text: &String| text.parse::<f64>().map_err(io::Error::other);
    let (size, depth) = (number(size)? as u64, number(depth)? as u64);
    let time = Duration::from_secs_f64(number(seconds)?);
    let mut client = Client(UnixStream::connect(socket)?);
    client.arm()?;
    let (won, calls, elapsed) = if mode == "batcher" {
        batch(socket, size, depth, time)?
    } else {
        let (won, elapsed) = send(&mut client, size, depth, time)?;
        (won, won / size, elapsed)
    };
    client.drop_lease()?;
    let cpu_us = cpu_used().as_secs_f64() * 1e6 / won as f64;
    println!(
        "{{\"won\":{won},\"calls\":{calls},\"seconds\":{:.3},\"cpu_us\":{cpu_us:.3}}}",
        elapsed.as_secs_f64()
    );
    Ok(())
}
