//! A sale's stream into the columns of `vf.settle_wins`.
//!
//! An entry is what `claim.lua` wrote: the first win's number, when, what was left after it, and
//! the wins packed with `cmsgpack`, each as key, fingerprint, customer and payload.

use crate::literal::Column;
use crate::plain::{Lease, id_text};

pub struct Entry<'a> {
    pub first: u64,
    pub at_ms: i64,
    pub remaining: i64,
    pub packed: &'a [u8],
}

/// The columns in the order of `vf.settle_wins`, and how many rows they have. Nothing for one whose
/// elements are all NULL: customers, orders and metadata may be.
pub struct Columns {
    pub rows: usize,
    pub columns: [Option<String>; 11],
}

/// Write whole entries until `rows_max` is reached (the first one in any case), and say how many
/// there were. Nothing when one of them can't be read: who asked must look closer.
pub fn columns(entries: &[Entry], lease: &Lease, rows_max: usize) -> Option<(usize, Columns)> {
    let mut columns: [Column; 11] = Default::default();
    let (mut rows, mut taken) = (0, 0);
    for entry in entries {
        let mut packed = Packed(entry.packed);
        let wins = packed.array()?;
        if taken > 0 && rows + wins > rows_max {
            break;
        }
        for place in 0..wins {
            write(&mut columns, &mut packed, entry, place as u64, lease)?;
        }
        if !packed.0.is_empty() {
            return None;
        }
        rows += wins;
        taken += 1;
    }
    let columns = columns.map(|column| column.end_if_told(rows > 0));
    Some((taken, Columns { rows, columns }))
}

type Payload = (i64, i64, Option<String>, Option<String>);

fn write(
    columns: &mut [Column; 11],
    packed: &mut Packed,
    entry: &Entry,
    place: u64,
    lease: &Lease,
) -> Option<()> {
    if packed.array()? != 4 {
        return None;
    }
    let (key, fingerprint) = (packed.text()?, packed.text()?);
    let (customer, payload) = (packed.text()?, packed.text()?);
    let is_hex =
        fingerprint.len() == 32 && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !is_hex {
        return None;
    }
    let (order_value, discount, order_id, metadata): Payload =
        serde_json::from_str(payload).ok()?;
    let seq = entry.first + place;
    let remaining = entry.remaining - place as i64;
    let id = lease.told(seq, remaining, entry.at_ms).id;
    let [seqs, ids, keys, fingerprints, customers, values, discounts, orders, metas, rests, ats] =
        columns;
    seqs.number(seq.into());
    ids.uuid(id);
    if key.is_empty() {
        keys.text(&format!("rdm_{}", id_text(id)));
    } else {
        keys.text(key);
    }
    fingerprints.hex(fingerprint);
    customers.text_or_null((!customer.is_empty()).then_some(customer));
    values.number(order_value.into());
    discounts.number(discount.into());
    orders.text_or_null(order_id.as_deref());
    metas.text_or_null(metadata.as_deref());
    rests.number(remaining.into());
    ats.number(entry.at_ms.into());
    Some(())
}

/// The little of `MessagePack` that Lua writes here: arrays and strings.
struct Packed<'a>(&'a [u8]);

impl<'a> Packed<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn size(&mut self, bytes: usize) -> Option<usize> {
        let size = self.take(bytes)?;
        Some(size.iter().fold(0, |size, byte| size << 8 | usize::from(*byte)))
    }

    fn array(&mut self) -> Option<usize> {
        match self.take(1)?[0] {
            tag @ 0x90..=0x9F => Some(usize::from(tag & 0x0F)),
            0xDC => self.size(2),
            0xDD => self.size(4),
            _ => None,
        }
    }

    fn text(&mut self) -> Option<&'a str> {
        let length = match self.take(1)?[0] {
            tag @ 0xA0..=0xBF => usize::from(tag & 0x1F),
            0xD9 => self.size(1)?,
            0xDA => self.size(2)?,
            0xDB => self.size(4)?,
            _ => return None,
        };
        std::str::from_utf8(self.take(length)?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(wins: &[[&str; 4]]) -> Vec<u8> {
        let mut bytes = vec![0x90 | wins.len() as u8];
        for win in wins {
            bytes.push(0x94);
            for text in win {
                bytes.extend([0xD9, text.len() as u8]);
                bytes.extend(text.as_bytes());
            }
        }
        bytes
    }

    const FINGERPRINT: &str = "000102030405060708090a0b0c0d0e0f";

    fn lease() -> Lease {
        Lease { id: [7; 16], tag: 1, seq_base: 0 }
    }

    #[test]
    fn wins_become_rows_in_their_order() {
        let bytes = packed(&[
            ["k\"1", FINGERPRINT, "ann", "[8999,4500,\"o\\\"1\",null]"],
            ["", FINGERPRINT, "", "[0,0,null,\"{}\"]"],
        ]);
        let entry = Entry { first: 5, at_ms: 1_000, remaining: 95, packed: &bytes };
        let (taken, told) = columns(&[entry], &lease(), 4_000).expect("readable");
        assert_eq!((taken, told.rows), (1, 2));
        let [seqs, ids, keys, prints, customers, values, discounts, orders, metas, rests, ats] =
            told.columns.map(|column| column.expect("told"));
        assert_eq!(seqs, "{5,6}");
        assert_eq!(ids.len(), 2 * 32 + 3);
        assert!(keys.starts_with("{\"k\\\"1\",\"rdm_"), "{keys}");
        assert_eq!(prints.matches(FINGERPRINT).count(), 2);
        assert_eq!(customers, "{\"ann\",NULL}");
        assert_eq!((values.as_str(), discounts.as_str()), ("{8999,0}", "{4500,0}"));
        assert_eq!((orders.as_str(), metas.as_str()), ("{\"o\\\"1\",NULL}", "{NULL,\"{}\"}"));
        assert_eq!((rests.as_str(), ats.as_str()), ("{95,94}", "{1000,1000}"));
    }

    #[test]
    fn a_column_that_says_nothing_is_left_out() {
        let bytes = packed(&[["a", FINGERPRINT, "", "[1,1,null,null]"]; 2]);
        let entry = Entry { first: 1, at_ms: 0, remaining: 9, packed: &bytes };
        let (_, told) = columns(&[entry], &lease(), 10).expect("readable");
        let silent: Vec<usize> = (0..11).filter(|at| told.columns[*at].is_none()).collect();
        assert_eq!(silent, [4, 7, 8], "customers, orders, metadata");
    }

    #[test]
    fn whole_entries_are_taken_until_there_are_enough_rows() {
        let bytes = packed(&[["a", FINGERPRINT, "c", "[1,1,null,null]"]; 3]);
        let entries =
            [1, 4, 7].map(|first| Entry { first, at_ms: 0, remaining: 9, packed: &bytes });
        let taken = |rows_max| {
            columns(&entries, &lease(), rows_max).map(|(taken, told)| (taken, told.rows))
        };
        assert_eq!(taken(1), Some((1, 3)));
        assert_eq!(taken(6), Some((2, 6)));
        assert_eq!(taken(100), Some((3, 9)));
    }

    #[test]
    fn what_claim_lua_cannot_have_written_is_left_alone() {
        let good = packed(&[["a", FINGERPRINT, "c", "[1,1,null,null]"]]);
        let bad_print = packed(&[["a", "xyz", "c", "[1,1,null,null]"]]);
        let bad_payload = packed(&[["a", FINGERPRINT, "c", "[1,1.5,null,null]"]]);
        for bytes in [
            &good[..good.len() - 1],
            &[],
            &bad_print,
            &bad_payload,
            b"\xC0",
            &[&good[..], &[0]].concat(),
        ] {
            let entry = Entry { first: 1, at_ms: 0, remaining: 9, packed: bytes };
            assert!(columns(&[entry], &lease(), 10).is_none(), "{bytes:?}");
        }
    }
}
