//! What both generators share: chance, histograms, and waiting for sockets or an instant.

pub mod chance;
pub mod histogram;
pub mod http;
pub mod ready;

use std::time::Duration;

/// CPU time of this process so far: the generator tells how much of a core it took.
pub fn cpu_used() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<u64> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    // utime and stime, in the hundredths of a second that Linux shows to everybody.
    let ticks = fields.get(11).unwrap_or(&0) + fields.get(12).unwrap_or(&0);
    Duration::from_millis(10 * ticks)
}
