//! The I/O thread: connect, compare, send one flight, land it, and again.
//!
//! It is generic over the connection, so that lost, late and cut replies are tested without a
//! server. It never touches Python.

use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use crate::batcher::{Batch, Core};
use crate::outcome::Outcome;
use crate::resp::Value;
use crate::script::Kind;
use crate::wake::{Interest, wait};

/// Pauses between connection attempts: forty a second at first, two a second for a long absence.
const PAUSE_FIRST: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// How late an expired item may be told so while a flight or a connection is awaited.
pub const TICK: Duration = Duration::from_millis(20);
/// How long the thread rests when nothing happens; it is woken by work and by a closed socket.
const REST: Duration = Duration::from_secs(10);

/// The connection is gone, or not to be trusted any more, for this reason.
#[derive(Debug)]
pub struct Lost(pub String);

/// One connection to one server, whose run id was read before anything else.
pub trait Link {
    fn run_id(&self) -> &str;
    /// What to wait on for a close by the peer; negative for nothing.
    fn fd(&self) -> RawFd;
    /// Send `request` and read `count` replies. Calls `tick` about every `TICK`.
    fn exchange(
        &mut self,
        request: &[u8],
        count: usize,
        timeout: Duration,
        tick: &mut dyn FnMut(),
    ) -> Result<Vec<Value>, Lost>;
}

pub trait Dial {
    type Link: Link;
    fn dial(&mut self, tick: &mut dyn FnMut()) -> Result<Self::Link, Lost>;
}

/// The scripts' digests on this very connection: loading one says that its server was compared.
#[derive(Default)]
struct Loaded {
    claim: Option<String>,
    crowd: Option<String>,
}

/// Run until closed. A panic inside ends the batcher and answers everybody, and goes no further.
pub fn run<D: Dial>(core: &Core, dial: D) {
    let mut flight = Vec::new();
    let outcome = catch_unwind(AssertUnwindSafe(|| serve(core, dial, &mut flight)));
    core.end(&mut flight, outcome.is_err());
}

fn serve<D: Dial>(core: &Core, mut dial: D, flight: &mut Vec<Batch>) {
    let mut pause = PAUSE_FIRST;
    while !core.is_closing() {
        match dial.dial(&mut || core.expire()) {
            Ok(link) => {
                pause = PAUSE_FIRST;
                core.connected(link.run_id());
                let why = use_link(core, link, flight);
                core.disconnected(&why.0);
            }
            Err(why) => {
                core.disconnected(&why.0);
                rest_before_dialling(core, pause);
                pause = (2 * pause).min(PAUSE_MAX);
            }
        }
    }
}

fn rest_before_dialling(core: &Core, pause: Duration) {
    let mut left = pause;
    while !left.is_zero() && !core.is_closing() {
        core.expire();
        let step = left.min(TICK);
        std::thread::sleep(step);
        left -= step;
    }
}

/// Serve flights until the connection is lost or the batcher closes.
fn use_link(core: &Core, mut link: impl Link, flight: &mut Vec<Batch>) -> Lost {
    let mut loaded = Loaded::default();
    let mut request = Vec::new();
    loop {
        let rest = if core.park() { REST } else { Duration::ZERO };
        let watched = [core.work.fd(), link.fd()].map(|fd| Interest { fd, writable: false });
        let [woken, closed] = wait(watched, rest);
        if woken {
            core.work.clear();
        }
        if closed {
            // Nothing is under way, so there is nothing to read but the end.
            return Lost("the server closed the connection".to_owned());
        }
        if core.is_closing() {
            return Lost("closed".to_owned());
        }
        core.take(flight);
        if flight.is_empty() {
            continue;
        }
        if let Err(why) = fly(core, &mut link, &mut loaded, flight, &mut request) {
            return why;
        }
    }
}

fn fly(
    core: &Core,
    link: &mut impl Link,
    loaded: &mut Loaded,
    flight: &mut Vec<Batch>,
    request: &mut Vec<u8>,
) -> Result<(), Lost> {
    request.clear();
    for batch in flight.iter() {
        match digest(core, link, loaded, batch.kind) {
            Ok(sha) => {
                let items = batch.items.iter().map(|item| &*item.bytes);
                batch.kind.put_call(request, sha, &batch.head, items);
            }
            Err(why) => {
                core.fail(flight, Outcome::Unavailable);
                return Err(why);
            }
        }
    }
    let sent = link.exchange(request, flight.len(), core.limits.flight_timeout, &mut || {
        core.expire();
    });
    match sent {
        Ok(replies) => {
            let is_usable = core.land(flight, replies);
            let why = || Lost("the server's reply ended the connection".to_owned());
            is_usable.then_some(()).ok_or_else(why)
        }
        Err(why) => {
            core.fail(flight, Outcome::Unknown);
            Err(why)
        }
    }
}

/// Load a script once a connection, and only for items whose slot matches this server.
fn digest<'a>(
    core: &Core,
    link: &mut impl Link,
    loaded: &'a mut Loaded,
    kind: Kind,
) -> Result<&'a str, Lost> {
    let place = match kind {
        Kind::Lease => &mut loaded.claim,
        Kind::Crowd => &mut loaded.crowd,
    };
    if place.is_none() {
        let mut request = Vec::new();
        crate::resp::put_array(&mut request, 3);
        for part in ["SCRIPT", "LOAD", kind.source()] {
            crate::resp::put_bulk(&mut request, part.as_bytes());
        }
        let timeout = core.limits.flight_timeout;
        let mut replies = link.exchange(&request, 1, timeout, &mut || core.expire())?;
        *place = match replies.pop() {
            Some(Value::Bulk(sha)) => String::from_utf8(sha).ok(),
            other => return Err(Lost(format!("SCRIPT LOAD was answered with {other:?}"))),
        };
    }
    place.as_deref().ok_or_else(|| Lost("SCRIPT LOAD gave no digest".to_owned()))
}
