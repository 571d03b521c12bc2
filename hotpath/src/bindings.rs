//! The Python face of the batcher; the only file that names pyo3.
//!
//! Futures live here, in a slab on the loop's side; the I/O thread knows them by ticket only. The
//! thread never attaches to the interpreter: `drain`, called by the loop, resolves what has come.
// Converted arguments arrive by value; a borrowed path would need a lifetime pyo3 does not give.
#![allow(clippy::needless_pass_by_value)]

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use pyo3::{IntoPyObjectExt, intern};

use crate::batcher::{Core, Item, Limits};
use crate::connection::{Address, Server};
use crate::flight;
use crate::marks::{self, parse_uuid, uuid_text};
use crate::outcome::{Answer, Outcome};
use crate::plain;

/// 128 bits in hex; claim.lua cuts records at this width.
const FINGERPRINT_CHARS: usize = 32;
/// Longest wait for an answer: an hour, so that a deadline never overflows the clock.
const DEADLINE_MS_MAX: i64 = 3_600_000;

/// Who waits for an answer; a plain claim's win is sent to its client from here.
struct Waiter {
    future: Py<PyAny>,
    reply: Option<Box<Reply>>,
}

/// What sends a plain claim's win: the request's protocol, the headers, the claim and its terms.
struct Reply {
    protocol: Py<PyAny>,
    headers: Py<PyAny>,
    ask: plain::Ask,
    lease: Arc<LeaseTerms>,
}

struct LeaseTerms {
    terms: Arc<plain::Terms>,
    lease: plain::Lease,
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
struct Batcher {
    core: Arc<Core>,
    create_future: Py<PyAny>,
    slab: Mutex<Slab>,
    terms: Mutex<HashMap<usize, Arc<LeaseTerms>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Batcher {
    fn slab(&self) -> std::sync::MutexGuard<'_, Slab> {
        self.slab.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn terms(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Arc<LeaseTerms>>> {
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
        let future = waiter.future.clone_ref(py);
        let wait = Duration::from_millis(deadline_ms.clamp(0, DEADLINE_MS_MAX) as u64);
        let ticket = self.slab().put(waiter);
        let item = Item { ticket, deadline: Instant::now() + wait, bytes };
        if let Err(refused) = self.core.submit(slot, item) {
            self.slab().take(ticket);
            resolve(future.bind(py), &Answer::bare(refused))?;
        }
        Ok(())
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
                        queue_max=4096, flight_timeout_ms=2000, marks_path=None))]
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
        marks_path: Option<PathBuf>,
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
        let marks = marks::Marks::open(marks_path.as_deref())?;
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

    /// Say with what the plain claims of a lease's slot are priced and answered.
    fn set_terms(
        &self,
        slot: usize,
        terms: &PlainTerms,
        lease_id: &str,
        tag: u64,
        seq_base: u64,
    ) -> PyResult<()> {
        let lease = plain::Lease { id: lease_uuid(lease_id)?, tag, seq_base };
        let terms = LeaseTerms { terms: terms.0.clone(), lease };
        self.terms().insert(slot, Arc::new(terms));
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    /// Claim with a plain body. A win is sent through `protocol` and the future gets None; any
    /// other answer is the future's, as of `claim`. None at once: the body is not plain, or the
    /// slot has no terms, and nothing was done.
    fn claim_plain<'py>(
        &self,
        py: Python<'py>,
        slot: usize,
        body: &[u8],
        key: Option<&str>,
        deadline_ms: i64,
        protocol: Py<PyAny>,
        headers: Py<PyAny>,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let Some(lease) = self.terms().get(&slot).cloned() else { return Ok(None) };
        let Some(ask) = plain::read(&lease.terms, body) else { return Ok(None) };
        let kind = self.core.kind(slot).ok_or_else(no_slot)?;
        let key = key.unwrap_or_default();
        let fingerprint = plain::hex(ask.fingerprint(&lease.terms));
        let bytes = kind.item(key, &fingerprint, &ask.customer, &ask.payload());
        let future = self.create_future.bind(py).call0()?;
        let reply = Some(Box::new(Reply { protocol, headers, ask, lease }));
        let waiter = Waiter { future: future.clone().unbind(), reply };
        self.queue(py, slot, waiter, bytes, deadline_ms)?;
        Ok(Some(future))
    }

    /// Resolve the futures whose answers have come. The loop calls it when `fileno` is readable.
    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        let answers = self.core.drain();
        let waiting: Vec<_> = {
            let mut slab = self.slab();
            answers.into_iter().map(|(ticket, answer)| (slab.take(ticket), answer)).collect()
        };
        for (waiter, answer) in waiting {
            let Some(Waiter { future, reply }) = waiter else { continue };
            let future = future.bind(py);
            if !future.call_method0(intern!(py, "done"))?.is_truthy()? {
                let resolved = match reply {
                    Some(reply) if answer.outcome == Outcome::Won => send(future, &reply, &answer),
                    _ => resolve(future, &answer),
                };
                // One future that can't be resolved (its loop is closed) must not starve the rest.
                if let Err(error) = resolved {
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

fn no_slot() -> PyErr {
    PyValueError::new_err("no such slot")
}

fn lease_uuid(lease_id: &str) -> PyResult<[u8; 16]> {
    let uuid = parse_uuid(lease_id).filter(|uuid| *uuid != [0; 16]);
    uuid.ok_or_else(|| PyValueError::new_err("a lease id is a uuid in canonical lower-case form"))
}

fn resolve(future: &Bound<'_, PyAny>, answer: &Answer) -> PyResult<()> {
    let py = future.py();
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
    future.call_method1(intern!(py, "set_result"), (PyTuple::new(py, fields)?,))?;
    Ok(())
}

/// Send a plain claim's win to its client, who may be gone: what was decided stands.
fn send(future: &Bound<'_, PyAny>, reply: &Reply, answer: &Answer) -> PyResult<()> {
    let py = future.py();
    let told = reply.lease.lease.told(answer.seq, answer.remaining, answer.at_ms);
    let body = reply.ask.answer(&reply.lease.terms, &told);
    let body = PyBytes::new(py, &body);
    let headers = reply.headers.bind(py);
    let protocol = reply.protocol.bind(py);
    let _ = protocol.call_method1(intern!(py, "response_bytes"), (200, headers, body));
    future.call_method1(intern!(py, "set_result"), (py.None(),))?;
    Ok(())
}

/// What plain bodies are read, priced and answered with; see `plain`.
#[pyclass(frozen, module = "vauchflow_hotpath._native")]
struct PlainTerms(Arc<plain::Terms>);

#[pymethods]
impl PlainTerms {
    #[new]
    #[allow(clippy::too_many_arguments)]
    fn new(
        code_norm: String,
        code_json: String,
        currency: String,
        exponent: usize,
        discount_bp: Option<u64>,
        discount_minor: u64,
        min_order_minor: u64,
        tail: String,
    ) -> Self {
        Self(Arc::new(plain::Terms {
            code_norm,
            code_json,
            currency,
            exponent,
            discount_bp,
            discount_minor,
            min_order_minor,
            tail,
        }))
    }

    /// Read and price a body; None when it is not plain.
    fn read(&self, body: &[u8]) -> Option<PlainAsk> {
        plain::read(&self.0, body).map(|ask| PlainAsk { ask, terms: self.0.clone() })
    }
}

/// A plain body that was read and priced.
#[pyclass(frozen, module = "vauchflow_hotpath._native")]
struct PlainAsk {
    ask: plain::Ask,
    terms: Arc<plain::Terms>,
}

#[pymethods]
impl PlainAsk {
    #[getter]
    fn customer_id(&self) -> &str {
        &self.ask.customer
    }

    #[getter]
    fn order_id(&self) -> Option<&str> {
        self.ask.order_id.as_deref()
    }

    #[getter]
    fn order_value_minor(&self) -> u64 {
        self.ask.order_value_minor
    }

    #[getter]
    fn discount_minor(&self) -> u64 {
        self.ask.discount_minor
    }

    #[getter]
    fn fingerprint<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.ask.fingerprint(&self.terms))
    }

    /// The answer to a redemption: the id's 16 bytes, its number, what was left, and when.
    fn answer<'py>(
        &self,
        py: Python<'py>,
        id: &[u8],
        seq: u64,
        remaining: Option<i64>,
        at_ms: i64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let id = id.try_into().map_err(|_| PyValueError::new_err("an id is 16 bytes"))?;
        let told = plain::Told { id: u128::from_be_bytes(id), seq, remaining, at_ms };
        Ok(PyBytes::new(py, &self.ask.answer(&self.terms, &told)))
    }
}

/// The marks file by itself, for the backend written in Python.
#[pyclass(frozen, module = "vauchflow_hotpath._native")]
struct Marks(marks::Marks);

#[pymethods]
impl Marks {
    #[new]
    #[pyo3(signature = (path=None))]
    fn new(path: Option<PathBuf>) -> PyResult<Self> {
        Ok(Self(marks::Marks::open(path.as_deref())?))
    }

    #[getter]
    fn were_lost(&self) -> bool {
        self.0.were_lost()
    }

    fn take(&self, lease_id: &str) -> PyResult<usize> {
        let record = self.0.take(lease_uuid(lease_id)?);
        record.ok_or_else(|| PyRuntimeError::new_err("the marks file has no room for a lease"))
    }

    /// Free every record of a lease that is not named.
    fn keep(&self, lease_ids: Vec<String>) -> PyResult<()> {
        let leases = lease_ids.iter().map(|lease_id| lease_uuid(lease_id));
        let leases = leases.collect::<PyResult<HashSet<_>>>()?;
        self.0.retain(|lease| leases.contains(&lease));
        Ok(())
    }

    fn get(&self, record: usize) -> PyResult<u64> {
        known(record).map(|record| self.0.get(record))
    }

    fn raise_to(&self, record: usize, seq: u64) -> PyResult<()> {
        known(record).map(|record| self.0.raise_to(record, seq))
    }

    fn free(&self, record: usize) -> PyResult<()> {
        known(record).map(|record| self.0.free(record))
    }
}

fn known(record: usize) -> PyResult<usize> {
    let is_known = (1..=marks::RECORDS).contains(&record);
    is_known.then_some(record).ok_or_else(|| PyValueError::new_err("no such record"))
}

/// Read another process's marks: lease id to mark, or None when they cannot be known.
#[pyfunction]
fn read_marks(py: Python<'_>, path: PathBuf) -> PyResult<Option<Bound<'_, PyDict>>> {
    let Some(found) = marks::read(&path).map_err(PyOSError::new_err)? else {
        return Ok(None);
    };
    let by_lease = PyDict::new(py);
    for (lease, mark) in found {
        by_lease.set_item(uuid_text(lease), mark)?;
    }
    Ok(Some(by_lease))
}

#[pymodule(gil_used = false)]
mod _native {
    #[pymodule_export]
    use super::{Batcher, Marks, PlainAsk, PlainTerms, read_marks};
    #[pymodule_export]
    const BUILD_PROFILE: &str = if cfg!(debug_assertions) { "debug" } else { "release" };
    #[pymodule_export]
    const CLAIM_LUA: &str = crate::script::CLAIM_LUA;
    #[pymodule_export]
    const CROWD_LUA: &str = crate::script::CROWD_LUA;
    #[pymodule_export]
    const LEASE_LUA: &str = crate::script::LEASE_LUA;
    #[pymodule_export]
    const FACTS_LUA: &str = crate::script::FACTS_LUA;
}
