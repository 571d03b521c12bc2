//! Plain redeems that `PostgreSQL` decides: gathered by voucher, and answered a batch at a time.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use tokio::sync::oneshot;

use super::PlainTerms;
use super::door::{End, Shared};
use super::plain_call::Told;
use crate::commits::{self, Columns, Item, Queue, Waiting};
use crate::plain;

struct Waiter {
    task: Mutex<Option<oneshot::Sender<End>>>,
    shared: Arc<Shared>,
}

impl Waiter {
    /// Tell it once. The client may be gone: what was decided stands.
    fn tell(&self, what: impl FnOnce() -> End) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(task) = task.filter(|task| !task.is_closed()) {
            let _ = task.send(what());
        }
    }
}

struct State {
    queue: Queue<Waiter>,
    is_closed: bool,
}

/// The plain redeems of one voucher, under one version of its terms, that wait for a commit.
pub struct Redeems {
    subject: Py<PyAny>,
    terms: Arc<plain::Terms>,
    state: Mutex<State>,
}

impl Redeems {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_open(&self) -> bool {
        !self.state().is_closed
    }

    /// Queue a plain request; nothing when the general way must take it. Beside what it waits for:
    /// whether nobody flies this queue yet, and the caller must have it begun.
    pub fn push(
        &self,
        body: &[u8],
        key: Option<&str>,
        shared: &Arc<Shared>,
    ) -> Option<(oneshot::Receiver<End>, bool)> {
        let (ask, fingerprint) = commits::read(&self.terms, body)?;
        let (task, waits) = oneshot::channel();
        let mut state = self.state();
        if state.is_closed {
            return None;
        }
        shared.queued.fetch_add(1, Ordering::Relaxed);
        let begins = state.queue.push(Waiting {
            ask,
            fingerprint,
            key: key.map(str::to_owned),
            deadline: shared.deadline(),
            waiter: Waiter { task: Mutex::new(Some(task)), shared: shared.clone() },
        });
        Some((waits, begins))
    }
}

/// A queue as Python has it. `subject` is what words the answers that are not wins.
#[pyclass(frozen, module = "vauchflow_hotpath._native")]
pub struct CommitQueue(pub Arc<Redeems>);

#[pymethods]
impl CommitQueue {
    #[new]
    fn new(subject: Py<PyAny>, terms: &PlainTerms) -> Self {
        let state = State { queue: Queue::default(), is_closed: false };
        let terms = terms.0.clone();
        Self(Arc::new(Redeems { subject, terms, state: Mutex::new(state) }))
    }

    #[getter]
    fn subject<'py>(&self, py: Python<'py>) -> Bound<'py, PyAny> {
        self.0.subject.bind(py).clone()
    }

    /// Take no more: what waits is still flown.
    fn close(&self) {
        self.0.state().is_closed = true;
    }

    /// Take the next batch; None ends the flying, and the next request begins it anew. Who waited
    /// too long is told so here.
    fn take(&self, batch_max: usize) -> PyResult<Option<CommitBatch>> {
        let mut failed = None;
        let taken = self.0.state().queue.take(batch_max, &mut |bytes| {
            failed = fill(bytes).err();
        });
        for late in taken.late {
            late.shared.queued.fetch_sub(1, Ordering::Relaxed);
            late.tell(|| End::Late);
        }
        if let Some(error) = failed {
            return Err(PyOSError::new_err(error));
        }
        let Some(first) = taken.batch.first() else { return Ok(None) };
        first.waiting.waiter.shared.queued.fetch_sub(taken.batch.len(), Ordering::Relaxed);
        Ok(Some(CommitBatch { redeems: self.0.clone(), items: taken.batch }))
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
    redeems: Arc<Redeems>,
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
        start: usize,
        end: usize,
        seq: u64,
        remaining: Option<i64>,
        at_ms: i64,
    ) -> PyResult<()> {
        for (place, item) in self.part(start, end)?.iter().enumerate() {
            let (seq, remaining) = (seq + place as u64, remaining.map(|left| left - place as i64));
            let told = plain::Told { id: item.id, seq, remaining, at_ms };
            let ask = &item.waiting.ask;
            item.waiting.waiter.tell(|| End::Won(ask.answer(&self.redeems.terms, &told, None)));
        }
        Ok(())
    }

    /// Hand the request at this place, with the queue's subject, to who words its answer.
    fn tell(&self, py: Python<'_>, at: usize, decision: Py<PyAny>) -> PyResult<()> {
        let subject = self.redeems.subject.clone_ref(py);
        self.waiter(at)?.tell(|| End::Told(Told::Redeem(subject, decision)));
        Ok(())
    }

    /// Raise an error to the request at this place.
    fn fail(&self, at: usize, error: Py<PyAny>) -> PyResult<()> {
        self.waiter(at)?.tell(|| End::Told(Told::Failed(error)));
        Ok(())
    }
}
