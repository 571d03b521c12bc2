//! Waiting for many sockets, or until an instant, whichever comes first (Linux).
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// Events taken in one wait; what is left comes at once in the next.
const EVENTS_MAX: usize = 256;

pub struct Ready {
    fd: RawFd,
    events: Vec<libc::epoll_event>,
}

impl Ready {
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed; the results are checked.
        let fd = unsafe {
            // Sleeps end within a microsecond of their time, not within the usual fifty.
            libc::prctl(libc::PR_SET_TIMERSLACK, 1_u64);
            libc::epoll_create1(libc::EPOLL_CLOEXEC)
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            fd,
            events: vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS_MAX],
        })
    }

    /// Watch a socket for bytes to read and for its end, under a token.
    pub fn watch(&self, socket: RawFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event {
            events: libc::EPOLLIN as u32,
            u64: token,
        };
        // SAFETY: the event outlives the call, and both descriptors are open.
        if unsafe { libc::epoll_ctl(self.fd, libc::EPOLL_CTL_ADD, socket, &raw mut event) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Wait at most `timeout`; returns the tokens that are ready.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<Vec<u64>> {
        let until = libc::timespec {
            tv_sec: timeout.as_secs() as libc::time_t,
            tv_nsec: libc::c_long::from(timeout.subsec_nanos() as i32),
        };
        let room = i32::try_from(self.events.len()).unwrap_or(i32::MAX);
        // SAFETY: the buffer has room for that many events, and the time outlives the call.
        let count = unsafe {
            libc::epoll_pwait2(
                self.fd,
                self.events.as_mut_ptr(),
                room,
                &raw const until,
                std::ptr::null(),
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted {
                Ok(Vec::new())
            } else {
                Err(error)
            };
        }
        Ok(self.events[..count as usize]
            .iter()
            .map(|event| event.u64)
            .collect())
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        // SAFETY: the descriptor is ours and is not used again.
        unsafe { libc::close(self.fd) };
    }
}
