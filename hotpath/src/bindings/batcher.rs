//! The batcher's Python face: claims in, futures out, and plain claims answered by themselves.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyTuple};
use pyo3::{IntoPyObjectExt, intern};

use super::door::{Pending, Problem};
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

/// Who waits for an answer; a plain claim's win is sent to its client from here.
struct Waiter {
    future: Py<PyAny>,
    reply: Option<Box<Reply>>,
}

/// A plain claim that waits, and with what it is answered.
struct Reply {
    pending: Pending,
    ask: plain::Ask,
    lease: Arc<LeaseTerms>,
}

struct LeaseTerms {
    terms: Arc<plain::Terms>,
    lease: plain::Lease,
    receipts: receipts::Key,
    /// What words the answers that are not sent from here.
    subject: Py<PyAny>,
    sold_out: Problem,
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

#[pyclass(frozen, module = "vauchflow_hotpath._native")]
pub struct Batcher {
    core: Arc<Core>,
    create_future: Py<PyAny>,
    slab: Mutex<Slab>,
    terms: Mutex<HashMap<usize, Arc<LeaseTerms>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Batcher {
    fn slab(&self) -> MutexGuard<'_, Slab> {
        self.slab.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn terms(&self) -> MutexGuard<'_, HashMap<usize, Arc<LeaseTerms>>> {
        self.terms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queue an item for a waiter; refused at once, its future is resolved at once.
    fn queue(
        &self,
        py: Python<'_>,
        slot: usize,
        waiter: Waiter,
        bytes: Box<[u8]>,
        deadline_ms: i64,
    ) -> PyResult<()> {
        let wait = Duration::from_millis(deadline_ms.clamp(0, DEADLINE_MS_MAX) as u64);
        let ticket = self.slab().put(waiter);
        let item = Item { ticket, deadline: Instant::now() + wait, bytes };
        if let Err(refused) = self.core.submit(slot, item) {
            let waiter = self.slab().take(ticket);
            waiter.map_or(Ok(()), |waiter| waiter.resolve(py, &Answer::bare(refused)))?;
        }
        Ok(())
    }

    pub fn has_terms(&self, slot: usize) -> bool {
        self.terms().contains_key(&slot)
    }

    /// Claim with a plain body: see `Call.send`, which this is one half of.
    pub fn claim_plain<'py>(
        &self,
        py: Python<'py>,
        slot: usize,
        body: &[u8],
        key: Option<&str>,
        pending: Pending,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(lease) = self.terms().get(&slot).cloned() else { return Ok(None) };
        let Some(ask) = plain::read(&lease.terms, body) else { return Ok(None) };
        if key.is_none() && lease.is_sold_out_now() {
            pending.refuse(py, &lease.sold_out)?;
            return Ok(Some(PyBool::new(py, true).to_owned().into_any()));
        }
        let Some(kind) = self.core.kind(slot) else { return Ok(None) };
        let fingerprint = plain::hex(ask.fingerprint(&lease.terms));
        let bytes = kind.item(key.unwrap_or_default(), &fingerprint, &ask.customer, &ask.payload());
        let future = self.create_future.bind(py).call0()?;
        let wait_ms = pending.shared.wait.as_millis() as i64;
        let reply = Some(Box::new(Reply { pending, ask, lease }));
        let waiter = Waiter { future: future.clone().unbind(), reply };
        self.queue(py, slot, waiter, bytes, wait_ms)?;
        Ok(Some(future))
    }
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
        let server = Server { address, username, password, db };
        let shared = core.clone();
        let thread = std::thread::Builder::new()
            .name("vauchflow-batcher".to_owned())
            .spawn(move || flight::run(&shared, server))?;
        Ok(Self {
            core,
            create_future: r#loop.getattr("create_future")?.unbind(),
            slab: Mutex::default(),
            terms: Mutex::default(),
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

    fn close_slot(&self, slot: usize) -> PyResult<()> {
        self.terms().remove(&slot);
        self.core.close_slot(slot).ok_or_else(no_slot)
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
        let future = self.create_future.bind(py).call0()?;
        let waiter = Waiter { future: future.clone().unbind(), reply: None };
        self.queue(py, slot, waiter, bytes, deadline_ms)?;
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
        let sold_out_until = Mutex::default();
        let terms = LeaseTerms { terms, lease, receipts, subject, sold_out, sold_out_until };
        self.terms().insert(slot, Arc::new(terms));
        Ok(())
    }

    /// Forget that a lease was sold out: it has grown.
    fn forget_sold_out(&self, slot: usize) {
        if let Some(lease) = self.terms().get(&slot) {
            *lease.until() = None;
        }
    }

    /// Resolve the futures whose answers have come. The loop calls it when `fileno` is readable.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        let answers = self.core.drain();
        let waiting: Vec<_> = {
            let mut slab = self.slab();
            answers.into_iter().map(|(ticket, answer)| (slab.take(ticket), answer)).collect()
        };
        for (waiter, answer) in waiting {
            let Some(waiter) = waiter else { continue };
            let future = waiter.future.bind(py);
            if !future.call_method0(intern!(py, "done"))?.is_truthy()? {
                // One future that can't be resolved (its loop is closed) must not starve the rest.
                if let Err(error) = waiter.resolve(py, &answer) {
                    error.write_unraisable(py, Some(future));
                }
            }
        }
        Ok(())
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

fn fields<'py>(py: Python<'py>, answer: &Answer) -> PyResult<Bound<'py, PyTuple>> {
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

impl Waiter {
    /// Answer: a plain claim's win, "sold out" or 503 is sent, after which its future is None;
    /// anything else goes to the future, beside the lease's subject where the claim was plain.
    fn resolve(&self, py: Python<'_>, answer: &Answer) -> PyResult<()> {
        let result = match &self.reply {
            None => fields(py, answer)?.into_any().unbind(),
            Some(reply) => match answer.outcome {
                Outcome::Won => {
                    let lease = &reply.lease.lease;
                    let told = lease.told(answer.seq, answer.remaining, answer.at_ms);
                    let receipts = Some(&reply.lease.receipts);
                    let body = reply.ask.answer(&reply.lease.terms, &told, receipts);
                    reply.pending.win(py, &body)?;
                    py.None()
                }
                Outcome::SoldOut => {
                    *reply.lease.until() = Some(Instant::now() + SOLD_OUT);
                    reply.pending.refuse(py, &reply.lease.sold_out)?;
                    py.None()
                }
                Outcome::Overloaded | Outcome::Busy => {
                    reply.pending.overload(py)?;
                    py.None()
                }
                Outcome::Expired => {
                    reply.pending.too_late(py)?;
                    py.None()
                }
                _ => (reply.lease.subject.clone_ref(py), fields(py, answer)?).into_py_any(py)?,
            },
        };
        self.future.bind(py).call_method1(intern!(py, "set_result"), (result,))?;
        Ok(())
    }
}
