//! The batcher of a flash sale.
//!
//! `bindings` is the only room that names Python; `batcher` holds what the event loop and the I/O
//! thread share; `flight` is that thread; `connection` owns the socket; `resp` and `script` read
//! and write without I/O; `marks` remembers what was handed out; `plain` reads and answers what
//! nearly every request looks like; `commits` gathers those that `PostgreSQL` decides; `receipts`
//! signs wins; `stream` reads what a sale has won, for the reconciler; `literal` writes columns. All
//! know `outcome`. `listener` is where requests arrive, and `upstream` where those go that it
//! does not answer.

pub mod batcher;
pub mod commits;
pub mod connection;
pub mod flight;
pub mod listener;
pub mod literal;
pub mod marks;
pub mod outcome;
pub mod plain;
pub mod receipts;
pub mod resp;
pub mod script;
pub mod stream;
pub mod upstream;
pub mod wake;

#[cfg(feature = "python")]
mod bindings;

/// A request makes some forty small allocations on one thread; glibc's malloc was a seventh of what
/// the listener did (`docs/profile.md`).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
