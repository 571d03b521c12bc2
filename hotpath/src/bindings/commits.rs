//! Plain redeems that `PostgreSQL` decides: gathered by voucher, and answered a batch at a time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyTuple};

use super::PlainTerms;
use super::door::Pending;
use crate::commits::{self, Columns, Item, Queue, Waiting};
use crate::plain;

struct Waiter {
    future: Py<PyAny>,
    pending: Pending,
}

impl Waiter {
    fn is_waiting(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(!self.future.bind(py).call_method0(intern!(py, "done"))?.is_truthy()?)
    }

    fn resolve(&self, py: Python<'_>, with: impl for<'p> IntoPyObject<'p>) -> PyResult<()> {
        if self.is_waiting(py)? {
            self.future.bind(py).call_method1(intern!(py, "set_result"), (with,))?;
        }
        Ok(())
    }

    fn win(&self, py: Python<'_>, body: &[u8]) -> PyResult<()> {
        if self.is_waiting(py)? {
            self.pending.win(py, body)?;
        }
        self.resolve(py, py.None())
    }
}

struct State {
    queue: Queue<Waiter>,
    is_closed: bool,
}

/// The plain redeems of one voucher, under one version of its terms, that wait for a commit.
#[pyclass(frozen, module = "vauchflow_hotpath._native")]
pub struct CommitQueue {
    create_future: Py<PyAny>,
    fly: Py<PyAny>,
    subject: Py<PyAny>,
    terms: Arc<plain::Terms>,
    state: Mutex<State>,
}

impl CommitQueue {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_open(&self) -> bool {
        !self.state().is_closed
    }

    pub fn push<'py>(
        &self,
        py: Python<'py>,
        body: &[u8],
        key: Option<&str>,
        pending: Pending,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        if !self.is_open() {
            return Ok(None);
        }
        let Some((ask, fingerprint)) = commits::read(&self.terms, body) else { return Ok(None) };
        let shared = pending.shared.clone();
        if shared.queued.load(Ordering::Relaxed) >= shared.queue_max {
            pending.overload(py)?;
            return Ok(Some(PyBool::new(py, true).to_owned().into_any()));
        }
        shared.queued.fetch_add(1, Ordering::Relaxed);
        let future = self.create_future.bind(py).call0()?;
        let begins = self.state().queue.push(Waiting {
            ask,
            fingerprint,
            key: key.map(str::to_owned),
            deadline: Instant::now() + shared.wait,
            waiter: Waiter { future: future.clone().unbind(), pending },
        });
        if begins {
            self.fly.bind(py).call0()?;
        }
        Ok(Some(future))
    }
}

#[pymethods]
impl CommitQueue {
    #[new]
    fn new(
        create_future: Py<PyAny>,
        fly: Py<PyAny>,
        subject: Py<PyAny>,
        terms: &PlainTerms,
    ) -> Self {
        let state = State { queue: Queue::default(), is_closed: false };
        let terms = terms.0.clone();
        Self { create_future, fly, subject, terms, state: Mutex::new(state) }
    }

    /// Take no more: what waits is still flown.
    fn close(&self) {
        self.state().is_closed = true;
    }

    /// Take the next batch; None ends the flying, and the next request begins it anew. Who waited
    /// too long is told so here.
    fn take(&self, py: Python<'_>, batch_max: usize) -> PyResult<Option<CommitBatch>> {
        let mut failed = None;
        let taken = self.state().queue.take(batch_max, &mut |bytes| {
            failed = fill(bytes).err();
        });
        for late in &taken.late {
            late.pending.shared.queued.fetch_sub(1, Ordering::Relaxed);
            if late.is_waiting(py)? {
                late.pending.too_late(py)?;
            }
            late.resolve(py, py.None())?;
        }
        if let Some(error) = failed {
            return Err(PyOSError::new_err(error));
        }
        let Some(first) = taken.batch.first() else { return Ok(None) };
        let shared = &first.waiting.waiter.pending.shared;
        shared.queued.fetch_sub(taken.batch.len(), Ordering::Relaxed);
        let (subject, terms) = (self.subject.clone_ref(py), self.terms.clone());
        Ok(Some(CommitBatch { subject, terms, items: taken.batch }))
    }
}

/// Fill with the operating system's randomness; at most 256 bytes a call.
#[allow(unsafe_code)]
fn fill(bytes: &mut [u8]) -> std::io::Result<()> {
    for part in bytes.chunks_mut(256) {
        // SAFETY: the part outlives the call and its length is given.
        if unsafe { libc::getentropy(part.as_mut_ptr().cast(), part.len()) } != 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    Ok(())
}

/// One batch on its way. Each request in it is answered exactly once; later calls do nothing.
#[pyclass(frozen, module = "vauchflow_hotpath._native")]
pub struct CommitBatch {
    subject: Py<PyAny>,
    terms: Arc<plain::Terms>,
    items: Vec<Item<Waiter>>,
}

impl CommitBatch {
    fn part(&self, start: usize, end: usize) -> PyResult<&[Item<Waiter>]> {
        let part = self.items.get(start..end);
        part.ok_or_else(|| PyValueError::new_err("no such part of the batch"))
    }

    fn waiter(&self, at: usize) -> PyResult<&Waiter> {
        let item = self.items.get(at);
        let item = item.ok_or_else(|| PyValueError::new_err("no such request in the batch"))?;
        Ok(&item.waiting.waiter)
    }

    fn win(
        &self,
        py: Python<'_>,
        item: &Item<Waiter>,
        seq: u64,
        remaining: Option<i64>,
        at_ms: i64,
    ) -> PyResult<()> {
        let told = plain::Told { id: item.id, seq, remaining, at_ms };
        item.waiting.waiter.win(py, &item.waiting.ask.answer(&self.terms, &told, None))
    }
}

#[pymethods]
impl CommitBatch {
    fn __len__(&self) -> usize {
        self.items.len()
    }

    /// The columns of the requests from `start` up to `end`, as array literals: ids, keys,
    /// fingerprints, customers, order values, discounts, order ids.
    fn columns<'py>(
        &self,
        py: Python<'py>,
        start: usize,
        end: usize,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let columns = Columns::of(self.part(start, end)?.iter());
        PyTuple::new(
            py,
            [
                columns.ids,
                columns.keys,
                columns.fingerprints,
                columns.customers,
                columns.order_values,
                columns.discounts,
                columns.order_ids,
            ],
        )
    }

    /// The requests from `start` up to `end` have won: numbers rise from `seq`, and what is left
    /// falls from `remaining`.
    fn win_from(
        &self,
        py: Python<'_>,
        start: usize,
        end: usize,
        seq: u64,
        remaining: Option<i64>,
        at_ms: i64,
    ) -> PyResult<()> {
        for (place, item) in self.part(start, end)?.iter().enumerate() {
            let remaining = remaining.map(|left| left - place as i64);
            self.win(py, item, seq + place as u64, remaining, at_ms)?;
        }
        Ok(())
    }

    /// Hand the request at this place, with the queue's subject, to who words its answer.
    fn tell(&self, py: Python<'_>, at: usize, decision: Py<PyAny>) -> PyResult<()> {
        self.waiter(at)?.resolve(py, (self.subject.clone_ref(py), decision))
    }

    /// Raise an error to the request at this place.
    fn fail(&self, py: Python<'_>, at: usize, error: Py<PyAny>) -> PyResult<()> {
        let waiter = self.waiter(at)?;
        if waiter.is_waiting(py)? {
            waiter.future.bind(py).call_method1(intern!(py, "set_exception"), (error,))?;
        }
        Ok(())
    }
}
