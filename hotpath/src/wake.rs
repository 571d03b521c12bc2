//! Wake-ups across threads through a file descriptor, and waiting for one or for a socket.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::RawFd;
use std::time::Duration;

/// A descriptor that is readable from `signal` until `clear`. An eventfd on Linux, a pipe elsewhere.
pub struct Wake {
    read_end: RawFd,
    write_end: RawFd,
}

impl Wake {
    #[cfg(target_os = "linux")]
    pub fn new() -> io::Result<Self> {
        // SAFETY: no pointers are passed; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { read_end: fd, write_end: fd })
    }

    #[cfg(not(target_os = "linux"))]
    pub fn new() -> io::Result<Self> {
        let mut ends = [0; 2];
        // SAFETY: the array has the two places pipe fills; the results are checked.
        unsafe {
            if libc::pipe(ends.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            for end in ends {
                libc::fcntl(end, libc::F_SETFL, libc::O_NONBLOCK);
                libc::fcntl(end, libc::F_SETFD, libc::FD_CLOEXEC);
            }
        }
        Ok(Self { read_end: ends[0], write_end: ends[1] })
    }

    pub fn fd(&self) -> RawFd {
        self.read_end
    }

    /// A full pipe or counter is a pending wake-up already, so the result does not matter.
    pub fn signal(&self) {
        let one = 1_u64.to_ne_bytes();
        // SAFETY: the buffer outlives the call, and the descriptor is ours.
        unsafe { libc::write(self.write_end, one.as_ptr().cast(), one.len()) };
    }

    pub fn clear(&self) {
        let mut buffer = [0_u8; 256];
        // SAFETY: the buffer outlives the call, and the descriptor is ours and does not block.
        unsafe { libc::read(self.read_end, buffer.as_mut_ptr().cast(), buffer.len()) };
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        // SAFETY: both descriptors are ours and used by nobody after this.
        unsafe {
            libc::close(self.read_end);
            if self.write_end != self.read_end {
                libc::close(self.write_end);
            }
        }
    }
}

/// What a descriptor is waited for.
#[derive(Clone, Copy)]
pub struct Interest {
    /// Negative: wait for nothing here.
    pub fd: RawFd,
    pub writable: bool,
}

/// Wait until any descriptor is readable (or writable, where asked) or closed; says which are.
///
/// Rounds the time up to whole milliseconds, so that a short rest never becomes a busy loop.
pub fn wait<const N: usize>(interests: [Interest; N], timeout: Duration) -> [bool; N] {
    let mut fds = interests.map(|interest| libc::pollfd {
        fd: interest.fd,
        events: libc::POLLIN | if interest.writable { libc::POLLOUT } else { 0 },
        revents: 0,
    });
    let timeout_ms = timeout.as_micros().div_ceil(1_000).min(60_000) as libc::c_int;
    // SAFETY: the array outlives the call and its length is given.
    let ready = unsafe { libc::poll(fds.as_mut_ptr(), N as libc::nfds_t, timeout_ms) };
    if ready <= 0 {
        return [false; N];
    }
    fds.map(|fd| fd.revents != 0)
}
