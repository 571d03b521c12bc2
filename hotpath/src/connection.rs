//! The socket: TCP or Unix, authentication, the run id, and pipelined exchanges with a time limit.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use crate::flight::{Dial, Link, Lost, TICK};
use crate::resp::{Value, decode, put_array, put_bulk};
use crate::wake::{Interest, wait};

/// Connecting and shaking hands: a local server takes under 1 ms, one a region away under 200 ms.
const DIAL_TIMEOUT: Duration = Duration::from_millis(500);
/// Read at a time: a reply of 1,024 wins has 8 kB, one of as many replays some 300 kB.
const READ_BYTES: usize = 64 * 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    Unix(String),
    Tcp(String),
}

impl Address {
    /// `unix:/path` or `host:port`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return (!path.is_empty()).then(|| Self::Unix(path.to_owned()));
        }
        let (host, port) = text.rsplit_once(':')?;
        let is_whole = !host.is_empty() && !host.contains('/') && port.parse::<u16>().is_ok();
        is_whole.then(|| Self::Tcp(text.to_owned()))
    }
}

pub struct Server {
    pub address: Address,
    pub username: Option<String>,
    pub password: Option<String>,
    pub db: u32,
}

trait Stream: Read + Write + AsRawFd {}
impl Stream for UnixStream {}
impl Stream for TcpStream {}

pub struct Connection {
    stream: Box<dyn Stream>,
    run_id: String,
    received: Vec<u8>,
}

impl Dial for Server {
    type Link = Connection;

    fn dial(&mut self, tick: &mut dyn FnMut()) -> Result<Connection, Lost> {
        let stream = self.connect().map_err(|error| Lost(format!("cannot connect: {error}")))?;
        let mut connection = Connection { stream, run_id: String::new(), received: Vec::new() };
        if let Some(password) = &self.password {
            match &self.username {
                Some(username) => connection.ask(&["AUTH", username, password], tick)?,
                None => connection.ask(&["AUTH", password], tick)?,
            };
        }
        if self.db != 0 {
            connection.ask(&["SELECT", &self.db.to_string()], tick)?;
        }
        let info = connection.ask(&["INFO", "server"], tick)?;
        connection.run_id = run_id_of(&info).ok_or_else(|| Lost("INFO names no run_id".into()))?;
        Ok(connection)
    }
}

impl Server {
    fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match &self.address {
            Address::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_nonblocking(true)?;
                Ok(Box::new(stream))
            }
            Address::Tcp(address) => {
                let mut last = io::Error::from(ErrorKind::AddrNotAvailable);
                for resolved in address.to_socket_addrs()? {
                    match TcpStream::connect_timeout(&resolved, DIAL_TIMEOUT) {
                        Ok(stream) => {
                            stream.set_nodelay(true)?;
                            stream.set_nonblocking(true)?;
                            return Ok(Box::new(stream));
                        }
                        Err(error) => last = error,
                    }
                }
                Err(last)
            }
        }
    }
}

fn run_id_of(info: &Value) -> Option<String> {
    let Value::Bulk(text) = info else { return None };
    let text = std::str::from_utf8(text).ok()?;
    let run_id = text.lines().find_map(|line| line.strip_prefix("run_id:"))?;
    (!run_id.is_empty()).then(|| run_id.trim().to_owned())
}

impl Connection {
    fn ask(&mut self, command: &[&str], tick: &mut dyn FnMut()) -> Result<Value, Lost> {
        let mut request = Vec::new();
        put_array(&mut request, command.len());
        for part in command {
            put_bulk(&mut request, part.as_bytes());
        }
        match self.exchange(&request, 1, DIAL_TIMEOUT, tick)?.pop() {
            // Only the command's name: its arguments may be a password.
            Some(Value::Error(error)) => {
                let error = String::from_utf8_lossy(&error);
                Err(Lost(format!("{} was refused: {error}", command[0])))
            }
            Some(value) => Ok(value),
            None => Err(Lost(format!("{} was not answered", command[0]))),
        }
    }

    /// Send what the socket takes now.
    fn send(&mut self, request: &[u8], sent: &mut usize) -> Result<(), Lost> {
        while *sent < request.len() {
            match self.stream.write(&request[*sent..]) {
                Ok(0) => return Err(Lost("the server takes no more".to_owned())),
                Ok(count) => *sent += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Lost(format!("sending failed: {error}"))),
            }
        }
        Ok(())
    }

    /// Receive what has arrived.
    fn receive(&mut self) -> Result<(), Lost> {
        loop {
            let filled = self.received.len();
            self.received.resize(filled + READ_BYTES, 0);
            let outcome = self.stream.read(&mut self.received[filled..]);
            self.received.truncate(filled + *outcome.as_ref().unwrap_or(&0));
            match outcome {
                Ok(0) => return Err(Lost("the server closed the connection".to_owned())),
                Ok(count) if count < READ_BYTES => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Lost(format!("receiving failed: {error}"))),
            }
        }
    }
}

impl Link for Connection {
    fn run_id(&self) -> &str {
        &self.run_id
    }

    fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    fn exchange(
        &mut self,
        request: &[u8],
        count: usize,
        timeout: Duration,
        tick: &mut dyn FnMut(),
    ) -> Result<Vec<Value>, Lost> {
        let deadline = Instant::now() + timeout;
        let mut replies = Vec::with_capacity(count);
        let (mut sent, mut used) = (0, 0);
        self.received.clear();
        self.send(request, &mut sent)?;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Lost(format!("no answer within {} ms", timeout.as_millis())));
            }
            let fd = self.stream.as_raw_fd();
            let [ready] = wait([Interest { fd, writable: sent < request.len() }], left.min(TICK));
            if !ready {
                tick();
                continue;
            }
            self.send(request, &mut sent)?;
            self.receive()?;
            while replies.len() < count {
                let decoded = decode(&self.received[used..]);
                match decoded.map_err(|_| Lost("the reply is no RESP2".to_owned()))? {
                    Some((value, length)) => {
                        used += length;
                        replies.push(value);
                    }
                    None => break,
                }
            }
            if replies.len() == count {
                let is_even = used == self.received.len() && sent == request.len();
                return if is_even { Ok(replies) } else { Err(Lost("a reply too many".into())) };
            }
        }
    }
}
