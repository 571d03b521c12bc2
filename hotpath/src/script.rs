//! The scripts, and how a batch is laid out for them and their replies are read. No I/O.

use crate::outcome::Outcome;
use crate::resp::{Value, put_array, put_bulk, put_number};

pub const CLAIM_LUA: &str = include_str!("../lua/claim.lua");
pub const CROWD_LUA: &str = include_str!("../lua/crowd.lua");
pub const LEASE_LUA: &str = include_str!("../lua/lease.lua");
pub const FACTS_LUA: &str = include_str!("../lua/facts.lua");
pub const RATE_LUA: &str = include_str!("../lua/rate.lua");

/// Which of the two scripts serves a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Lease,
    Crowd,
}

impl Kind {
    pub fn source(self) -> &'static str {
        match self {
            Self::Lease => CLAIM_LUA,
            Self::Crowd => CROWD_LUA,
        }
    }

    fn strings_per_item(self) -> usize {
        match self {
            Self::Lease => 4,
            Self::Crowd => 3,
        }
    }

    /// The four keys and the subject, encoded once for all calls of a slot.
    pub fn head(self, target: &str, subject: &str) -> Vec<u8> {
        let suffixes = match self {
            Self::Lease => ["s", "k", "c", "x"],
            Self::Crowd => ["f", "fk", "fc", "ft"],
        };
        let mut head = Vec::with_capacity(320);
        put_number(&mut head, suffixes.len());
        for suffix in suffixes {
            put_bulk(&mut head, format!("vf:{{{target}}}:{suffix}").as_bytes());
        }
        put_bulk(&mut head, subject.as_bytes());
        head
    }

    /// One item, encoded where it is claimed so that the I/O thread only copies bytes.
    pub fn item(self, key: &str, fingerprint: &str, customer: &str, payload: &[u8]) -> Box<[u8]> {
        let texts = key.len() + fingerprint.len() + customer.len() + payload.len();
        let mut item = Vec::with_capacity(texts + 40);
        put_bulk(&mut item, key.as_bytes());
        put_bulk(&mut item, fingerprint.as_bytes());
        put_bulk(&mut item, customer.as_bytes());
        if self == Self::Lease {
            put_bulk(&mut item, payload);
        }
        item.into_boxed_slice()
    }

    /// Append one EVALSHA for a batch.
    pub fn put_call<'a>(
        self,
        out: &mut Vec<u8>,
        sha: &str,
        head: &[u8],
        items: impl ExactSizeIterator<Item = &'a [u8]>,
    ) {
        // EVALSHA, sha, 4, four keys, subject, n.
        put_array(out, 9 + self.strings_per_item() * items.len());
        put_bulk(out, b"EVALSHA");
        put_bulk(out, sha.as_bytes());
        out.extend_from_slice(head);
        put_number(out, items.len());
        for item in items {
            out.extend_from_slice(item);
        }
    }
}

/// What the script said about one item.
#[derive(Debug, PartialEq, Eq)]
pub enum Told {
    Won { seq: u64 },
    Replayed { seq: u64, at_ms: i64, remaining: i64, payload: Vec<u8> },
    CustomerLimit { reference: Vec<u8> },
    Refused(Outcome),
}

#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    pub at_ms: i64,
    pub size: i64,
    pub items: Vec<Told>,
}

/// Read the reply for `count` items; nothing if it isn't one, and then nothing in it is trusted.
pub fn read_reply(value: Value, count: usize) -> Option<Reply> {
    let Value::Array(values) = value else {
        return None;
    };
    if values.len() != count + 2 {
        return None;
    }
    let mut values = values.into_iter();
    let (Some(Value::Int(at_ms)), Some(Value::Int(size))) = (values.next(), values.next()) else {
        return None;
    };
    let items = values.map(read_item).collect::<Option<Vec<_>>>()?;
    Some(Reply { at_ms, size, items })
}

fn read_item(value: Value) -> Option<Told> {
    match value {
        Value::Int(seq) if seq > 0 => Some(Told::Won { seq: seq as u64 }),
        Value::Int(code) => Outcome::of_refusal(code.checked_neg()?).map(Told::Refused),
        Value::Bulk(text) => match text.split_first()? {
            (b'R', record) => read_record(record),
            (b'C', reference) => Some(Told::CustomerLimit { reference: reference.to_vec() }),
            _ => None,
        },
        _ => None,
    }
}

fn read_record(record: &[u8]) -> Option<Told> {
    let mut parts = record.splitn(4, |byte| *byte == b'|');
    let mut next_number = || std::str::from_utf8(parts.next()?).ok()?.parse::<i64>().ok();
    let (seq, at_ms, remaining) = (next_number()?, next_number()?, next_number()?);
    let seq = u64::try_from(seq).ok()?;
    Some(Told::Replayed { seq, at_ms, remaining, payload: parts.next()?.to_vec() })
}

/// Whether an error reply came before the script's first write, so that nothing was applied.
///
/// Any other error may have struck after it: its batch is unknown.
pub fn was_refused_whole(error: &[u8]) -> bool {
    const CODES: [&[u8]; 12] = [
        b"OOM",
        b"MISCONF",
        b"READONLY",
        b"NOREPLICAS",
        b"LOADING",
        b"MASTERDOWN",
        b"BUSY",
        b"NOSCRIPT",
        b"CLUSTERDOWN",
        b"MOVED",
        b"ASK",
        b"TRYAGAIN",
    ];
    CODES.contains(&code_of(error))
}

/// Whether this server is no longer the one to talk to: compare a new connection first.
pub fn ends_the_connection(error: &[u8]) -> bool {
    const CODES: [&[u8]; 4] = [b"NOSCRIPT", b"LOADING", b"READONLY", b"MASTERDOWN"];
    CODES.contains(&code_of(error))
}

fn code_of(error: &[u8]) -> &[u8] {
    error.split(|byte| *byte == b' ').next().unwrap_or(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resp::decode;

    #[test]
    fn a_call_has_the_layout_the_script_reads() {
        let head = Kind::Lease.head("L", "L");
        let item = Kind::Lease.item("k", "f", "", b"{}");
        let mut out = Vec::new();
        Kind::Lease.put_call(&mut out, "sha", &head, [&*item].into_iter());
        let Value::Array(parts) = decode(&out).unwrap().unwrap().0 else {
            panic!("a call is an array");
        };
        let texts: Vec<_> = parts
            .iter()
            .map(|part| match part {
                Value::Bulk(text) => std::str::from_utf8(text).unwrap(),
                other => panic!("not a bulk string: {other:?}"),
            })
            .collect();
        let expected = [
            "EVALSHA", "sha", "4", "vf:{L}:s", "vf:{L}:k", "vf:{L}:c", "vf:{L}:x", "L", "1", "k",
            "f", "", "{}",
        ];
        assert_eq!(texts, expected);
    }

    #[test]
    fn a_crowds_item_carries_no_payload() {
        let mut out = Vec::new();
        let item = Kind::Crowd.item("k", "f", "c", b"{}");
        Kind::Crowd.put_call(&mut out, "s", &Kind::Crowd.head("V", "7"), [&*item].into_iter());
        let Value::Array(parts) = decode(&out).unwrap().unwrap().0 else {
            panic!("a call is an array");
        };
        assert_eq!(parts.len(), 12);
        assert_eq!(parts[11], Value::Bulk(b"c".to_vec()));
    }

    #[test]
    fn a_reply_is_read_item_by_item() {
        let value = Value::Array(vec![
            Value::Int(1_700_000_000_000),
            Value::Int(20),
            Value::Int(7),
            Value::Int(-3),
            Value::Bulk(b"R5|1699999999999|15|{\"a\":\"|\"}".to_vec()),
            Value::Bulk(b"C5".to_vec()),
        ]);
        let reply = read_reply(value, 4).unwrap();
        assert_eq!((reply.at_ms, reply.size), (1_700_000_000_000, 20));
        let payload = b"{\"a\":\"|\"}".to_vec();
        let expected = [
            Told::Won { seq: 7 },
            Told::Refused(Outcome::SoldOut),
            Told::Replayed { seq: 5, at_ms: 1_699_999_999_999, remaining: 15, payload },
            Told::CustomerLimit { reference: b"5".to_vec() },
        ];
        assert_eq!(reply.items, expected);
    }

    #[test]
    fn a_reply_of_another_length_or_with_a_strange_item_is_not_trusted_at_all() {
        let strange =
            [Value::Int(0), Value::Int(-13), Value::Nil, Value::Bulk(b"R1|x|2|p".to_vec())];
        for item in strange {
            let value = Value::Array(vec![Value::Int(1), Value::Int(2), Value::Int(1), item]);
            assert_eq!(read_reply(value, 2), None);
        }
        let short = Value::Array(vec![Value::Int(1), Value::Int(2), Value::Int(1)]);
        assert_eq!(read_reply(short, 2), None);
    }

    #[test]
    fn only_errors_that_precede_the_first_write_count_as_not_applied() {
        assert!(was_refused_whole(b"OOM command not allowed when used memory > 'maxmemory'."));
        assert!(was_refused_whole(b"NOSCRIPT No matching script."));
        assert!(!was_refused_whole(b"ERR user_script:12: something broke"));
        assert!(!was_refused_whole(b"WRONGTYPE Operation against a key"));
        assert!(ends_the_connection(b"NOSCRIPT No matching script."));
        assert!(!ends_the_connection(b"OOM command not allowed"));
    }
}
