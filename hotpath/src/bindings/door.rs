//! The hot doors of one worker: a request whose address, key and body are plain is taken, decided
//! and answered without a Python object of its own. Everything else is left to the general way.
//!
//! What is taken here was learnt from there: the general way resolved the key and the address once,
//! and says what they mean. Every part can go stale alone and is asked again each time: the key by
//! the caller it stands for, a lease by its slot, a voucher's terms by `PostgreSQL` itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};

use super::batcher::Batcher;
use super::commits::CommitQueue;

/// Addresses and keys that are remembered: those that are busy at this moment.
const LEARNT_MAX: usize = 20_000;
/// A plain body has two references, an order id and an amount.
const BODY_BYTES_MAX: u64 = 4_096;
const BEARER: &str = "Bearer ";
const KEY_CHARS_MAX: usize = 255;
const REQUEST_ID_CHARS_MAX: usize = 128;
/// Upper bounds of the latency buckets, as `api/metrics.py` has them; the last is open.
const BUCKETS_US: [u64; 12] = [
    1_000, 2_000, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000,
    5_000_000,
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Route {
    Redeem,
    Claim,
}

enum Target {
    Claim { batcher: Py<Batcher>, slot: usize },
    Redeem { queue: Py<CommitQueue> },
}

struct Learnt {
    authorization: String,
    token: Py<PyBytes>,
    caller: Py<PyAny>,
    route: Route,
    target: Target,
}

/// What was answered since it was last asked for.
#[derive(Default, Clone)]
struct Tally {
    won: u64,
    refused: u64,
    busy: u64,
    buckets: [u64; BUCKETS_US.len() + 1],
    sum_us: u64,
}

/// What requests under way share with their door.
pub struct Shared {
    /// Waiting for a shared commit, over all queues.
    pub queued: AtomicUsize,
    pub queue_max: usize,
    pub wait: Duration,
    process: String,
    number: AtomicU64,
    win_headers: Vec<Py<PyTuple>>,
    refusal_headers: Vec<Py<PyTuple>>,
    busy_headers: Vec<Py<PyTuple>>,
    overloaded: Problem,
    late: Problem,
    tallies: Mutex<[Tally; 2]>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request that waits for its answer.
pub struct Pending {
    pub shared: Arc<Shared>,
    protocol: Py<PyAny>,
    request_id: String,
    route: Route,
    began: Instant,
}

impl Pending {
    /// Send a win. The client may be gone: what was decided stands.
    pub fn win(&self, py: Python<'_>, body: &[u8]) -> PyResult<()> {
        self.send(py, 200, &self.shared.win_headers, body)
    }

    /// Send a refusal, whose text has the request's id in one place.
    pub fn refuse(&self, py: Python<'_>, problem: &Problem) -> PyResult<()> {
        self.send(py, 409, &self.shared.refusal_headers, &self.text(problem))
    }

    /// Say that too many wait: nothing was applied.
    pub fn overload(&self, py: Python<'_>) -> PyResult<()> {
        self.send(py, 503, &self.shared.busy_headers, &self.text(&self.shared.overloaded))
    }

    /// Say that it waited too long to be sent: nothing was applied.
    pub fn too_late(&self, py: Python<'_>) -> PyResult<()> {
        self.send(py, 503, &self.shared.busy_headers, &self.text(&self.shared.late))
    }

    fn text(&self, problem: &Problem) -> Vec<u8> {
        [&*problem.head, self.request_id.as_bytes(), &*problem.tail].concat()
    }

    fn send(
        &self,
        py: Python<'_>,
        status: u16,
        headers: &[Py<PyTuple>],
        body: &[u8],
    ) -> PyResult<()> {
        let id = (intern!(py, "x-request-id"), PyString::new(py, &self.request_id));
        let pairs = PyList::new(py, [id.into_pyobject(py)?])?;
        for pair in headers {
            pairs.append(pair.bind(py))?;
        }
        let body = PyBytes::new(py, body);
        let protocol = self.protocol.bind(py);
        let _ = protocol.call_method1(intern!(py, "response_bytes"), (status, pairs, body));
        let took_us = self.began.elapsed().as_micros() as u64;
        let tally = &mut lock(&self.shared.tallies)[self.route as usize];
        *match status {
            200 => &mut tally.won,
            409 => &mut tally.refused,
            _ => &mut tally.busy,
        } += 1;
        tally.buckets[BUCKETS_US.partition_point(|bound| *bound < took_us)] += 1;
        tally.sum_us += took_us;
        Ok(())
    }
}

/// A refusal as JSON text before and after the request's id.
#[derive(FromPyObject)]
pub struct Problem {
    #[pyo3(item(0))]
    head: Vec<u8>,
    #[pyo3(item(1))]
    tail: Vec<u8>,
}

#[pyclass(frozen, module = "vauchflow_hotpath._native")]
pub struct Door {
    shared: Arc<Shared>,
    callers: Py<PyDict>,
    learnt: Mutex<HashMap<String, Vec<Arc<Learnt>>>>,
}

#[pymethods]
impl Door {
    #[new]
    #[allow(clippy::too_many_arguments)]
    fn new(
        callers: Py<PyDict>,
        process: String,
        win_headers: Vec<Py<PyTuple>>,
        refusal_headers: Vec<Py<PyTuple>>,
        busy_headers: Vec<Py<PyTuple>>,
        overloaded: Problem,
        late: Problem,
        queue_max: usize,
        wait_ms: u64,
    ) -> Self {
        let shared = Shared {
            queued: AtomicUsize::new(0),
            queue_max,
            wait: Duration::from_millis(wait_ms),
            process,
            number: AtomicU64::new(0),
            win_headers,
            refusal_headers,
            busy_headers,
            overloaded,
            late,
            tallies: Mutex::default(),
        };
        Self { shared: Arc::new(shared), callers, learnt: Mutex::default() }
    }

    /// Take the claims that a key sends to an address to a lease's slot.
    fn learn_claim(
        &self,
        path: String,
        token: &Bound<'_, PyBytes>,
        caller: Py<PyAny>,
        batcher: Py<Batcher>,
        slot: usize,
    ) {
        self.learn(path, token, caller, Target::Claim { batcher, slot });
    }

    /// Take the redeems that a key sends to an address to a voucher's queue.
    fn learn_redeem(
        &self,
        path: String,
        token: &Bound<'_, PyBytes>,
        caller: Py<PyAny>,
        queue: Py<CommitQueue>,
    ) {
        self.learn(path, token, caller, Target::Redeem { queue });
    }

    /// Whether what a key sends to an address is taken, as far as one can tell beforehand.
    fn knows(&self, path: &str, token: &[u8]) -> bool {
        let learnt = lock(&self.learnt);
        let is_it = |one: &&Arc<Learnt>| one.authorization.as_bytes()[BEARER.len()..] == *token;
        let found = learnt.get(path).and_then(|known| known.iter().find(is_it));
        found.is_some_and(|learnt| match &learnt.target {
            Target::Claim { batcher, slot } => batcher.get().has_terms(*slot),
            Target::Redeem { queue } => queue.get().is_open(),
        })
    }

    /// Take a request that can go the plain way; None leaves it, untouched, to the general way.
    fn begin(&self, scope: &Bound<'_, PyAny>) -> PyResult<Option<Call>> {
        let py = scope.py();
        let path = scope.getattr(intern!(py, "path"))?;
        let path = path.cast::<PyString>()?.to_str()?;
        let Some(candidates) = lock(&self.learnt).get(path).cloned() else { return Ok(None) };
        let headers = Headers(scope.getattr(intern!(py, "headers"))?);
        let Some(authorization) = headers.get(intern!(py, "authorization"))? else {
            return Ok(None);
        };
        let authorization = authorization.to_str()?;
        let Some(learnt) = candidates.into_iter().find(|one| one.authorization == authorization)
        else {
            return Ok(None);
        };
        let known = self.callers.bind(py).get_item(&learnt.token)?;
        let is_post = scope.getattr(intern!(py, "method"))?.eq(intern!(py, "POST"))?;
        if !is_post || !known.is_some_and(|known| known.is(&learnt.caller)) {
            return Ok(None);
        }
        let json = headers.get(intern!(py, "content-type"))?;
        let bytes = headers.get(intern!(py, "content-length"))?;
        let is_json =
            matches!(json.as_ref().map(|text| text.to_str()), Some(Ok("application/json")));
        let is_small = match &bytes {
            Some(text) => text.to_str()?.parse::<u64>().is_ok_and(|n| n <= BODY_BYTES_MAX),
            None => false,
        };
        if !is_json || !is_small {
            return Ok(None);
        }
        let name = intern!(py, "idempotency-key");
        let key = match headers.get(name)? {
            Some(key) if is_plain_key(key.to_str()?) => Some(key.to_str()?.to_owned()),
            Some(_) => return Ok(None),
            // A header that is not ASCII is there and cannot be had.
            None if headers.0.contains(name)? => return Ok(None),
            None => None,
        };
        let request_id = match headers.get(intern!(py, "x-request-id"))? {
            Some(id) if is_request_id(id.to_str()?) => id.to_str()?.to_owned(),
            _ => self.new_request_id(),
        };
        let shared = self.shared.clone();
        Ok(Some(Call { shared, learnt, key, request_id, began: Instant::now() }))
    }

    /// What was answered since the last call, for each route that answered: its name, how many by
    /// status (200, 409, 503), by bucket of latency, and the sum of microseconds.
    fn tallied(&self) -> Vec<(&'static str, [u64; 3], Vec<u64>, u64)> {
        let tallies = std::mem::take(&mut *lock(&self.shared.tallies));
        let named = ["redeem", "claim"].into_iter().zip(tallies);
        named
            .map(|(name, tally)| {
                let statuses = [tally.won, tally.refused, tally.busy];
                (name, statuses, tally.buckets.to_vec(), tally.sum_us)
            })
            .filter(|(_, statuses, _, _)| statuses.iter().any(|count| *count > 0))
            .collect()
    }
}

impl Door {
    /// A request id that nobody else has: the process, and a number of its own.
    fn new_request_id(&self) -> String {
        let number = self.shared.number.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{}{number:012X}", self.shared.process)
    }

    fn learn(&self, path: String, token: &Bound<'_, PyBytes>, caller: Py<PyAny>, target: Target) {
        let new = Learnt {
            authorization: format!("{BEARER}{}", String::from_utf8_lossy(token.as_bytes())),
            token: token.clone().unbind(),
            caller,
            route: if path.ends_with("/claim") { Route::Claim } else { Route::Redeem },
            target,
        };
        let mut learnt = lock(&self.learnt);
        if learnt.len() >= LEARNT_MAX {
            // Any half will do: what is busy is learnt again by its next request.
            let mut stays = false;
            learnt.retain(|_, _| {
                stays = !stays;
                stays
            });
        }
        let known = learnt.entry(path).or_default();
        known.retain(|one| one.authorization != new.authorization);
        // Many keys at one address: the busy ones are learnt again.
        known.truncate(15);
        known.push(Arc::new(new));
    }
}

struct Headers<'py>(Bound<'py, PyAny>);

impl<'py> Headers<'py> {
    fn get(&self, name: &Bound<'py, PyString>) -> PyResult<Option<Bound<'py, PyString>>> {
        let value = self.0.call_method1(intern!(self.0.py(), "get"), (name,))?;
        Ok(value.cast_into::<PyString>().ok())
    }
}

/// A key that means itself: no quotes around it, nothing to strip.
fn is_plain_key(key: &str) -> bool {
    let is_plain = |byte: u8| matches!(byte, b'!' | b'#'..=b'~');
    (1..=KEY_CHARS_MAX).contains(&key.len()) && key.bytes().all(is_plain)
}

fn is_request_id(id: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/+=-".contains(&byte);
    (1..=REQUEST_ID_CHARS_MAX).contains(&id.len()) && id.bytes().all(is_plain)
}

/// A request that was taken: its body is read next.
#[pyclass(frozen, module = "vauchflow_hotpath._native")]
pub struct Call {
    shared: Arc<Shared>,
    learnt: Arc<Learnt>,
    key: Option<String>,
    #[pyo3(get)]
    request_id: String,
    began: Instant,
}

#[pymethods]
impl Call {
    /// Decide it. A future: await it; None from it says that the answer was sent, anything else is
    /// to be worded. True: the answer was sent at once. None: this body must go the general way,
    /// and nothing was done.
    fn send<'py>(
        &self,
        py: Python<'py>,
        body: &[u8],
        protocol: Py<PyAny>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let pending = Pending {
            shared: self.shared.clone(),
            protocol,
            request_id: self.request_id.clone(),
            route: self.learnt.route,
            began: self.began,
        };
        let key = self.key.as_deref();
        match &self.learnt.target {
            Target::Claim { batcher, slot } => {
                batcher.get().claim_plain(py, *slot, body, key, pending)
            }
            Target::Redeem { queue } => queue.get().push(py, body, key, pending),
        }
    }
}
