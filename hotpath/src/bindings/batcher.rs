//! The batcher's Python face: claims in, futures out; and plain claims, decided without Python.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use pyo3::{IntoPyObjectExt, intern};
use tokio::sync::oneshot;

use super::door::{End, Problem};
use super::plain_call::Told;
use super::{Marks, PlainTerms, lease_uuid, no_slot};
use crate::batcher::{Core, Item, Limits};
use crate::connection::{Address, Server};
use crate::flight;
use crate::marks;
use crate::outcome::{Answer, Outcome};
use crate::plain;
use crate::receipts;

/// 128 bits in hex; claim.lua cuts records at this width.
const FINGERPRINT_CHARS: usize = 32;
/// Longest wait for an answer: an hour, so that a deadline never overflows the clock.
const DEADLINE_MS_MAX: i64 = 3_600_000;
/// For so long after a "sold out" of a lease it is said again by itself, to claims without a key.
const SOLD_OUT: Duration = Duration::from_millis(250);

/// Who waits for an answer.
enum Waiter {
    Future(Py<PyAny>),
    Task(oneshot::Sender<Answer>),
}

struct LeaseTerms {
    terms: Arc<plain::Terms>,
    lease: plain::Lease,
    receipts: receipts::Key,
    /// What words the answers that are not given here.
    subject: Arc<Py<PyAny>>,
    sold_out: Arc<Problem>,
    sold_out_until: Mutex<Option<Instant>>,
}

impl LeaseTerms {
    fn until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.sold_out_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_sold_out_now(&self) -> bool {
        self.until().is_some_and(|until| Instant::now() < until)
    }
}

/// Waiters by ticket. A place is used again under another generation, so a ticket names one claim.
#[derive(Default)]
struct Slab {
    places: Vec<(u32, Option<Waiter>)>,
    free: Vec<u32>,
}

impl Slab {
    fn put(&mut self, waiter: Waiter) -> u64 {
        let at = self.free.pop().unwrap_or_else(|| {
            self.places.push((0, None));
            self.places.len() as u32 - 1
        });
        let place = &mut self.places[at as usize];
        place.1 = Some(waiter);
        u64::from(place.0) << 32 | u64::from(at)
    }

    fn take(&mut self, ticket: u64) -> Option<Waiter> {
        let (generation, at) = ((ticket >> 32) as u32, ticket as u32);
        let place = self.places.get_mut(at as usize).filter(|place| place.0 == generation)?;
        let waiter = place.1.take()?;
        place.0 = generation.wrapping_add(1);
        self.free.push(at);
        Some(waiter)
    }
}

/// The claims of one batcher that wait, and what plain ones are answered with.
pub struct Claims {
    core: Arc<Core>,
    slab: Mutex<Slab>,
    terms: Mutex<HashMap<usize, Arc<LeaseTerms>>>,
    /// Answers for futures, which only the loop may resolve.
    for_futures: Mutex<Vec<(Py<PyAny>, Answer)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Claims {
    fn new(core: Arc<Core>) -> Arc<Self> {
        let claims = Arc::new(Self {
            core,
            slab: Mutex::default(),
            terms: Mutex::default(),
            for_futures: Mutex::default(),
        });
        let listening = Arc::downgrade(&claims);
        claims.core.listen(Box::new(move || {
            if let Some(claims) = listening.upgrade() {
                claims.deliver();
            }
        }));
        claims
    }

    /// Hand answers to the tasks that wait; those for futures wait for the loop, woken once.
    fn deliver(&self) {
        let answers = self.core.take_answers();
        let waiters: Vec<_> = {
            let mut slab = lock(&self.slab);
            answers.into_iter().map(|(ticket, answer)| (slab.take(ticket), answer)).collect()
        };
        let mut for_futures = Vec::new();
        for (waiter, answer) in waiters {
            match waiter {
                // A task that is gone has a client that is gone.
                Some(Waiter::Task(task)) => drop(task.send(answer)),
                Some(Waiter::Future(future)) => for_futures.push((future, answer)),
                None => {}
            }
        }
        if for_futures.is_empty() {
            return;
        }
        let mut waiting = lock(&self.for_futures);
        let were_none = waiting.is_empty();
        waiting.append(&mut for_futures);
        drop(waiting);
        if were_none {
            self.core.answers.signal();
        }
    }

    /// Queue an item; refused at once, its waiter comes back.
    fn queue(
        &self,
        slot: usize,
        waiter: Waiter,
        bytes: Box<[u8]>,
        wait: Duration,
    ) -> Result<(), (Option<Waiter>, Answer)> {
        let ticket = lock(&self.slab).put(waiter);
        let item = Item { ticket, deadline: Instant::now() + wait, bytes };
        self.core
            .submit(slot, item)
            .map_err(|refused| (lock(&self.slab).take(ticket), Answer::bare(refused)))
    }

    pub fn has_terms(&self, slot: usize) -> bool {
        lock(&self.terms).contains_key(&slot)
    }

    /// Claim with a plain body.
    pub async fn claim_plain(
        &self,
        slot: usize,
        body: &[u8],
        key: Option<&str>,
        wait: Duration,
    ) -> End {
        let Some(lease) = lock(&self.terms).get(&slot).cloned() else { return End::Left };
        let Some(ask) = plain::read(&lease.terms, body) else { return End::Left };
        if key.is_none() && lease.is_sold_out_now() {
            return End::SoldOut(lease.sold_out.clone());
        }
        let Some(kind) = self.core.kind(slot) else { return End::Left };
        let fingerprint = plain::hex(ask.fingerprint(&lease.terms));
        let bytes = kind.item(key.unwrap_or_default(), &fingerprint, &ask.customer, &ask.payload());
        let (task, waits) = oneshot::channel();
        let answer = match self.queue(slot, Waiter::Task(task), bytes, wait) {
            Err((_, refused)) => refused,
            Ok(()) => match waits.await {
                Ok(answer) => answer,
                Err(_) => return End::Unknown,
            },
        };
        match answer.outcome {
            Outcome::Won => {
                let told = lease.lease.told(answer.seq, answer.remaining, answer.at_ms);
                End::Won(ask.answer(&lease.terms, &told, Some(&lease.receipts)))
            }
            Outcome::SoldOut => {
                *lease.until() = Some(Instant::now() + SOLD_OUT);
                End::SoldOut(lease.sold_out.clone())
            }
            Outcome::Overloaded | Outcome::Busy => End::Busy,
            Outcome::Expired => End::Late,
            _ => End::Told(Told::Claim(lease.subject.clone(), answer)),
        }
    }
}

#[pyclass(frozen, module = "vauchflow_hotpath._native")]
pub struct Batcher {
    core: Arc<Core>,
    pub claims: Arc<Claims>,
    create_future: Py<PyAny>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Batcher {
    fn drop(&mut self) {
        self.core.close();
    }
}

#[pymethods]
impl Batcher {
    #[new]
    #[pyo3(signature = (r#loop, address, *, username=None, password=None, db=0, batch_max=256,
                        queue_max=4096, flight_timeout_ms=2000, marks=None))]
    #[allow(clippy::too_many_arguments)]
    fn new(
        r#loop: &Bound<'_, PyAny>,
        address: &str,
        username: Option<String>,
        password: Option<String>,
        db: u32,
        batch_max: usize,
        queue_max: usize,
        flight_timeout_ms: u64,
        marks: Option<&Marks>,
    ) -> PyResult<Self> {
        let Some(address) = Address::parse(address) else {
            return Err(PyValueError::new_err("an address is unix:/path or host:port"));
        };
        if batch_max == 0 || queue_max == 0 || flight_timeout_ms == 0 {
            return Err(PyValueError::new_err("limits must be at least 1"));
        }
        let limits = Limits {
            batch_max,
            queue_max,
            flight_timeout: Duration::from_millis(flight_timeout_ms),
        };
        let marks = match marks {
            Some(marks) => marks.0.clone(),
            None => Arc::new(marks::Marks::open(None)?),
        };
        let core = Arc::new(Core::new(limits, marks)?);
        let claims = Claims::new(core.clone());
        let server = Server { address, username, password, db };
        let shared = core.clone();
        let thread = std::thread::Builder::new()
            .name("vauchflow-batcher".to_owned())
            .spawn(move || flight::run(&shared, server))?;
        Ok(Self {
            core,
            claims,
            create_future: r#loop.getattr("create_future")?.unbind(),
            thread: Mutex::new(Some(thread)),
        })
    }

    fn fileno(&self) -> i32 {
        self.core.answers.fd()
    }

    fn open_lease(&self, lease_id: &str, run_id: &str) -> PyResult<usize> {
        let uuid = lease_uuid(lease_id)?;
        let slot = self.core.open_lease(lease_id, uuid, run_id);
        slot.ok_or_else(|| PyRuntimeError::new_err("the marks file has no room for a lease"))
    }

    fn open_crowd(&self, voucher_id: &str, lineage: &str) -> usize {
        self.core.open_crowd(voucher_id, lineage)
    }

    fn reopen(&self, slot: usize, run_id: &str) -> PyResult<()> {
        self.core.reopen(slot, run_id).ok_or_else(no_slot)
    }

    fn seal(&self, slot: usize) -> PyResult<u64> {
        self.core.seal(slot).ok_or_else(no_slot)
    }

    #[pyo3(signature = (slot, *, keeps_mark=false))]
    fn close_slot(&self, slot: usize, keeps_mark: bool) -> PyResult<()> {
        lock(&self.claims.terms).remove(&slot);
        self.core.close_slot(slot, keeps_mark).ok_or_else(no_slot)
    }

    fn keep_marks(&self, lease_ids: Vec<String>) -> PyResult<()> {
        let leases = lease_ids.iter().map(|lease_id| lease_uuid(lease_id)).collect::<PyResult<_>>();
        self.core.keep_marks(&leases?);
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn claim<'py>(
        &self,
        py: Python<'py>,
        slot: usize,
        key: Option<&str>,
        fingerprint: &str,
        customer: Option<&str>,
        payload: &[u8],
        deadline_ms: i64,
    ) -> PyResult<Bound<'py, PyAny>> {
        if fingerprint.len() != FINGERPRINT_CHARS {
            return Err(PyValueError::new_err("a fingerprint is 32 hex characters"));
        }
        let kind = self.core.kind(slot).ok_or_else(no_slot)?;
        let (key, customer) = (key.unwrap_or_default(), customer.unwrap_or_default());
        let bytes = kind.item(key, fingerprint, customer, payload);
        let wait = Duration::from_millis(deadline_ms.clamp(0, DEADLINE_MS_MAX) as u64);
        let future = self.create_future.bind(py).call0()?;
        let waiter = Waiter::Future(future.clone().unbind());
        if let Err((_, refused)) = self.claims.queue(slot, waiter, bytes, wait) {
            resolve(&future, &refused)?;
        }
        Ok(future)
    }

    /// Say with what the plain claims of a lease's slot are priced and answered; `subject` comes
    /// back beside every answer that is not sent from here.
    #[allow(clippy::too_many_arguments)]
    fn set_terms(
        &self,
        slot: usize,
        terms: &PlainTerms,
        subject: Py<PyAny>,
        lease_id: &str,
        tag: u64,
        seq_base: u64,
        receipt_key: [u8; 32],
        sold_out: Problem,
    ) -> PyResult<()> {
        let receipts = receipts::Key::new(&receipt_key);
        let lease = plain::Lease { id: lease_uuid(lease_id)?, tag, seq_base };
        let terms = terms.0.clone();
        let (subject, sold_out) = (Arc::new(subject), Arc::new(sold_out));
        let sold_out_until = Mutex::default();
        let terms = LeaseTerms { terms, lease, receipts, subject, sold_out, sold_out_until };
        lock(&self.claims.terms).insert(slot, Arc::new(terms));
        Ok(())
    }

    /// Forget that a lease was sold out: it has grown.
    fn forget_sold_out(&self, slot: usize) {
        if let Some(lease) = lock(&self.claims.terms).get(&slot) {
            *lease.until() = None;
        }
    }

    /// Resolve the futures whose answers have come. The loop calls it when `fileno` is readable.
    fn drain(&self, py: Python<'_>) {
        self.core.answers.clear();
        let waiting = std::mem::take(&mut *lock(&self.claims.for_futures));
        for (future, answer) in waiting {
            let future = future.bind(py);
            // One future that can't be resolved (its loop is closed) must not starve the rest.
            if let Err(error) = resolve(future, &answer) {
                error.write_unraisable(py, Some(future));
            }
        }
    }

    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let status = self.core.status();
        let told = PyDict::new(py);
        told.set_item("connected", status.run_id.is_some())?;
        told.set_item("run_id", status.run_id)?;
        told.set_item("dead", status.is_dead)?;
        told.set_item("queued", status.queued)?;
        told.set_item("in_flight", status.in_flight)?;
        told.set_item("batches", status.batches)?;
        told.set_item("items", status.items)?;
        told.set_item("wakeups", status.wakeups)?;
        told.set_item("last_error", status.last_error)?;
        told.set_item("marks_lost", status.marks_were_lost)?;
        let slots = PyDict::new(py);
        for slot in status.slots {
            let sealed = slot.sealed.map(crate::outcome::Sealed::as_str);
            slots.set_item(slot.slot, (slot.target, sealed, slot.mark))?;
        }
        told.set_item("slots", slots)?;
        Ok(told)
    }

    /// Refuse what waits; the thread ends after the flight under way.
    fn close(&self) {
        self.core.close();
    }

    /// Wait for the thread without holding the interpreter. Bounded by the flight timeout.
    fn join(&self, py: Python<'_>) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic inside was caught by the thread itself, so there is no error to report here.
            py.detach(|| drop(thread.join()));
        }
    }
}

/// The five fields of an answer.
pub fn fields<'py>(py: Python<'py>, answer: &Answer) -> PyResult<Bound<'py, PyTuple>> {
    let detail = match &answer.detail {
        Some(bytes) => PyBytes::new(py, bytes).into_any(),
        None => py.None().into_bound(py),
    };
    let fields = [
        (answer.outcome as u8).into_bound_py_any(py)?,
        answer.seq.into_bound_py_any(py)?,
        answer.at_ms.into_bound_py_any(py)?,
        answer.remaining.into_bound_py_any(py)?,
        detail,
    ];
    PyTuple::new(py, fields)
}

/// Resolve a future that still waits.
fn resolve(future: &Bound<'_, PyAny>, answer: &Answer) -> PyResult<()> {
    let py = future.py();
    if !future.call_method0(intern!(py, "done"))?.is_truthy()? {
        future.call_method1(intern!(py, "set_result"), (fields(py, answer)?,))?;
    }
    Ok(())
}
