//! A plain request that was decided, and whose answer Python words.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tokio::sync::oneshot;

use super::batcher::fields;
use super::door::{Learnt, header_map};
use crate::outcome::Answer;

/// What a request was told: whom it asked, and the decision.
pub enum Told {
    Claim(Arc<Py<PyAny>>, Answer),
    Redeem(Py<PyAny>, Py<PyAny>),
    /// Asking failed with this exception.
    Failed(Py<PyAny>),
}

/// An answer in Python's own words.
pub struct Own {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// One request that waits for Python's words; `answer` it once.
#[pyclass(frozen, module = "vauchflow_hotpath._native")]
pub struct PlainCall {
    learnt: Arc<Learnt>,
    key: Option<String>,
    #[pyo3(get)]
    request_id: String,
    body: Bytes,
    told: Told,
    reply: Mutex<Option<oneshot::Sender<Own>>>,
}

impl PlainCall {
    pub fn new(
        learnt: Arc<Learnt>,
        key: Option<String>,
        request_id: String,
        body: Bytes,
        told: Told,
        reply: oneshot::Sender<Own>,
    ) -> Self {
        Self { learnt, key, request_id, body, told, reply: Mutex::new(Some(reply)) }
    }
}

#[pymethods]
impl PlainCall {
    #[getter]
    fn route(&self) -> &'static str {
        self.learnt.route.name()
    }

    #[getter]
    fn path(&self) -> &str {
        &self.learnt.path
    }

    #[getter]
    fn authorization<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.learnt.authorization.as_bytes())
    }

    #[getter]
    fn idempotency_key<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyBytes>> {
        self.key.as_ref().map(|key| PyBytes::new(py, key.as_bytes()))
    }

    #[getter]
    fn body<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.body)
    }

    /// Whom it asked and the decision: a claim's fields, or what the queue was told.
    ///
    /// Raises: the exception that asking failed with.
    #[getter]
    fn told<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        match &self.told {
            Told::Claim(subject, answer) => {
                Ok((subject.bind(py).clone(), fields(py, answer)?.into_any()))
            }
            Told::Redeem(subject, decision) => {
                Ok((subject.bind(py).clone(), decision.bind(py).clone()))
            }
            Told::Failed(error) => Err(PyErr::from_value(error.bind(py).clone())),
        }
    }

    /// Send the answer. The client may be gone: what was decided stands.
    fn answer(&self, status: u16, headers: Vec<(String, String)>, body: Vec<u8>) -> PyResult<()> {
        let status =
            StatusCode::from_u16(status).map_err(|e| PyValueError::new_err(e.to_string()))?;
        let own = Own { status, headers: header_map(headers)?, body: body.into() };
        let reply = self.reply.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(reply) = reply {
            let _ = reply.send(own);
        }
        Ok(())
    }
}
