//! What the listener does not answer itself: handed on, as it came, to the server behind it.

use std::error::Error as _;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Request, Response, Uri, Version};
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::UnixStream;
use tower_service::Service;

/// Who asks, for the server behind; a caller can't say it of himself.
pub const PEER: HeaderName = HeaderName::from_static("x-vauchflow-peer");
/// A connection at rest is closed long before the server behind does so after its 30 s.
const IDLE: Duration = Duration::from_secs(10);
/// Those at rest: more at once are opened anew, which costs a tenth of a millisecond.
const IDLE_MAX: usize = 64;
/// What names one connection and means nothing on the next (RFC 9110, 7.6.1).
const HOP_BY_HOP: [HeaderName; 7] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::EXPECT,
];

/// A request's body: still arriving, or read already.
pub type Body = Either<Incoming, Full<Bytes>>;

/// Why there is no answer from behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Nobody listens there: nothing was sent.
    NotSent,
    /// The request's body ended early, or its chunks are none.
    CutOff,
    /// It was sent, wholly or in part.
    Unanswered,
}

impl Failure {
    fn of(error: &Error) -> Self {
        // Of all that can fail, only a request's own body is the user's.
        let cause = error.source().and_then(|cause| cause.downcast_ref::<hyper::Error>());
        if error.is_connect() {
            Self::NotSent
        } else if cause.is_some_and(hyper::Error::is_user) {
            Self::CutOff
        } else {
            Self::Unanswered
        }
    }
}

#[derive(Clone)]
pub struct Upstream {
    client: Client<Connector, Body>,
}

impl Upstream {
    /// Hand requests on to a server that listens on a Unix socket.
    pub fn new(socket: &Path) -> Self {
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(IDLE_MAX)
            .build(Connector(socket.to_owned()));
        Self { client }
    }

    /// Have a request answered there. A connection that closed while at rest is tried anew.
    pub async fn forward(
        &self,
        request: Request<Body>,
        peer: &HeaderValue,
    ) -> Result<Response<Incoming>, Failure> {
        let (mut head, body) = request.into_parts();
        let Some(uri) = local(&head.uri) else { return Err(Failure::NotSent) };
        head.uri = uri;
        head.version = Version::HTTP_11;
        strip(&mut head.headers);
        head.headers.insert(PEER, peer.clone());
        let sent = self.client.request(Request::from_parts(head, body)).await;
        let mut response = sent.map_err(|error| Failure::of(&error))?;
        strip(response.headers_mut());
        Ok(response)
    }
}

/// The same path and query under a name that stands for the socket.
fn local(uri: &Uri) -> Option<Uri> {
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    Uri::builder().scheme("http").authority("vauchflow").path_and_query(target).build().ok()
}

fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
}

/// Opens connections to one Unix socket, whatever the address says.
#[derive(Clone)]
struct Connector(PathBuf);

impl Service<Uri> for Connector {
    type Response = TokioIo<UnixStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let path = self.0.clone();
        Box::pin(async move { Ok(TokioIo::new(UnixStream::connect(path).await?)) })
    }
}
