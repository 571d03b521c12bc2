//! What both threads share: slots, the bounded queue, and the answers waiting for the loop.
//!
//! One mutex guards it all and is held for microseconds: never across I/O, never by one who waits.
//! Handing out a win is one step under it (sealed? above the mark? raise the mark, push the
//! answer), so that once `seal` has returned a mark, no win above it can still come out.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::marks::{Marks, parse_uuid};
use crate::outcome::{Answer, Outcome, Sealed};
use crate::resp::Value;
use crate::script::{self, Kind, Told};
use crate::wake::Wake;

/// Items of one flight over all its targets: four full batches, a few ms of the server's time.
pub const FLIGHT_ITEMS_MAX: usize = 1_024;
/// Without a connection for so long, claims are refused at once instead of waiting.
pub const CIRCUIT_OPEN: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct Limits {
    pub batch_max: usize,
    pub queue_max: usize,
    pub flight_timeout: Duration,
}

pub struct Item {
    pub ticket: u64,
    pub deadline: Instant,
    pub bytes: Box<[u8]>,
}

pub struct Slot {
    pub target: String,
    pub subject: String,
    pub kind: Kind,
    head: Arc<[u8]>,
    run_id: String,
    mark: Option<usize>,
    sealed: Option<Sealed>,
    waiting: VecDeque<Item>,
}

/// One batch of a flight.
pub struct Batch {
    pub slot: usize,
    pub kind: Kind,
    pub head: Arc<[u8]>,
    pub items: Vec<Item>,
}

pub struct SlotStatus {
    pub slot: usize,
    pub target: String,
    pub sealed: Option<Sealed>,
    pub mark: u64,
}

pub struct Status {
    pub run_id: Option<String>,
    pub is_dead: bool,
    pub queued: usize,
    pub in_flight: usize,
    pub batches: u64,
    pub items: u64,
    pub wakeups: u64,
    pub last_error: Option<String>,
    pub marks_were_lost: bool,
    pub slots: Vec<SlotStatus>,
}

struct State {
    /// The open ones. A number is never given twice, so a late claim meets no other lease.
    slots: BTreeMap<usize, Slot>,
    next_slot: usize,
    /// Slots with waiting items, the next in turn first.
    active: VecDeque<usize>,
    queued: usize,
    in_flight: usize,
    batches: u64,
    items: u64,
    wakeups: u64,
    done: Vec<(u64, Answer)>,
    /// Shared where one worker has a batcher for each of several servers.
    marks: Arc<Marks>,
    /// The connected server's, while connected.
    run_id: Option<String>,
    away_since: Instant,
    last_error: Option<String>,
    is_parked: bool,
    is_closing: bool,
    is_dead: bool,
}

pub struct Core {
    state: Mutex<State>,
    pub limits: Limits,
    /// Wakes the I/O thread where it rests.
    pub work: Wake,
    /// Wakes the loop: once for all answers it has not yet drained.
    pub answers: Wake,
    /// Called instead, on whichever thread has the answers, which it then takes.
    listener: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Core {
    pub fn new(limits: Limits, marks: impl Into<Arc<Marks>>) -> std::io::Result<Self> {
        let state = State {
            slots: BTreeMap::new(),
            next_slot: 0,
            active: VecDeque::new(),
            queued: 0,
            in_flight: 0,
            batches: 0,
            items: 0,
            wakeups: 0,
            done: Vec::new(),
            marks: marks.into(),
            run_id: None,
            away_since: Instant::now(),
            last_error: None,
            is_parked: false,
            is_closing: false,
            is_dead: false,
        };
        Ok(Self {
            state: Mutex::new(state),
            limits,
            work: Wake::new()?,
            answers: Wake::new()?,
            listener: OnceLock::new(),
        })
    }

    /// A panic under the lock can't leave a half-made state behind that anybody would then trust:
    /// the I/O thread's ends the batcher, which refuses everything from then on.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Do something to the state, then wake the loop if answers appeared where there were none.
    fn change<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        let were_waiting = !state.done.is_empty();
        let result = act(&mut state);
        if !were_waiting && !state.done.is_empty() {
            state.wakeups += 1;
            drop(state);
            match self.listener.get() {
                Some(listener) => listener(),
                None => self.answers.signal(),
            }
        }
        result
    }

    // The loop's side -----------------------------------------------------------------------------

    /// Give a slot for a lease; nothing when the marks file has no room. The same one while open.
    pub fn open_lease(&self, lease_id: &str, uuid: [u8; 16], run_id: &str) -> Option<usize> {
        self.change(|state| {
            if let Some(slot) = state.find(lease_id, lease_id) {
                return Some(slot);
            }
            let mark = Some(state.marks.take(uuid)?);
            Some(state.open(Kind::Lease, lease_id, lease_id, run_id, mark))
        })
    }

    pub fn open_crowd(&self, voucher_id: &str, lineage: &str) -> usize {
        self.change(|state| match state.find(voucher_id, lineage) {
            Some(slot) => slot,
            None => state.open(Kind::Crowd, voucher_id, lineage, "", None),
        })
    }

    /// Nothing for a slot that never was; one that is closed stays closed.
    pub fn reopen(&self, slot: usize, run_id: &str) -> Option<()> {
        self.change(|state| {
            if let Some(opened) = state.slots.get_mut(&slot) {
                run_id.clone_into(&mut opened.run_id);
                opened.sealed = None;
                state.compare(slot);
            }
            state.was_given(slot)
        })
    }

    pub fn seal(&self, slot: usize) -> Option<u64> {
        self.change(|state| {
            state.seal(slot, Sealed::Asked);
            state.was_given(slot).map(|()| state.mark(slot))
        })
    }

    /// Forget a slot. Its mark stays where another batcher goes on with the lease.
    pub fn close_slot(&self, slot: usize, keeps_mark: bool) -> Option<()> {
        self.change(|state| {
            state.seal(slot, Sealed::Asked);
            let closed = state.slots.remove(&slot);
            if let Some(mark) = closed.and_then(|closed| closed.mark).filter(|_| !keeps_mark) {
                state.marks.free(mark);
            }
            state.was_given(slot)
        })
    }

    /// Free the marks of leases that are neither open here nor named.
    pub fn keep_marks(&self, leases: &HashSet<[u8; 16]>) {
        self.change(|state| {
            let open: HashSet<_> =
                state.slots.values().filter_map(|slot| parse_uuid(&slot.target)).collect();
            state.marks.retain(|lease| open.contains(&lease) || leases.contains(&lease));
        });
    }

    /// Which script an open slot's items are encoded for; nothing for one that never was.
    pub fn kind(&self, slot: usize) -> Option<Kind> {
        let state = self.lock();
        let kind = state.slots.get(&slot).map(|slot| slot.kind);
        // What is encoded for a closed slot is never sent.
        kind.or_else(|| state.was_given(slot).map(|()| Kind::Lease))
    }

    /// Queue an item, or say at once why not.
    pub fn submit(&self, slot: usize, item: Item) -> Result<(), Outcome> {
        let mut state = self.lock();
        if state.is_closing || state.is_dead || state.circuit_is_open() {
            return Err(Outcome::Unavailable);
        }
        let is_full = state.queued >= self.limits.queue_max;
        let Some(target) = state.slots.get_mut(&slot).filter(|slot| slot.sealed.is_none()) else {
            return Err(Outcome::Unavailable);
        };
        if is_full {
            return Err(Outcome::Overloaded);
        }
        target.waiting.push_back(item);
        if target.waiting.len() == 1 {
            state.active.push_back(slot);
        }
        state.queued += 1;
        if state.is_parked {
            state.is_parked = false;
            drop(state);
            self.work.signal();
        }
        Ok(())
    }

    /// Take the answers that came since the last call.
    pub fn drain(&self) -> Vec<(u64, Answer)> {
        self.answers.clear();
        self.take_answers()
    }

    /// As `drain`, for a listener.
    pub fn take_answers(&self) -> Vec<(u64, Answer)> {
        std::mem::take(&mut self.lock().done)
    }

    /// Have answers taken by the threads that bring them; once, before the first claim.
    pub fn listen(&self, listener: Box<dyn Fn() + Send + Sync>) {
        let was_heard = self.listener.set(listener).is_err();
        debug_assert!(!was_heard, "there is one listener");
    }

    pub fn close(&self) {
        self.change(|state| {
            state.is_closing = true;
            state.refuse_all(Outcome::Unavailable);
        });
        self.work.signal();
    }

    pub fn status(&self) -> Status {
        let state = self.lock();
        let slots = state.slots.iter().map(|(index, slot)| SlotStatus {
            slot: *index,
            target: slot.target.clone(),
            sealed: slot.sealed,
            mark: state.mark(*index),
        });
        Status {
            slots: slots.collect(),
            run_id: state.run_id.clone(),
            is_dead: state.is_dead,
            queued: state.queued,
            in_flight: state.in_flight,
            batches: state.batches,
            items: state.items,
            wakeups: state.wakeups,
            last_error: state.last_error.clone(),
            marks_were_lost: state.marks.were_lost(),
        }
    }

    // The I/O thread's side -----------------------------------------------------------------------

    pub fn is_closing(&self) -> bool {
        self.lock().is_closing
    }

    /// A new connection: seal every slot that belongs to another server.
    pub fn connected(&self, run_id: &str) {
        self.change(|state| {
            state.run_id = Some(run_id.to_owned());
            state.last_error = None;
            for slot in state.slots.keys().copied().collect::<Vec<_>>() {
                state.compare(slot);
            }
        });
    }

    pub fn disconnected(&self, why: &str) {
        self.change(|state| {
            if state.run_id.take().is_some() {
                state.away_since = Instant::now();
            }
            state.last_error = Some(why.to_owned());
        });
    }

    /// Answer whoever waited past a deadline, or past the patience with a missing connection.
    pub fn expire(&self) {
        self.change(State::expire);
    }

    /// Whether the thread may rest: then the next submission wakes it.
    pub fn park(&self) -> bool {
        let mut state = self.lock();
        state.is_parked = state.queued == 0 && !state.is_closing;
        state.is_parked
    }

    /// Move waiting items into a flight: slots in turn, at most one batch of each.
    pub fn take(&self, flight: &mut Vec<Batch>) {
        self.change(|state| {
            state.expire();
            let mut room = FLIGHT_ITEMS_MAX;
            for _ in 0..state.active.len() {
                let Some(index) = state.active.pop_front() else { break };
                let Some(slot) = state.slots.get_mut(&index) else { continue };
                let count = slot.waiting.len().min(self.limits.batch_max).min(room);
                let items = slot.waiting.drain(..count).collect();
                flight.push(Batch { slot: index, kind: slot.kind, head: slot.head.clone(), items });
                if !slot.waiting.is_empty() {
                    state.active.push_back(index);
                }
                state.queued -= count;
                state.in_flight += count;
                room -= count;
                if room == 0 {
                    break;
                }
            }
        });
    }

    /// Answer a whole flight alike: nobody knows, or nothing was sent.
    pub fn fail(&self, flight: &mut Vec<Batch>, outcome: Outcome) {
        self.change(|state| {
            for batch in flight.drain(..) {
                state.answer_all(&batch.items, outcome);
            }
            state.in_flight = 0;
        });
    }

    /// Answer a flight from its replies. False when the connection must not be used again.
    pub fn land(&self, flight: &mut Vec<Batch>, replies: Vec<Value>) -> bool {
        self.change(|state| {
            let mut is_usable = replies.len() == flight.len();
            let mut replies = replies.into_iter();
            for batch in flight.drain(..) {
                state.batches += 1;
                state.items += batch.items.len() as u64;
                is_usable &= state.land(&batch, replies.next().unwrap_or(Value::Nil));
            }
            state.in_flight = 0;
            is_usable
        })
    }

    /// The thread has ended: by a panic, if not by closing. What it had in hand may have been sent.
    pub fn end(&self, flight: &mut Vec<Batch>, panicked: bool) {
        self.fail(flight, Outcome::Unknown);
        self.change(|state| {
            state.is_dead |= panicked;
            state.is_closing = true;
            state.run_id = None;
            state.refuse_all(Outcome::Unavailable);
        });
    }
}

impl State {
    fn find(&self, target: &str, subject: &str) -> Option<usize> {
        let is_it = |slot: &Slot| slot.target == target && slot.subject == subject;
        self.slots.iter().find(|(_, slot)| is_it(slot)).map(|(index, _)| *index)
    }

    fn was_given(&self, slot: usize) -> Option<()> {
        (slot < self.next_slot).then_some(())
    }

    fn open(
        &mut self,
        kind: Kind,
        target: &str,
        subject: &str,
        run_id: &str,
        mark: Option<usize>,
    ) -> usize {
        let opened = Slot {
            target: target.to_owned(),
            subject: subject.to_owned(),
            kind,
            head: kind.head(target, subject).into(),
            run_id: run_id.to_owned(),
            mark,
            sealed: None,
            waiting: VecDeque::new(),
        };
        let slot = self.next_slot;
        self.next_slot += 1;
        self.slots.insert(slot, opened);
        self.compare(slot);
        slot
    }

    /// Seal a lease's slot if the connected server is not the one it was armed on.
    fn compare(&mut self, slot: usize) {
        let (Some(run_id), Some(compared)) = (&self.run_id, self.slots.get(&slot)) else { return };
        if compared.kind == Kind::Lease && compared.run_id != *run_id {
            self.seal(slot, Sealed::RunId);
        }
    }

    /// The first reason stays: a slot sealed as asked is not opened by a later finding.
    fn seal(&mut self, slot: usize, reason: Sealed) {
        if let Some(sealed) = self.slots.get_mut(&slot) {
            sealed.sealed.get_or_insert(reason);
            self.refuse(slot, Outcome::Unavailable);
        }
    }

    fn mark(&self, slot: usize) -> u64 {
        let mark = self.slots.get(&slot).and_then(|slot| slot.mark);
        mark.map_or(0, |mark| self.marks.get(mark))
    }

    fn circuit_is_open(&self) -> bool {
        self.run_id.is_none() && self.away_since.elapsed() > CIRCUIT_OPEN
    }

    fn refuse(&mut self, slot: usize, outcome: Outcome) {
        let Some(refused) = self.slots.get_mut(&slot) else { return };
        let waiting = std::mem::take(&mut refused.waiting);
        if waiting.is_empty() {
            return;
        }
        self.queued -= waiting.len();
        self.active.retain(|active| *active != slot);
        self.done.extend(waiting.iter().map(|item| (item.ticket, Answer::bare(outcome))));
    }

    fn refuse_all(&mut self, outcome: Outcome) {
        for slot in self.active.clone() {
            self.refuse(slot, outcome);
        }
    }

    fn expire(&mut self) {
        if self.queued == 0 {
            return;
        }
        if self.circuit_is_open() {
            self.refuse_all(Outcome::Unavailable);
        }
        let now = Instant::now();
        let (slots, done) = (&mut self.slots, &mut self.done);
        let mut expired = 0;
        self.active.retain(|index| {
            let Some(slot) = slots.get_mut(index) else { return false };
            slot.waiting.retain(|item| {
                let is_late = item.deadline <= now;
                if is_late {
                    expired += 1;
                    done.push((item.ticket, Answer::bare(Outcome::Expired)));
                }
                !is_late
            });
            !slot.waiting.is_empty()
        });
        self.queued -= expired;
    }

    fn answer_all(&mut self, items: &[Item], outcome: Outcome) {
        self.done.extend(items.iter().map(|item| (item.ticket, Answer::bare(outcome))));
    }

    fn land(&mut self, batch: &Batch, value: Value) -> bool {
        if let Value::Error(error) = &value {
            let applied = !script::was_refused_whole(error);
            let outcome = if applied { Outcome::Unknown } else { Outcome::Unavailable };
            self.answer_all(&batch.items, outcome);
            self.last_error = Some(String::from_utf8_lossy(error).into_owned());
            return !script::ends_the_connection(error);
        }
        let Some(reply) = script::read_reply(value, batch.items.len()) else {
            self.answer_all(&batch.items, Outcome::Unknown);
            return false;
        };
        for (item, told) in batch.items.iter().zip(reply.items) {
            let answer = self.judge(batch, told, reply.at_ms, reply.size);
            self.done.push((item.ticket, answer));
        }
        true
    }

    fn judge(&mut self, batch: &Batch, told: Told, at_ms: i64, size: i64) -> Answer {
        let (slot, kind) = (batch.slot, batch.kind);
        let bare = |outcome| Answer { at_ms, ..Answer::bare(outcome) };
        match told {
            Told::Refused(Outcome::Fenced) => {
                self.seal(slot, Sealed::Fenced);
                bare(Outcome::Unavailable)
            }
            Told::Refused(outcome) => bare(outcome),
            Told::CustomerLimit { reference } => {
                Answer { detail: Some(reference), ..bare(Outcome::CustomerLimit) }
            }
            Told::Won { seq } => {
                let Some(mark) = self.open_mark(slot) else {
                    return Answer::bare(Outcome::Unknown);
                };
                if seq <= self.marks.get(mark) {
                    self.seal(slot, Sealed::SeqNotAboveMark);
                    return Answer::bare(Outcome::Unknown);
                }
                self.marks.raise_to(mark, seq);
                Answer { seq, remaining: size - seq as i64, ..bare(Outcome::Won) }
            }
            // A replay repeats a win that nobody may have been told of yet. It is told now, so it
            // counts for the mark; and a sealed slot, whose mark was reported, can't add to it.
            Told::Replayed { seq, at_ms, remaining, payload } => {
                if kind == Kind::Lease && seq > self.mark(slot) {
                    let Some(mark) = self.open_mark(slot) else {
                        return Answer::bare(Outcome::Unknown);
                    };
                    self.marks.raise_to(mark, seq);
                }
                let detail = Some(payload);
                Answer { outcome: Outcome::Replayed, seq, at_ms, remaining, detail }
            }
        }
    }

    /// The mark of a slot that may still hand out wins.
    fn open_mark(&self, slot: usize) -> Option<usize> {
        self.slots.get(&slot).filter(|slot| slot.sealed.is_none())?.mark
    }
}
