//! Where requests arrive: those that `Hot` takes are answered here, everything else is handed on.
//!
//! One thread serves all connections of a worker. It never waits for the interpreter: what is hot
//! is read, queued and answered on it, and woken by whoever decides.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::http::request::Parts;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};

use crate::upstream::{Failure, Upstream};

/// Connections that are served at once; more wait in the kernel. Far above the queues behind it,
/// which refuse by themselves, so that nobody waits here unanswered.
const CONNECTIONS_MAX: usize = 8_192;
/// Longest pause before and within a request's head, and so a connection's longest rest.
const HEAD: Duration = Duration::from_secs(30);
/// As long as the general way gives a body to arrive (`api/bodies.py`).
const BODY: Duration = Duration::from_secs(10);
/// Out of descriptors: wait for some to come back.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What is under way at the end may take so long: redeems are decided within 2 s.
const DRAIN: Duration = Duration::from_secs(3);

/// An answer's body: ours, or what comes from behind.
pub type Answer = Response<Either<Full<Bytes>, Incoming>>;

/// What is answered without being handed on.
pub trait Hot: Send + Sync + 'static {
    /// A request that was taken; its body is read next.
    type Taken: Send;

    /// The largest body of a request that is taken, in bytes.
    const BODY_BYTES_MAX: u64;

    /// Take a request by its head, which says that the body is small; nothing leaves it.
    fn take(&self, head: &Parts) -> Option<Self::Taken>;

    /// Decide it. Nothing: this body must be handed on, and nothing was done.
    fn decide(
        self: &Arc<Self>,
        taken: Self::Taken,
        body: &Bytes,
    ) -> impl Future<Output = Option<Response<Full<Bytes>>>> + Send;

    /// The body did not arrive in time.
    fn too_slow(&self) -> Response<Full<Bytes>>;

    /// There is no answer from behind.
    fn failed(&self, failure: Failure) -> Response<Full<Bytes>>;
}

struct Served<H> {
    hot: Arc<H>,
    upstream: Upstream,
}

/// Serve until `end` is sent or dropped; then answer what is under way. Blocks its thread.
pub fn run<H: Hot>(
    listener: std::net::TcpListener,
    hot: Arc<H>,
    socket: &std::path::Path,
    end: oneshot::Receiver<()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let served = Arc::new(Served { hot, upstream: Upstream::new(socket) });
        serve(TcpListener::from_std(listener)?, served, end).await;
        Ok(())
    })
}

async fn serve<H: Hot>(
    listener: TcpListener,
    served: Arc<Served<H>>,
    mut end: oneshot::Receiver<()>,
) {
    let graceful = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(HEAD);
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { break };
        let (stream, peer) = tokio::select! {
            _ = &mut end => break,
            accepted = listener.accept() => if let Ok(accepted) = accepted {
                accepted
            } else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            },
        };
        let Some(peer) = ready(&stream, peer) else { continue };
        let served = served.clone();
        let service = service_fn(move |request| {
            let (served, peer) = (served.clone(), peer.clone());
            async move { Ok::<_, Infallible>(served.answer(request, &peer).await) }
        });
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service));
        tokio::spawn(async move {
            // What ends a connection early is the client's doing; it has been told all it can be.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    let _ = tokio::time::timeout(DRAIN, graceful.shutdown()).await;
}

/// Small answers leave at once.
fn ready(stream: &TcpStream, peer: SocketAddr) -> Option<HeaderValue> {
    stream.set_nodelay(true).ok()?;
    HeaderValue::from_str(&peer.to_string()).ok()
}

impl<H: Hot> Served<H> {
    async fn answer(&self, request: Request<Incoming>, peer: &HeaderValue) -> Answer {
        let (head, body) = request.into_parts();
        let Some(taken) = self.hot.take(&head) else {
            return self.forward(Request::from_parts(head, Either::Left(body)), peer).await;
        };
        let limit = usize::try_from(H::BODY_BYTES_MAX).unwrap_or(usize::MAX);
        let read = Limited::new(body, limit).collect();
        let body = match tokio::time::timeout(BODY, read).await {
            Ok(Ok(body)) => body.to_bytes(),
            // Late, or cut off, and then nobody is left to read this.
            _ => return self.hot.too_slow().map(Either::Left),
        };
        if let Some(answer) = self.hot.decide(taken, &body).await {
            return answer.map(Either::Left);
        }
        let body = Either::Right(Full::new(body));
        self.forward(Request::from_parts(head, body), peer).await
    }

    async fn forward(
        &self,
        request: Request<Either<Incoming, Full<Bytes>>>,
        peer: &HeaderValue,
    ) -> Answer {
        match self.upstream.forward(request, peer).await {
            Ok(answer) => answer.map(Either::Right),
            Err(failure) => self.hot.failed(failure).map(Either::Left),
        }
    }
}
