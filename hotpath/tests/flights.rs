//! The I/O thread against a connection that does what a test tells it: lose, be late, refuse, panic.

use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use _native::batcher::{Core, Item, Limits};
use _native::flight::{self, Dial, Link, Lost};
use _native::marks::Marks;
use _native::outcome::{Answer, Outcome, Sealed};
use _native::resp::Value;
use calls::read_calls;

mod calls;

const LEASE: &str = "0b9c2f0e-6a3d-4e1f-8c77-00ff10203040";
const OTHER: &str = "1b9c2f0e-6a3d-4e1f-8c77-00ff10203040";
const PATIENCE: Duration = Duration::from_secs(5);

type Step = Box<dyn FnOnce(&[Vec<String>]) -> Result<Vec<Value>, Lost> + Send>;

/// What the fake server does next, and what it was asked.
#[derive(Default)]
struct Script {
    steps: VecDeque<Step>,
    flights: Vec<Vec<Vec<String>>>,
    loads: usize,
    dials: usize,
    run_id: String,
}

#[derive(Clone, Default)]
struct Fake(Arc<(Mutex<Script>, Condvar)>);

impl Fake {
    fn next(
        self,
        step: impl FnOnce(&[Vec<String>]) -> Result<Vec<Value>, Lost> + Send + 'static,
    ) -> Self {
        self.0.0.lock().unwrap().steps.push_back(Box::new(step));
        self.0.1.notify_all();
        self
    }

    fn seen<T>(&self, look: impl FnOnce(&Script) -> T) -> T {
        look(&self.0.0.lock().unwrap())
    }
}

impl Dial for Fake {
    type Link = FakeLink;

    fn dial(&mut self, _tick: &mut dyn FnMut()) -> Result<FakeLink, Lost> {
        let mut script = self.0.0.lock().unwrap();
        script.dials += 1;
        if script.run_id.is_empty() {
            return Err(Lost("nobody is there".into()));
        }
        Ok(FakeLink { fake: self.clone(), run_id: script.run_id.clone() })
    }
}

struct FakeLink {
    fake: Fake,
    run_id: String,
}

impl Link for FakeLink {
    fn run_id(&self) -> &str {
        &self.run_id
    }

    fn fd(&self) -> RawFd {
        -1
    }

    fn exchange(
        &mut self,
        request: &[u8],
        count: usize,
        _timeout: Duration,
        tick: &mut dyn FnMut(),
    ) -> Result<Vec<Value>, Lost> {
        let calls = read_calls(request);
        assert_eq!(calls.len(), count);
        let (script, changed) = &*self.fake.0;
        let mut script = script.lock().unwrap();
        if calls[0][0] == "SCRIPT" {
            script.loads += 1;
            return Ok(vec![Value::Bulk(b"sha".to_vec())]);
        }
        script.flights.push(calls.clone());
        changed.notify_all();
        let step = loop {
            if let Some(step) = script.steps.pop_front() {
                break step;
            }
            tick();
            script = changed.wait_timeout(script, Duration::from_millis(5)).unwrap().0;
        };
        drop(script);
        step(&calls)
    }
}

/// Answers with wins from `first` on, one reply a call.
fn wins(first: i64) -> impl FnOnce(&[Vec<String>]) -> Result<Vec<Value>, Lost> + Send {
    move |calls| {
        let replies = calls.iter().map(|call| {
            let count: i64 = call[8].parse().unwrap();
            let numbers = (first..first + count).map(Value::Int);
            Value::Array([Value::Int(9), Value::Int(100)].into_iter().chain(numbers).collect())
        });
        Ok(replies.collect())
    }
}

fn error(text: &'static str) -> impl FnOnce(&[Vec<String>]) -> Result<Vec<Value>, Lost> + Send {
    move |calls| Ok(calls.iter().map(|_| Value::Error(text.into())).collect())
}

struct Running {
    core: Arc<Core>,
    fake: Fake,
    thread: Option<JoinHandle<()>>,
    answers: Vec<(u64, Answer)>,
}

impl Running {
    fn start(fake: Fake, batch_max: usize, queue_max: usize) -> Self {
        fake.0.0.lock().unwrap().run_id = "run".into();
        Self::start_as_is(fake, batch_max, queue_max)
    }

    fn start_as_is(fake: Fake, batch_max: usize, queue_max: usize) -> Self {
        let limits = Limits { batch_max, queue_max, flight_timeout: PATIENCE };
        let core = Arc::new(Core::new(limits, Marks::open(None).unwrap()).unwrap());
        let (shared, dial) = (core.clone(), fake.clone());
        let thread = Some(std::thread::spawn(move || flight::run(&shared, dial)));
        Self { core, fake, thread, answers: Vec::new() }
    }

    fn open(&self, lease: &str) -> usize {
        let uuid = _native::marks::parse_uuid(lease).unwrap();
        self.core.open_lease(lease, uuid, "run").unwrap()
    }

    fn claim(&self, slot: usize, ticket: u64) -> Result<(), Outcome> {
        self.claim_within(slot, ticket, PATIENCE)
    }

    fn claim_within(&self, slot: usize, ticket: u64, wait: Duration) -> Result<(), Outcome> {
        let bytes = self.core.kind(slot).unwrap().item(&format!("k{ticket}"), "f", "c", b"{}");
        self.core.submit(slot, Item { ticket, deadline: Instant::now() + wait, bytes })
    }

    /// Wait until a ticket is answered.
    fn answer(&mut self, ticket: u64) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            self.answers.extend(self.core.drain());
            if let Some(at) = self.answers.iter().position(|(done, _)| *done == ticket) {
                return self.answers.swap_remove(at).1;
            }
            assert!(Instant::now() < deadline, "ticket {ticket} was never answered");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn outcome(&mut self, ticket: u64) -> Outcome {
        self.answer(ticket).outcome
    }

    fn until(&self, condition: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !condition(self) {
            assert!(Instant::now() < deadline, "it did not happen");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn until_flights(&self, count: usize) {
        self.until(|running| running.fake.seen(|script| script.flights.len()) == count);
    }

    fn sealed(&self, slot: usize) -> Option<Sealed> {
        self.core.status().slots.iter().find(|status| status.slot == slot).unwrap().sealed
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.core.close();
        // A thread that waits for a step goes on to its end.
        let _ = self.fake.clone().next(|_| Err(Lost("the test is over".into())));
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking());
    }
}

#[test]
fn wins_are_answered_with_their_numbers_and_raise_the_mark() {
    let mut running = Running::start(Fake::default().next(wins(1)), 8, 8);
    let slot = running.open(LEASE);
    running.claim(slot, 1).unwrap();
    let answer = running.answer(1);
    let won = Answer { outcome: Outcome::Won, seq: 1, at_ms: 9, remaining: 99, detail: None };
    assert_eq!(answer, won);
    assert_eq!(running.core.status().slots[slot].mark, 1);
}

#[test]
fn a_lost_reply_is_unknown_and_the_next_connection_goes_on() {
    let fake = Fake::default().next(|_| Err(Lost("reset".into()))).next(wins(2));
    let mut running = Running::start(fake, 8, 8);
    let slot = running.open(LEASE);
    running.claim(slot, 1).unwrap();
    assert_eq!(running.outcome(1), Outcome::Unknown);
    running.claim(slot, 2).unwrap();
    assert_eq!(running.answer(2).seq, 2);
    assert_eq!(running.fake.seen(|script| (script.dials, script.loads)), (2, 2));
}

#[test]
fn a_reply_of_another_length_is_unknown_and_ends_the_connection() {
    let cut = |_: &[Vec<String>]| Ok(vec![Value::Array(vec![Value::Int(9), Value::Int(100)])]);
    let mut running = Running::start(Fake::default().next(cut).next(wins(1)), 8, 8);
    let slot = running.open(LEASE);
    running.claim(slot, 1).unwrap();
    assert_eq!(running.outcome(1), Outcome::Unknown);
    assert_eq!(running.core.status().slots[slot].mark, 0);
    running.claim(slot, 2).unwrap();
    assert_eq!(running.outcome(2), Outcome::Won);
    assert_eq!(running.fake.seen(|script| script.dials), 2);
}

#[test]
fn an_error_before_the_first_write_is_not_applied_and_any_other_is_unknown() {
    let fake = Fake::default().next(error("OOM no memory")).next(error("ERR broken"));
    let mut running = Running::start(fake.next(wins(1)), 8, 8);
    let slot = running.open(LEASE);
    for (ticket, expected) in [(1, Outcome::Unavailable), (2, Outcome::Unknown), (3, Outcome::Won)]
    {
        running.claim(slot, ticket).unwrap();
        assert_eq!(running.outcome(ticket), expected);
    }
    assert_eq!(running.fake.seen(|script| (script.dials, script.loads)), (1, 1));
}

#[test]
fn a_missing_script_is_loaded_only_on_a_connection_that_was_compared_again() {
    let mut running = Running::start(Fake::default(), 8, 8);
    let slot = running.open(LEASE);
    running.claim(slot, 1).unwrap();
    running.until_flights(1);
    running.fake.0.0.lock().unwrap().run_id = "another".into();
    let _ = running.fake.clone().next(error("NOSCRIPT No matching script."));
    assert_eq!(running.outcome(1), Outcome::Unavailable);
    running.until(|running| running.sealed(slot) == Some(Sealed::RunId));
    assert_eq!(running.claim(slot, 2), Err(Outcome::Unavailable));
    assert_eq!(running.fake.seen(|script| (script.loads, script.flights.len())), (1, 1));
}

#[test]
fn one_flight_is_under_way_and_what_arrives_meanwhile_is_the_next_batch() {
    let mut running = Running::start(Fake::default(), 8, 8);
    let slot = running.open(LEASE);
    running.claim(slot, 1).unwrap();
    running.until_flights(1);
    for ticket in 2..=6 {
        running.claim(slot, ticket).unwrap();
    }
    assert_eq!(running.core.status().in_flight, 1);
    let _ = running.fake.clone().next(wins(1));
    assert_eq!(running.answer(1).seq, 1);
    let _ = running.fake.clone().next(wins(2));
    for ticket in 2..=6 {
        assert_eq!(running.answer(ticket).seq, ticket);
    }
    let status = running.core.status();
    assert_eq!((status.batches, status.items, status.wakeups), (2, 6, 2));
}

#[test]
fn slots_take_turns_and_no_batch_is_larger_than_its_maximum() {
    let mut running = Running::start(Fake::default(), 3, 64);
    let (greedy, modest) = (running.open(LEASE), running.open(OTHER));
    running.claim(greedy, 1).unwrap();
    running.until_flights(1);
    for ticket in 2..=9 {
        running.claim(greedy, ticket).unwrap();
    }
    running.claim(modest, 10).unwrap();
    let _ = running.fake.clone().next(wins(1)).next(wins(2)).next(wins(5)).next(wins(8));
    assert_eq!(running.outcome(10), Outcome::Won);
    for ticket in 1..=9 {
        assert_eq!(running.answer(ticket).seq, ticket);
    }
    let sizes: Vec<Vec<(bool, usize)>> = running.fake.seen(|script| {
        let of_call = |call: &Vec<String>| (call[7] == LEASE, call[8].parse().unwrap());
        script.flights.iter().map(|calls| calls.iter().map(of_call).collect()).collect()
    });
    let expected = [vec![(true, 1)], vec![(true, 3), (false, 1)], vec![(true, 3)], vec![(true, 2)]];
    assert_eq!(sizes, expected);
}

#[test]
fn a_full_queue_refuses_and_a_passed_deadline_is_never_sent() {
    let mut running = Running::start(Fake::default(), 8, 2);
    let slot = running.open(LEASE);
    running.claim(slot, 1).unwrap();
    running.until_flights(1);
    running.claim(slot, 2).unwrap();
    running.claim_within(slot, 3, Duration::from_millis(10)).unwrap();
    assert_eq!(running.claim(slot, 4), Err(Outcome::Overloaded));
    assert_eq!(running.outcome(3), Outcome::Expired);
    let _ = running.fake.clone().next(wins(1)).next(wins(2));
    assert_eq!(running.answer(2).seq, 2);
    let sent = running.fake.seen(|script| script.flights.concat().concat());
    assert!(!sent.contains(&"k3".to_owned()));
}

#[test]
fn a_sealed_slot_hands_out_nothing_that_is_still_in_flight() {
    let mut running = Running::start(Fake::default(), 8, 8);
    let slot = running.open(LEASE);
    running.claim(slot, 1).unwrap();
    running.until_flights(1);
    running.claim(slot, 2).unwrap();
    assert_eq!(running.core.seal(slot), Some(0));
    assert_eq!(running.outcome(2), Outcome::Unavailable);
    let _ = running.fake.clone().next(wins(1));
    assert_eq!(running.outcome(1), Outcome::Unknown);
    assert_eq!(running.core.seal(slot), Some(0));
    assert_eq!(running.sealed(slot), Some(Sealed::Asked));
}

#[test]
fn a_number_that_was_handed_out_before_seals_the_slot() {
    let mut running = Running::start(Fake::default().next(wins(5)).next(wins(5)), 8, 8);
    let slot = running.open(LEASE);
    running.claim(slot, 1).unwrap();
    assert_eq!(running.answer(1).seq, 5);
    running.claim(slot, 2).unwrap();
    assert_eq!(running.outcome(2), Outcome::Unknown);
    assert_eq!(running.sealed(slot), Some(Sealed::SeqNotAboveMark));
    assert_eq!(running.claim(slot, 3), Err(Outcome::Unavailable));
}

#[test]
fn a_panic_ends_the_batcher_and_answers_everybody() {
    let mut running = Running::start(Fake::default(), 8, 8);
    let slot = running.open(LEASE);
    running.claim(slot, 1).unwrap();
    running.until_flights(1);
    running.claim(slot, 2).unwrap();
    let _ = running.fake.clone().next(|_| panic!("a bug"));
    assert_eq!(running.outcome(1), Outcome::Unknown);
    assert_eq!(running.outcome(2), Outcome::Unavailable);
    running.until(|running| running.core.status().is_dead);
    assert_eq!(running.claim(slot, 3), Err(Outcome::Unavailable));
}

#[test]
fn without_a_server_claims_wait_out_their_deadline_and_then_a_second_refuses_at_once() {
    let mut running = Running::start_as_is(Fake::default(), 8, 8);
    let slot = running.open(LEASE);
    running.claim_within(slot, 1, Duration::from_millis(50)).unwrap();
    assert_eq!(running.outcome(1), Outcome::Expired);
    running.claim_within(slot, 2, PATIENCE).unwrap();
    assert_eq!(running.outcome(2), Outcome::Unavailable);
    assert_eq!(running.claim(slot, 3), Err(Outcome::Unavailable));
    running.fake.0.0.lock().unwrap().run_id = "run".into();
    running.until(|running| running.core.status().run_id.is_some());
    let _ = running.fake.clone().next(wins(1));
    running.claim(slot, 4).unwrap();
    assert_eq!(running.outcome(4), Outcome::Won);
}

#[test]
fn closing_refuses_what_waits_and_lets_the_flight_land() {
    let mut running = Running::start(Fake::default(), 8, 8);
    let slot = running.open(LEASE);
    running.claim(slot, 1).unwrap();
    running.until_flights(1);
    running.claim(slot, 2).unwrap();
    running.core.close();
    assert_eq!(running.outcome(2), Outcome::Unavailable);
    let _ = running.fake.clone().next(wins(1));
    assert_eq!(running.outcome(1), Outcome::Won);
    assert_eq!(running.claim(slot, 3), Err(Outcome::Unavailable));
}
