//! The hot doors of one worker: a request whose address, key and body are plain is taken, decided
//! and answered without the interpreter. Everything else is left to the general way.
//!
//! What is taken here was learnt from there: the general way resolved the key and the address once,
//! and says what they mean. Every part can go stale alone: a key that is revoked is forgotten here,
//! a lease is asked by its slot, a voucher's terms by `PostgreSQL` itself.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Response, StatusCode};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use tokio::sync::oneshot;

use super::batcher::{Batcher, Claims};
use super::commits::{CommitQueue, Redeems};
use super::plain_call::{Own, PlainCall, Told};
use crate::listener::Hot;
use crate::upstream::Failure;
use crate::wake::Wake;

/// Addresses and keys that are remembered: those that are busy at this moment.
const LEARNT_MAX: usize = 20_000;
/// Keys that are remembered of one address; the busy ones are learnt again.
const KEYS_MAX: usize = 16;
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
/// What is answered here: a win, a sold-out lease, not applied, and nobody knows.
const STATUSES: [u16; 4] = [200, 409, 503, 504];
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Route {
    Redeem,
    Claim,
}

impl Route {
    pub fn name(self) -> &'static str {
        match self {
            Self::Redeem => "redeem",
            Self::Claim => "claim",
        }
    }
}

enum Target {
    Claim { claims: Arc<Claims>, slot: usize },
    Redeem { redeems: Arc<Redeems> },
}

pub struct Learnt {
    pub path: String,
    pub authorization: String,
    pub route: Route,
    target: Target,
    meter: Arc<Meter>,
}

/// What one key may still ask for here, and what it was answered since that was last written down.
#[derive(Default)]
struct Meter {
    rest: AtomicI64,
    answered: AtomicU64,
    refused: AtomicU64,
}

impl Meter {
    /// More than anybody takes in a process's life, and far from the ends of the type.
    const UNLIMITED: i64 = i64::MAX / 2;

    fn draw(&self) -> bool {
        self.change(|rest| (rest > 0).then(|| rest - 1)).is_some()
    }

    /// Take all there is; nothing of what has no limit.
    fn drain(&self) -> i64 {
        self.change(|rest| (1..Self::UNLIMITED / 2).contains(&rest).then_some(0)).unwrap_or(0)
    }

    /// What was there before a change, or nothing where there was none.
    fn change(&self, change: impl FnMut(i64) -> Option<i64>) -> Option<i64> {
        self.rest.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).ok()
    }

    fn give_back(&self) {
        self.rest.fetch_add(1, Ordering::Relaxed);
    }
}

/// What was answered since it was last asked for.
#[derive(Default, Clone)]
struct Tally {
    by_status: [u64; STATUSES.len()],
    buckets: [u64; BUCKETS_US.len() + 1],
    sum_us: u64,
}

/// A route's name, how often each status was answered, how many by each bound of time, and their sum in µs.
type Tallied = (&'static str, Vec<(u16, u64)>, Vec<u64>, u64);

/// A problem as JSON text before and after the request's id.
#[derive(FromPyObject)]
pub struct Problem {
    #[pyo3(item(0))]
    head: Vec<u8>,
    #[pyo3(item(1))]
    tail: Vec<u8>,
}

/// The problems that need nothing but the request's id.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
struct Problems {
    /// 503: too many wait.
    overloaded: Problem,
    /// 503: it waited too long to be sent.
    late: Problem,
    /// 503: nobody listens behind.
    away: Problem,
    /// 504: it may have been applied.
    unknown: Problem,
    /// 400: the body did not arrive.
    slow: Problem,
    /// 400: the body ended before it should.
    cut: Problem,
}

/// What all requests of a worker share.
pub struct Shared {
    learnt: RwLock<HashMap<String, Vec<Arc<Learnt>>>>,
    process: String,
    number: AtomicU64,
    /// Waiting for a shared commit, over all queues.
    pub queued: AtomicUsize,
    queue_max: usize,
    wait: Duration,
    win_headers: HeaderMap,
    problem_headers: HeaderMap,
    problems: Problems,
    tallies: Mutex<[Tally; 2]>,
    /// By the header that names the key.
    meters: Mutex<HashMap<String, Arc<Meter>>>,
    /// What the loop has to do, and what wakes it for that.
    asked: Mutex<Asked>,
    wake: Wake,
}

#[derive(Default)]
struct Asked {
    to_fly: Vec<Arc<Redeems>>,
    to_word: Vec<PlainCall>,
}

impl Asked {
    fn is_empty(&self) -> bool {
        self.to_fly.is_empty() && self.to_word.is_empty()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// A request id that nobody else has: the process, and a number of its own.
    fn new_request_id(&self) -> String {
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        format!("{}{number:012X}", self.process)
    }

    fn find(&self, path: &str, authorization: &[u8]) -> Option<Arc<Learnt>> {
        let learnt = self.learnt.read().unwrap_or_else(PoisonError::into_inner);
        let is_it = |one: &&Arc<Learnt>| one.authorization.as_bytes() == authorization;
        learnt.get(path)?.iter().find(is_it).cloned()
    }

    fn change<T>(&self, act: impl FnOnce(&mut HashMap<String, Vec<Arc<Learnt>>>) -> T) -> T {
        act(&mut self.learnt.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Have the loop do something; it is woken once for all it has not seen yet.
    fn ask(&self, add: impl FnOnce(&mut Asked)) {
        let mut asked = lock(&self.asked);
        let were_none = asked.is_empty();
        add(&mut asked);
        drop(asked);
        if were_none {
            self.wake.signal();
        }
    }

    fn problem(
        &self,
        status: StatusCode,
        problem: &Problem,
        request_id: &str,
    ) -> Response<Full<Bytes>> {
        let body = [&*problem.head, request_id.as_bytes(), &*problem.tail].concat();
        let mut response = answer(status, &self.problem_headers, request_id, body);
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }

    fn meter(&self, authorization: &str) -> Arc<Meter> {
        lock(&self.meters).entry(authorization.to_owned()).or_default().clone()
    }

    fn tally(&self, route: Route, status: StatusCode, began: Instant) {
        let took_us = began.elapsed().as_micros() as u64;
        let tally = &mut lock(&self.tallies)[route as usize];
        let answered = STATUSES.iter().position(|known| *known == status.as_u16());
        debug_assert!(answered.is_some(), "{status} is not among what is answered here");
        if let Some(answered) = answered {
            tally.by_status[answered] += 1;
        }
        tally.buckets[BUCKETS_US.partition_point(|bound| *bound < took_us)] += 1;
        tally.sum_us += took_us;
    }
}

/// A request that was taken: its body is read next.
pub struct Taken {
    learnt: Arc<Learnt>,
    key: Option<String>,
    request_id: String,
    began: Instant,
}

/// What became of a request that was taken.
pub enum End {
    /// The answer's body.
    Won(Vec<u8>),
    /// A lease's own refusal.
    SoldOut(Arc<Problem>),
    /// Too many wait: nothing was applied.
    Busy,
    /// It waited too long to be sent: nothing was applied.
    Late,
    /// Nobody is left who knows.
    Unknown,
    /// Python words it.
    Told(Told),
    /// It goes the general way, and nothing was done.
    Left,
}

impl Hot for Shared {
    type Taken = Taken;
    const BODY_BYTES_MAX: u64 = BODY_BYTES_MAX;

    fn take(&self, head: &Parts) -> Option<Taken> {
        let headers = &head.headers;
        // An address in other spelling is decoded by the general way, and a learnt one has none.
        let learnt = self.find(head.uri.path(), headers.get(header::AUTHORIZATION)?.as_bytes())?;
        let is_plain = head.method == Method::POST
            && headers.get(header::CONTENT_TYPE)?.as_bytes() == b"application/json"
            && length(headers)? <= BODY_BYTES_MAX;
        if !is_plain {
            return None;
        }
        let key = match headers.get(IDEMPOTENCY_KEY) {
            None => None,
            Some(key) => Some(key.to_str().ok().filter(|key| is_plain_key(key))?.to_owned()),
        };
        let given = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
        let request_id = given
            .filter(|id| is_request_id(id))
            .map_or_else(|| self.new_request_id(), str::to_owned);
        // Who has nothing left asks the general way, which knows whether there is more.
        if !learnt.meter.draw() {
            return None;
        }
        Some(Taken { learnt, key, request_id, began: Instant::now() })
    }

    async fn decide(self: &Arc<Self>, taken: Taken, body: &Bytes) -> Option<Response<Full<Bytes>>> {
        let key = taken.key.as_deref();
        let end = match &taken.learnt.target {
            Target::Claim { claims, slot } => claims.claim_plain(*slot, body, key, self.wait).await,
            Target::Redeem { redeems } => self.redeem(redeems, body, key).await,
        };
        let id = &*taken.request_id;
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        let response = match end {
            End::Left => {
                taken.learnt.meter.give_back();
                return None;
            }
            End::Won(body) => answer(StatusCode::OK, &self.win_headers, id, body),
            End::SoldOut(problem) => self.problem(StatusCode::CONFLICT, &problem, id),
            End::Busy => self.problem(unavailable, &self.problems.overloaded, id),
            End::Late => self.problem(unavailable, &self.problems.late, id),
            End::Unknown => self.unknown(id),
            // What Python answers it counts itself.
            End::Told(told) => return Some(self.word(taken, body.clone(), told).await),
        };
        self.tally(taken.learnt.route, response.status(), taken.began);
        if !response.status().is_server_error() {
            taken.learnt.meter.answered.fetch_add(1, Ordering::Relaxed);
        }
        if response.status() == StatusCode::CONFLICT {
            taken.learnt.meter.refused.fetch_add(1, Ordering::Relaxed);
        }
        Some(response)
    }

    fn too_slow(&self) -> Response<Full<Bytes>> {
        self.problem(StatusCode::BAD_REQUEST, &self.problems.slow, &self.new_request_id())
    }

    fn failed(&self, failure: Failure) -> Response<Full<Bytes>> {
        let id = self.new_request_id();
        match failure {
            Failure::NotSent => {
                self.problem(StatusCode::SERVICE_UNAVAILABLE, &self.problems.away, &id)
            }
            Failure::CutOff => self.problem(StatusCode::BAD_REQUEST, &self.problems.cut, &id),
            Failure::Unanswered => self.unknown(&id),
        }
    }
}

impl Shared {
    fn unknown(&self, id: &str) -> Response<Full<Bytes>> {
        self.problem(StatusCode::GATEWAY_TIMEOUT, &self.problems.unknown, id)
    }

    async fn redeem(
        self: &Arc<Self>,
        redeems: &Arc<Redeems>,
        body: &[u8],
        key: Option<&str>,
    ) -> End {
        if self.queued.load(Ordering::Relaxed) >= self.queue_max && redeems.is_open() {
            return End::Busy;
        }
        let Some((waits, begins)) = redeems.push(body, key, self) else { return End::Left };
        if begins {
            self.ask(|asked| asked.to_fly.push(redeems.clone()));
        }
        waits.await.unwrap_or(End::Unknown)
    }

    /// Have Python word an answer; what it forgets to answer may have been applied.
    async fn word(
        self: &Arc<Self>,
        taken: Taken,
        body: Bytes,
        told: Told,
    ) -> Response<Full<Bytes>> {
        let (replies, reply) = oneshot::channel();
        let request_id = taken.request_id.clone();
        let call = PlainCall::new(taken.learnt, taken.key, taken.request_id, body, told, replies);
        self.ask(|asked| asked.to_word.push(call));
        let Ok(Own { status, headers, body }) = reply.await else {
            return self.unknown(&request_id);
        };
        let mut response = Response::new(Full::new(body));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    pub fn deadline(&self) -> Instant {
        Instant::now() + self.wait
    }
}

fn answer(
    status: StatusCode,
    headers: &HeaderMap,
    request_id: &str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    headers.clone_into(response.headers_mut());
    if let Ok(id) = HeaderValue::from_str(request_id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

fn authorization_of(token: &[u8]) -> String {
    format!("{BEARER}{}", String::from_utf8_lossy(token))
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
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

/// Headers as pairs of text.
pub fn header_map(pairs: Vec<(String, String)>) -> PyResult<HeaderMap> {
    let mut headers = HeaderMap::with_capacity(pairs.len() + 2);
    for (name, value) in pairs {
        let name = name.parse::<HeaderName>().map_err(|e| PyValueError::new_err(e.to_string()))?;
        let value =
            value.parse().map_err(|_| PyValueError::new_err(format!("{name} is no text")))?;
        headers.append(name, value);
    }
    Ok(headers)
}

#[pyclass(frozen, module = "vauchflow_hotpath._native")]
pub struct Door {
    pub shared: Arc<Shared>,
}

#[pymethods]
impl Door {
    #[new]
    #[allow(clippy::too_many_arguments)]
    fn new(
        process: String,
        win_headers: Vec<(String, String)>,
        problem_headers: Vec<(String, String)>,
        problems: Problems,
        queue_max: usize,
        wait_ms: u64,
    ) -> PyResult<Self> {
        let shared = Shared {
            learnt: RwLock::default(),
            process,
            number: AtomicU64::new(0),
            queued: AtomicUsize::new(0),
            queue_max,
            wait: Duration::from_millis(wait_ms),
            win_headers: header_map(win_headers)?,
            problem_headers: header_map(problem_headers)?,
            problems,
            tallies: Mutex::default(),
            meters: Mutex::default(),
            asked: Mutex::default(),
            wake: Wake::new()?,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Readable when `drain` has something to do.
    fn fileno(&self) -> i32 {
        self.shared.wake.fd()
    }

    /// Queues whose flying must begin, and requests whose answers want wording, since the last
    /// call. The loop calls it when `fileno` is readable.
    fn drain(&self) -> (Vec<CommitQueue>, Vec<PlainCall>) {
        self.shared.wake.clear();
        let Asked { to_fly, to_word } = std::mem::take(&mut *lock(&self.shared.asked));
        (to_fly.into_iter().map(CommitQueue).collect(), to_word)
    }

    /// Take the claims that a key sends to an address to a lease's slot.
    fn learn_claim(&self, path: String, token: &[u8], batcher: &Batcher, slot: usize) {
        self.learn(path, token, Target::Claim { claims: batcher.claims.clone(), slot });
    }

    /// Take the redeems that a key sends to an address to a voucher's queue.
    fn learn_redeem(&self, path: String, token: &[u8], queue: &CommitQueue) {
        self.learn(path, token, Target::Redeem { redeems: queue.0.clone() });
    }

    /// Whether what a key sends to an address is taken, as far as one can tell beforehand.
    fn knows(&self, path: &str, token: &[u8]) -> bool {
        let found = self.shared.find(path, &[BEARER.as_bytes(), token].concat());
        found.is_some_and(|learnt| match &learnt.target {
            Target::Claim { claims, slot } => claims.has_terms(*slot),
            Target::Redeem { redeems } => redeems.is_open(),
        })
    }

    /// Take nothing more that a key sends; what it let in before is still decided.
    fn forget(&self, token: &[u8]) {
        let authorization = authorization_of(token);
        self.shared.change(|learnt| {
            learnt.retain(|_, known| {
                known.retain(|one| one.authorization != authorization);
                !known.is_empty()
            });
        });
        if let Some(meter) = lock(&self.shared.meters).get(&authorization) {
            // What it had left was its plan's then.
            meter.rest.store(0, Ordering::Relaxed);
        }
    }

    /// Let a key ask for so many more here; without a number, for as many as it likes. A key that
    /// was never granted anything goes the general way.
    #[pyo3(signature = (token, more))]
    fn grant(&self, token: &[u8], more: Option<i64>) {
        let meter = self.shared.meter(&authorization_of(token));
        match more {
            None => meter.rest.store(Meter::UNLIMITED, Ordering::Relaxed),
            Some(more) => {
                meter.rest.fetch_add(more.clamp(0, Meter::UNLIMITED), Ordering::Relaxed);
            }
        }
    }

    /// Take back what a key has left here, and say how much that was; nothing of one without limit.
    fn reclaim(&self, token: &[u8]) -> i64 {
        lock(&self.shared.meters).get(&authorization_of(token)).map_or(0, |meter| meter.drain())
    }

    /// How many requests of each key were answered here since the last call, by its text, and how
    /// many of those were refused; those that failed here are not among them.
    fn metered(&self) -> Vec<(Cow<'static, [u8]>, u64, u64)> {
        let mut counts = Vec::new();
        lock(&self.shared.meters).retain(|authorization, meter| {
            let answered = meter.answered.swap(0, Ordering::Relaxed);
            if answered > 0 {
                let refused = meter.refused.swap(0, Ordering::Relaxed);
                let token = authorization.as_bytes()[BEARER.len()..].to_vec().into();
                counts.push((token, answered, refused));
            }
            // Where no address is known to the key any more, this was the last of it.
            answered > 0 || Arc::strong_count(meter) > 1
        });
        counts
    }

    /// What was answered since the last call, for each route that answered: its name, how many of
    /// each status, by bucket of latency, and the sum of microseconds.
    fn tallied(&self) -> Vec<Tallied> {
        let tallies = std::mem::take(&mut *lock(&self.shared.tallies));
        let named = [Route::Redeem, Route::Claim].into_iter().zip(tallies);
        named
            .filter(|(_, tally)| tally.by_status.iter().any(|count| *count > 0))
            .map(|(route, tally)| {
                let by_status = STATUSES.into_iter().zip(tally.by_status).collect();
                (route.name(), by_status, tally.buckets.to_vec(), tally.sum_us)
            })
            .collect()
    }
}

impl Door {
    fn learn(&self, path: String, token: &[u8], target: Target) {
        let authorization = authorization_of(token);
        let new = Learnt {
            meter: self.shared.meter(&authorization),
            authorization,
            route: if path.ends_with("/claim") { Route::Claim } else { Route::Redeem },
            path,
            target,
        };
        // Requests come with the address as it was written: a sign that was decoded would be
        // another address there.
        if new.path.contains('%') || !new.path.is_ascii() {
            return;
        }
        self.shared.change(|learnt| {
            if learnt.len() >= LEARNT_MAX {
                // Any half will do: what is busy is learnt again by its next request.
                let mut stays = false;
                learnt.retain(|_, _| {
                    stays = !stays;
                    stays
                });
            }
            let known = learnt.entry(new.path.clone()).or_default();
            known.retain(|one| one.authorization != new.authorization);
            known.truncate(KEYS_MAX - 1);
            known.push(Arc::new(new));
        });
    }
}
