//! A worker's listener: a thread of its own, from the first connection to the last answer.

use std::net::TcpListener;
use std::os::fd::{BorrowedFd, RawFd};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use tokio::sync::oneshot;

use super::door::Door;
use crate::listener;

/// What ends the thread, and the thread.
type Running = (oneshot::Sender<()>, JoinHandle<std::io::Result<()>>);

#[pyclass(frozen, module = "vauchflow_hotpath._native")]
pub struct Listener {
    thread: Mutex<Option<Running>>,
}

#[pymethods]
impl Listener {
    /// Accept at a listening socket, which stays the caller's: what `door` takes is answered here,
    /// the rest by the server that listens on the Unix socket `upstream`.
    #[new]
    #[allow(unsafe_code)]
    fn new(fd: RawFd, door: &Door, upstream: PathBuf) -> PyResult<Self> {
        if fd < 0 {
            return Err(PyOSError::new_err("no such descriptor"));
        }
        // SAFETY: the caller's descriptor is open during this call, and only duplicated.
        let socket = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
        let (end, ended) = oneshot::channel();
        let hot = door.shared.clone();
        let thread = std::thread::Builder::new()
            .name("vauchflow-listener".to_owned())
            .spawn(move || listener::run(TcpListener::from(socket), hot, &upstream, ended))?;
        Ok(Self { thread: Mutex::new(Some((end, thread))) })
    }

    /// Accept no more and answer what is under way, for at most 3 s. Blocks, without holding the
    /// interpreter; the loop must go on meanwhile.
    fn close(&self, py: Python<'_>) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((end, thread)) = thread {
            drop(end);
            py.detach(|| drop(thread.join()));
        }
    }
}
