//! What waits for a shared commit: drawn in batches, and written by column.

use std::collections::{HashSet, VecDeque};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::literal::Column;
use crate::plain::{Ask, Terms, hex, id_text};

/// A priced request with whoever waits for its answer.
pub struct Waiting<W> {
    pub ask: Ask,
    pub fingerprint: [u8; 16],
    pub key: Option<String>,
    pub deadline: Instant,
    pub waiter: W,
}

/// A request on its way, under the id its redemption will have.
pub struct Item<W> {
    pub id: u128,
    pub waiting: Waiting<W>,
}

pub struct Queue<W> {
    waiting: VecDeque<Waiting<W>>,
    is_flying: bool,
}

/// What left a queue: the next batch, and those whose time had passed before they were sent.
pub struct Taken<W> {
    pub batch: Vec<Item<W>>,
    pub late: Vec<W>,
}

impl<W> Default for Queue<W> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), is_flying: false }
    }
}

impl<W> Queue<W> {
    /// Queue a request. True: nobody flies this queue yet, and the caller must begin.
    pub fn push(&mut self, waiting: Waiting<W>) -> bool {
        self.waiting.push_back(waiting);
        !std::mem::replace(&mut self.is_flying, true)
    }

    /// Take the next batch, each key once: a retry beside its first try waits for the next one,
    /// which answers it as a replay. An empty batch ends the flying.
    pub fn take(&mut self, batch_max: usize, entropy: &mut dyn FnMut(&mut [u8])) -> Taken<W> {
        let now = Instant::now();
        let (mut drawn, mut late, mut later) = (Vec::new(), Vec::new(), Vec::new());
        let mut keys = HashSet::new();
        while drawn.len() < batch_max {
            let Some(next) = self.waiting.pop_front() else { break };
            if next.deadline <= now {
                late.push(next.waiter);
            } else if next.key.as_ref().is_some_and(|key| !keys.insert(key.clone())) {
                later.push(next);
            } else {
                drawn.push(next);
            }
        }
        for next in later.into_iter().rev() {
            self.waiting.push_front(next);
        }
        self.is_flying = !drawn.is_empty();
        let ids = new_ids(drawn.len(), entropy);
        let batch = ids.into_iter().zip(drawn).map(|(id, waiting)| Item { id, waiting }).collect();
        Taken { batch, late }
    }
}

/// `UUIDv7s` of this millisecond, rising: a counter of 12 bits in the order of the batch, then 62
/// random bits.
fn new_ids(count: usize, entropy: &mut dyn FnMut(&mut [u8])) -> Vec<u128> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let ms = since.as_millis() & 0xFFFF_FFFF_FFFF;
    let mut random = vec![0; 8 * count];
    entropy(&mut random);
    let tails =
        random.chunks_exact(8).map(|bytes| bytes.iter().fold(0, |n, b| n << 8 | u128::from(*b)));
    let ids = tails.enumerate().map(|(at, tail)| {
        let counter = at as u128 & 0xFFF;
        ms << 80 | 7 << 76 | counter << 64 | 0b10 << 62 | tail >> 2
    });
    ids.collect()
}

/// The columns of a batch as `vf.redeem_many` takes them, as array literals.
pub struct Columns {
    pub ids: String,
    pub keys: String,
    pub fingerprints: String,
    pub customers: String,
    pub order_values: String,
    pub discounts: String,
    pub order_ids: String,
}

impl Columns {
    pub fn of<'a, W: 'a>(items: impl Iterator<Item = &'a Item<W>>) -> Self {
        let mut columns: [Column; 7] = Default::default();
        let [ids, keys, fingerprints, customers, order_values, discounts, order_ids] = &mut columns;
        for Item { id, waiting } in items {
            ids.uuid(*id);
            match &waiting.key {
                Some(key) => keys.text(key),
                None => keys.text(&format!("rdm_{}", id_text(*id))),
            }
            fingerprints.hex(&hex(waiting.fingerprint));
            customers.text(&waiting.ask.customer);
            order_values.number(waiting.ask.order_value_minor.into());
            discounts.number(waiting.ask.discount_minor.into());
            order_ids.text_or_null(waiting.ask.order_id.as_deref());
        }
        let [ids, keys, fingerprints, customers, order_values, discounts, order_ids] =
            columns.map(Column::end);
        Self { ids, keys, fingerprints, customers, order_values, discounts, order_ids }
    }
}

/// Price and fingerprint a plain body; nothing for any other.
pub fn read(terms: &Terms, body: &[u8]) -> Option<(Ask, [u8; 16])> {
    let ask = crate::plain::read(terms, body)?;
    let fingerprint = ask.fingerprint(terms);
    Some((ask, fingerprint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(key: Option<&str>, waiter: u32) -> Waiting<u32> {
        Waiting {
            ask: Ask {
                customer: "c,\"\\{}".into(),
                order_id: None,
                order_value_minor: 8_999,
                discount_minor: 4_500,
            },
            fingerprint: [0xAB; 16],
            key: key.map(str::to_owned),
            deadline: Instant::now() + Duration::from_secs(60),
            waiter,
        }
    }

    fn ones(bytes: &mut [u8]) {
        bytes.fill(0xFF);
    }

    #[test]
    fn a_retry_beside_its_first_try_waits_for_the_next_batch() {
        let mut queue = Queue::default();
        assert!(queue.push(waiting(Some("a"), 1)));
        assert!(!queue.push(waiting(Some("a"), 2)));
        assert!(!queue.push(waiting(None, 3)));
        let waiters = |taken: Taken<u32>| {
            taken.batch.iter().map(|item| item.waiting.waiter).collect::<Vec<_>>()
        };
        assert_eq!(waiters(queue.take(256, &mut ones)), [1, 3]);
        assert_eq!(waiters(queue.take(256, &mut ones)), [2]);
        assert!(waiters(queue.take(256, &mut ones)).is_empty());
        assert!(queue.push(waiting(None, 4)), "an empty batch ended the flying");
    }

    #[test]
    fn who_waited_too_long_is_not_sent() {
        let mut queue = Queue::default();
        let mut tired = waiting(None, 1);
        tired.deadline = Instant::now();
        queue.push(tired);
        queue.push(waiting(None, 2));
        let taken = queue.take(256, &mut ones);
        assert_eq!(taken.late, [1]);
        assert_eq!(taken.batch.len(), 1);
    }

    #[test]
    fn ids_are_version_7_and_rise_within_a_batch() {
        let ids = new_ids(256, &mut ones);
        assert!(ids.is_sorted());
        assert!(ids.iter().all(|id| id >> 76 & 15 == 7 && id >> 62 & 3 == 0b10));
    }

    #[test]
    fn a_batch_is_written_by_column() {
        let mut queue = Queue::default();
        queue.push(waiting(Some("k1"), 1));
        queue.push(waiting(None, 2));
        let batch = queue.take(256, &mut ones).batch;
        let columns = Columns::of(batch.iter());
        let own = id_text(batch[1].id);
        assert_eq!(columns.keys, format!("{{\"k1\",\"rdm_{own}\"}}"));
        assert_eq!(columns.customers, r#"{"c,\"\\{}","c,\"\\{}"}"#);
        assert_eq!(columns.order_values, "{8999,8999}");
        assert_eq!(columns.discounts, "{4500,4500}");
        assert_eq!(columns.order_ids, "{NULL,NULL}");
        assert!(columns.fingerprints.starts_with(r#"{"\\xabab"#), "{}", columns.fingerprints);
    }
}
