//! The Python face of it all; the only room that names pyo3.
//!
//! Futures live here, on the loop's side; the I/O thread knows them by ticket only. The thread
//! never attaches to the interpreter: `drain`, called by the loop, resolves what has come.
// Converted arguments arrive by value; a borrowed path would need a lifetime pyo3 does not give.
#![allow(clippy::needless_pass_by_value)]

mod batcher;
mod commits;
mod door;
mod listener;
mod plain_call;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::marks::{self, parse_uuid, uuid_text};
use crate::plain;
use crate::stream;

fn no_slot() -> PyErr {
    PyValueError::new_err("no such slot")
}

fn lease_uuid(lease_id: &str) -> PyResult<[u8; 16]> {
    let uuid = parse_uuid(lease_id).filter(|uuid| *uuid != [0; 16]);
    uuid.ok_or_else(|| PyValueError::new_err("a lease id is a uuid in canonical lower-case form"))
}

/// What plain bodies are read, priced and answered with; see `plain`.
#[pyclass(frozen, module = "vauchflow_hotpath._native")]
pub struct PlainTerms(Arc<plain::Terms>);

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
}

/// A worker's marks file, shared by all its batchers.
#[pyclass(frozen, module = "vauchflow_hotpath._native")]
struct Marks(Arc<marks::Marks>);

#[pymethods]
impl Marks {
    #[new]
    #[pyo3(signature = (path=None))]
    fn new(path: Option<PathBuf>) -> PyResult<Self> {
        Ok(Self(Arc::new(marks::Marks::open(path.as_deref())?)))
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

/// An entry of a stream as the client library gives it: its id and its fields.
type RawEntry<'py> = (Bound<'py, PyBytes>, Bound<'py, PyDict>);

/// Turn the first entries of a stream into the columns of `vf.settle_wins`, as array literals:
/// at most `rows_max` rows, or one entry. Returns how many entries and rows those are; None when
/// one of them can't be read.
#[pyfunction]
fn settle_columns<'py>(
    py: Python<'py>,
    entries: Vec<RawEntry<'py>>,
    lease_id: &str,
    tag: u64,
    rows_max: usize,
) -> PyResult<Option<(usize, usize, Bound<'py, PyTuple>)>> {
    let lease = plain::Lease { id: lease_uuid(lease_id)?, tag, seq_base: 0 };
    let mut read = Vec::with_capacity(entries.len());
    let packed: Vec<Option<Bound<'py, PyBytes>>> =
        entries.iter().map(|(_, fields)| field(fields, b"d")).collect::<PyResult<_>>()?;
    for ((_, fields), packed) in entries.iter().zip(&packed) {
        let (Some(first), Some(at_ms), Some(remaining), Some(packed)) =
            (number(fields, b"f")?, number(fields, b"t")?, number(fields, b"r")?, packed)
        else {
            return Ok(None);
        };
        let Ok(first) = u64::try_from(first) else { return Ok(None) };
        read.push(stream::Entry { first, at_ms, remaining, packed: packed.as_bytes() });
    }
    let Some((taken, told)) = stream::columns(&read, &lease, rows_max) else { return Ok(None) };
    Ok(Some((taken, told.rows, PyTuple::new(py, told.columns)?)))
}

fn field<'py>(
    fields: &Bound<'py, PyDict>,
    name: &'static [u8],
) -> PyResult<Option<Bound<'py, PyBytes>>> {
    let value = fields.get_item(PyBytes::new(fields.py(), name))?;
    Ok(value.and_then(|value| value.cast_into::<PyBytes>().ok()))
}

fn number(fields: &Bound<'_, PyDict>, name: &'static [u8]) -> PyResult<Option<i64>> {
    let value = field(fields, name)?;
    let text = value.as_ref().and_then(|value| std::str::from_utf8(value.as_bytes()).ok());
    Ok(text.and_then(|text| text.parse().ok()))
}

#[pymodule(gil_used = false)]
mod _native {
    #[pymodule_export]
    use super::batcher::Batcher;
    #[pymodule_export]
    use super::commits::{CommitBatch, CommitQueue};
    #[pymodule_export]
    use super::door::Door;
    #[pymodule_export]
    use super::listener::Listener;
    #[pymodule_export]
    use super::plain_call::PlainCall;
    #[pymodule_export]
    use super::{Marks, PlainTerms, read_marks, settle_columns};
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
    #[pymodule_export]
    const RATE_LUA: &str = crate::script::RATE_LUA;
}
