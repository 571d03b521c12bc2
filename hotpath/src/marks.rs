//! The highest number handed out for each lease, in a file that outlives the process.
//!
//! The file is mapped, so a mark is on the page cache's side of a crash as soon as it is stored; it
//! does not outlive the machine's own restart, and its header says which start it belongs to.
//! Layout: a header (16-byte boot id, 8-byte format), then `RECORDS` times (16-byte lease uuid,
//! 8-byte mark), numbers in the machine's byte order, which is the only one to read them.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Leases a worker may have open at a time: 24 kB, and far above the sales of one deployment.
pub const RECORDS: usize = 1_024;
const FORMAT: u64 = u64::from_ne_bytes(*b"vfmarks1");
const FILE_BYTES: usize = (RECORDS + 1) * size_of::<Record>();

#[repr(C)]
#[derive(Default)]
struct Record {
    lease: [AtomicU64; 2],
    mark: AtomicU64,
}

impl Record {
    fn lease(&self) -> [u64; 2] {
        [self.lease[0].load(Ordering::Acquire), self.lease[1].load(Ordering::Acquire)]
    }

    fn set(&self, lease: [u64; 2], mark: u64) {
        self.mark.store(mark, Ordering::Release);
        self.lease[0].store(lease[0], Ordering::Release);
        self.lease[1].store(lease[1], Ordering::Release);
    }
}

enum Place {
    Heap(Box<[Record]>),
    /// The file stays open, and so locked, as long as the map.
    Map {
        first: NonNull<Record>,
        _lock: File,
    },
}

// SAFETY: the map is shared memory accessed through atomics only, and lives until drop.
unsafe impl Send for Place {}
// SAFETY: as above.
unsafe impl Sync for Place {}

pub struct Marks {
    place: Place,
    were_lost: bool,
}

impl Marks {
    /// Open or make the file; without a path, marks live as long as this value.
    ///
    /// Fails when another process holds the file: each worker has one of its own. A file from
    /// before the machine's restart is emptied: what it said is not to be trusted.
    pub fn open(path: Option<&Path>) -> io::Result<Self> {
        let Some(path) = path else {
            let records = (0..=RECORDS).map(|_| Record::default()).collect();
            return Ok(Self { place: Place::Heap(records), were_lost: false });
        };
        let file =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        // SAFETY: the descriptor is open; flock has no memory effects.
        if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            return Err(io::Error::last_os_error());
        }
        file.set_len(FILE_BYTES as u64)?;
        // SAFETY: a fresh shared mapping of a file of this length; the result is checked.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                FILE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let first = NonNull::new(map.cast::<Record>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut marks = Self { place: Place::Map { first, _lock: file }, were_lost: false };
        let header = &marks.all()[0];
        let boot = words(boot_id());
        let found = (header.lease(), header.mark.load(Ordering::Acquire));
        if found != (boot, FORMAT) {
            for record in marks.all() {
                record.set([0, 0], 0);
            }
            header.set(boot, FORMAT);
            marks.were_lost = found != ([0, 0], 0);
        }
        Ok(marks)
    }

    /// Whether the file was of an earlier start of the machine, so that what it said is unknown.
    pub fn were_lost(&self) -> bool {
        self.were_lost
    }

    fn all(&self) -> &[Record] {
        match &self.place {
            Place::Heap(records) => records,
            // SAFETY: the map holds exactly this many records, page-aligned, until drop.
            Place::Map { first, .. } => unsafe {
                std::slice::from_raw_parts(first.as_ptr(), RECORDS + 1)
            },
        }
    }

    /// Find a lease's record, or take a free one; nothing when all are taken.
    pub fn take(&self, lease: [u8; 16]) -> Option<usize> {
        let lease = words(lease);
        let records = self.all();
        let place = |wanted| (1..=RECORDS).find(|at| records[*at].lease() == wanted);
        place(lease).or_else(|| {
            let free = place([0, 0])?;
            records[free].set(lease, 0);
            Some(free)
        })
    }

    /// Free every record of a lease that `keep` does not want.
    pub fn retain(&self, keep: impl Fn([u8; 16]) -> bool) {
        for record in 1..=RECORDS {
            let lease = self.all()[record].lease();
            if lease != [0, 0] && !keep(bytes_of(lease)) {
                self.free(record);
            }
        }
    }

    pub fn get(&self, record: usize) -> u64 {
        self.all()[record].mark.load(Ordering::Acquire)
    }

    /// Never lowers.
    pub fn raise_to(&self, record: usize, seq: u64) {
        self.all()[record].mark.fetch_max(seq, Ordering::AcqRel);
    }

    /// Give a record back. Only for a lease that is settled: its mark is forgotten.
    pub fn free(&self, record: usize) {
        let record = &self.all()[record];
        record.lease[0].store(0, Ordering::Release);
        record.lease[1].store(0, Ordering::Release);
        record.mark.store(0, Ordering::Release);
    }
}

impl Drop for Marks {
    fn drop(&mut self) {
        if let Place::Map { first, .. } = &self.place {
            // SAFETY: mapped in `open` with this length, and nothing borrows it any more.
            unsafe { libc::munmap(first.as_ptr().cast(), FILE_BYTES) };
        }
    }
}

/// A lease and its mark.
pub type Mark = ([u8; 16], u64);

/// Read another process's marks; nothing when the file is missing, foreign, or of an earlier boot.
pub fn read(path: &Path) -> io::Result<Option<Vec<Mark>>> {
    let bytes = match std::fs::read(path) {
        Ok(bytes) if bytes.len() == FILE_BYTES => bytes,
        Ok(_) => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut records = bytes.chunks_exact(size_of::<Record>()).map(|chunk| {
        let (lease, mark) = chunk.split_at(16);
        let lease: [u8; 16] = lease.try_into().unwrap_or_default();
        (lease, u64::from_ne_bytes(mark.try_into().unwrap_or_default()))
    });
    if records.next() != Some((boot_id(), FORMAT)) {
        return Ok(None);
    }
    Ok(Some(records.filter(|(lease, _)| *lease != [0; 16]).collect()))
}

/// The kernel's id of this start of the machine; zeros where there is none to read.
fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    parse_uuid(text.trim()).unwrap_or_default()
}

/// Read a uuid in its canonical lower-case form, and no other, so that a lease has one name.
pub fn parse_uuid(text: &str) -> Option<[u8; 16]> {
    let bytes = text.as_bytes();
    if bytes.len() != 36 || [8, 13, 18, 23].iter().any(|at| bytes[*at] != b'-') {
        return None;
    }
    let digits: Vec<u8> = bytes.iter().copied().filter(|byte| *byte != b'-').collect();
    let mut uuid = [0_u8; 16];
    if digits.len() != 32 {
        return None;
    }
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = hex(pair[0])? << 4 | hex(pair[1])?;
    }
    Some(uuid)
}

fn hex(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

pub fn uuid_text(uuid: [u8; 16]) -> String {
    let mut text = String::with_capacity(36);
    for (at, byte) in uuid.iter().enumerate() {
        if [4, 6, 8, 10].contains(&at) {
            text.push('-');
        }
        for digit in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
        }
    }
    text
}

fn words(uuid: [u8; 16]) -> [u64; 2] {
    let (first, second) = uuid.split_at(8);
    [first, second].map(|half| u64::from_ne_bytes(half.try_into().unwrap_or_default()))
}

fn bytes_of(words: [u64; 2]) -> [u8; 16] {
    let mut uuid = [0_u8; 16];
    uuid[..8].copy_from_slice(&words[0].to_ne_bytes());
    uuid[8..].copy_from_slice(&words[1].to_ne_bytes());
    uuid
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: &str = "0b9c2f0e-6a3d-4e1f-8c77-00ff10203040";

    fn temporary(name: &str) -> std::path::PathBuf {
        let file = format!("vf-marks-{}-{name}", std::process::id());
        std::env::temp_dir().join(file)
    }

    #[test]
    fn a_uuid_has_one_spelling() {
        assert_eq!(uuid_text(parse_uuid(LEASE).unwrap()), LEASE);
        let strange = ["", "0b9c2f0e6a3d4e1f8c7700ff10203040", &LEASE.to_uppercase(), &LEASE[1..]];
        for text in strange {
            assert_eq!(parse_uuid(text), None, "{text}");
        }
    }

    #[test]
    fn a_mark_outlives_who_raised_it_and_never_falls() {
        let path = temporary("outlives");
        let lease = parse_uuid(LEASE).unwrap();
        let marks = Marks::open(Some(&path)).unwrap();
        let record = marks.take(lease).unwrap();
        marks.raise_to(record, 41);
        marks.raise_to(record, 7);
        assert!(Marks::open(Some(&path)).is_err(), "the file is held");
        assert_eq!(read(&path).unwrap(), Some(vec![(lease, 41)]));
        drop(marks);
        let marks = Marks::open(Some(&path)).unwrap();
        assert_eq!(marks.get(marks.take(lease).unwrap()), 41);
        marks.free(record);
        assert_eq!(read(&path).unwrap(), Some(vec![]));
        assert_eq!(marks.get(marks.take(lease).unwrap()), 0);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn marks_of_an_earlier_start_of_the_machine_are_unknown_not_low() {
        let path = temporary("boot");
        let lease = parse_uuid(LEASE).unwrap();
        let marks = Marks::open(Some(&path)).unwrap();
        marks.raise_to(marks.take(lease).unwrap(), 9);
        drop(marks);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[0] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(read(&path).unwrap(), None);
        let marks = Marks::open(Some(&path)).unwrap();
        assert!(marks.were_lost());
        assert_eq!(marks.get(marks.take(lease).unwrap()), 0);
        drop(marks);
        assert!(!Marks::open(Some(&path)).unwrap().were_lost());
        assert_eq!(read(&temporary("missing")).unwrap(), None);
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn when_all_records_are_taken_there_is_none_to_give() {
        let marks = Marks::open(None).unwrap();
        for lease in 1..=RECORDS as u128 {
            assert!(marks.take(lease.to_be_bytes()).is_some());
        }
        assert_eq!(marks.take(u128::MAX.to_be_bytes()), None);
    }
}
