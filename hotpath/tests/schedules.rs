//! The batcher through schedules drawn from a seed, in one thread: between any two moves of the I/O
//! side the loop side submits, drains, seals and reopens, while the server loses, refuses, cuts and
//! forgets. `VAUCHFLOW_SCHEDULES=100000` plays more, `VAUCHFLOW_SEED=n` plays one.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use _native::batcher::{Core, Item, Limits};
use _native::flight::{self, Dial, Link, Lost};
use _native::marks::{Marks, parse_uuid};
use _native::outcome::{Answer, Outcome};
use _native::resp::Value;
use calls::read_calls;

mod calls;

/// A few seconds' worth in every run.
const SCHEDULES: u64 = 1_000;
const EXCHANGES: usize = 40;
const SIZE: i64 = 25;
const NOT_APPLIED: [Outcome; 3] = [Outcome::Overloaded, Outcome::Expired, Outcome::Unavailable];

struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // xorshift64*: any seed but zero.
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
}

/// A lease as Redis holds it: who won which number.
#[derive(Default)]
struct Lease {
    winners: Vec<(String, u64)>,
}

struct Sim {
    core: Rc<Core>,
    dice: Dice,
    run: u64,
    lease: u64,
    slot: usize,
    leases: HashMap<String, Lease>,
    /// Tickets that ever won a number, whatever was forgotten since.
    applied: HashSet<u64>,
    /// Whose key and which lease a ticket is.
    asked: Vec<(String, String)>,
    outcomes: HashMap<u64, Answer>,
    /// Which key each answered number of a lease belongs to.
    answered: HashMap<(String, u64), String>,
    sealed_at: Option<u64>,
    exchanges: usize,
    counts: HashMap<u8, usize>,
}

impl Sim {
    fn lease_id(&self) -> String {
        format!("{:08x}-0000-4000-8000-000000000000", self.lease)
    }

    fn run_id(&self) -> String {
        format!("run-{}", self.run)
    }

    fn open_lease(&mut self) {
        self.lease += 1;
        let id = self.lease_id();
        self.leases.insert(id.clone(), Lease::default());
        self.slot = self.core.open_lease(&id, parse_uuid(&id).unwrap(), &self.run_id()).unwrap();
        self.sealed_at = None;
    }

    /// What `PostgreSQL` would judge: go on if Redis knows every number answered, else another lease.
    fn judge(&mut self) {
        let mark = self.core.seal(self.slot).unwrap();
        self.drain();
        let id = self.lease_id();
        let issued = self.leases.get(&id).map_or(0, |lease| lease.winners.len() as u64);
        if self.leases.contains_key(&id) && issued >= mark {
            self.core.reopen(self.slot, &self.run_id()).unwrap();
            self.sealed_at = None;
        } else {
            self.core.close_slot(self.slot, false).unwrap();
            self.open_lease();
        }
    }

    fn submit(&mut self) {
        let ticket = self.asked.len() as u64;
        let is_retry = ticket > 0 && self.dice.roll(4) == 0;
        let key = if is_retry {
            let earlier = ticket - 1 - self.dice.roll(ticket.min(8));
            self.asked[earlier as usize].0.clone()
        } else {
            format!("k{ticket}")
        };
        let bytes = self.core.kind(self.slot).unwrap().item(
            &key,
            &"a1".repeat(16),
            "",
            ticket.to_string().as_bytes(),
        );
        self.asked.push((key, self.lease_id()));
        let patience = if self.dice.roll(10) == 0 { 0 } else { 3_600 };
        let deadline = Instant::now() + Duration::from_secs(patience);
        if let Err(refused) = self.core.submit(self.slot, Item { ticket, deadline, bytes }) {
            self.told(ticket, Answer::bare(refused));
        }
    }

    fn drain(&mut self) {
        for (ticket, answer) in self.core.drain() {
            self.told(ticket, answer);
        }
    }

    fn told(&mut self, ticket: u64, answer: Answer) {
        *self.counts.entry(answer.outcome as u8).or_default() += 1;
        if matches!(answer.outcome, Outcome::Won | Outcome::Replayed) {
            let (key, lease) = self.asked[ticket as usize].clone();
            if let Some(mark) = self.sealed_at.filter(|_| lease == self.lease_id()) {
                assert!(answer.seq <= mark, "{} was answered after a seal at {mark}", answer.seq);
            }
            let first = self.answered.entry((lease, answer.seq)).or_insert_with(|| key.clone());
            assert_eq!(*first, key, "number {} was answered to two keys", answer.seq);
        }
        let again = self.outcomes.insert(ticket, answer);
        assert!(again.is_none(), "ticket {ticket} was answered twice");
    }

    /// What the loop may do at any moment.
    fn act(&mut self) {
        for _ in 0..self.dice.roll(6) {
            match self.dice.roll(16) {
                0..=9 => self.submit(),
                10 | 11 => self.drain(),
                12 => {
                    let mark = self.core.seal(self.slot).unwrap();
                    self.drain();
                    self.sealed_at = Some(mark);
                }
                _ => self.judge(),
            }
        }
    }

    /// `claim.lua` for one call.
    fn claim(&mut self, call: &[String]) -> Value {
        let (id, count) = (&call[7], call[8].parse::<usize>().unwrap());
        let mut reply = vec![Value::Int(9), Value::Int(SIZE)];
        for item in call[9..].chunks_exact(4) {
            let Some(lease) = self.leases.get_mut(id) else {
                reply.push(Value::Int(-9));
                continue;
            };
            let known = lease.winners.iter().position(|(key, _)| *key == item[0]);
            reply.push(if let Some(at) = known {
                Value::Bulk(format!("R{}|9|1|{}", at + 1, lease.winners[at].1).into_bytes())
            } else if lease.winners.len() as i64 >= SIZE {
                Value::Int(-3)
            } else {
                let ticket = item[3].parse().unwrap();
                lease.winners.push((item[0].clone(), ticket));
                self.applied.insert(ticket);
                Value::Int(lease.winners.len() as i64)
            });
        }
        assert_eq!(reply.len(), count + 2);
        Value::Array(reply)
    }

    fn forget(&mut self) {
        let (last, id) = (self.dice.roll(3) as usize, self.lease_id());
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.winners.truncate(lease.winners.len().saturating_sub(last + 1));
        }
        if self.dice.roll(8) == 0 {
            self.leases.clear();
        }
    }

    fn serve(&mut self, calls: &[Vec<String>]) -> Result<Vec<Value>, Lost> {
        let lost = || Lost("reset".into());
        let fault = self.dice.roll(24);
        let error = |text: &str| Ok(calls.iter().map(|_| Value::Error(text.into())).collect());
        match fault {
            0 => return Err(lost()),
            1 => return error("OOM no memory"),
            2 => return error("NOSCRIPT No matching script."),
            3 => return error("READONLY You can't write against a read only replica."),
            4 | 5 => {
                self.run += 1;
                if fault == 5 {
                    self.forget();
                }
                return Err(lost());
            }
            _ => {}
        }
        let mut replies: Vec<_> = calls.iter().map(|call| self.claim(call)).collect();
        self.act();
        match fault {
            6 => Err(lost()),
            7 => error("ERR broken after the first write"),
            8 => {
                if let Some(Value::Array(items)) = replies.last_mut() {
                    items.pop();
                }
                Ok(replies)
            }
            9 => {
                replies.push(Value::Nil);
                Ok(replies)
            }
            10 => {
                self.run += 1;
                Err(lost())
            }
            _ => Ok(replies),
        }
    }
}

#[derive(Clone)]
struct Wire {
    sim: Rc<RefCell<Sim>>,
    core: Rc<Core>,
    run_id: String,
    /// Always readable: what a connection without work waits on, so that nobody ever rests.
    ready: Rc<File>,
}

impl Dial for Wire {
    type Link = Self;

    fn dial(&mut self, tick: &mut dyn FnMut()) -> Result<Self, Lost> {
        let mut sim = self.sim.borrow_mut();
        sim.exchanges += 1;
        if sim.exchanges > EXCHANGES {
            self.core.close();
        }
        sim.judge();
        sim.submit();
        tick();
        self.run_id = sim.run_id();
        Ok(self.clone())
    }
}

impl Link for Wire {
    fn run_id(&self) -> &str {
        &self.run_id
    }

    fn fd(&self) -> RawFd {
        if self.core.status().queued == 0 { self.ready.as_raw_fd() } else { -1 }
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
        if calls[0][0] == "SCRIPT" {
            return Ok(vec![Value::Bulk(b"sha".to_vec())]);
        }
        let mut sim = self.sim.borrow_mut();
        sim.exchanges += 1;
        if sim.exchanges > EXCHANGES {
            self.core.close();
        }
        sim.act();
        tick();
        let replies = sim.serve(&calls);
        sim.act();
        replies
    }
}

fn play(seed: u64) -> HashMap<u8, usize> {
    let limits = Limits { batch_max: 3, queue_max: 6, flight_timeout: Duration::from_secs(5) };
    let core = Rc::new(Core::new(limits, Marks::open(None).unwrap()).unwrap());
    let mut sim = Sim {
        core: core.clone(),
        dice: Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
        run: 1,
        lease: 0,
        slot: 0,
        leases: HashMap::new(),
        applied: HashSet::new(),
        asked: Vec::new(),
        outcomes: HashMap::new(),
        answered: HashMap::new(),
        sealed_at: None,
        exchanges: 0,
        counts: HashMap::new(),
    };
    sim.open_lease();
    let sim = Rc::new(RefCell::new(sim));
    let ready = Rc::new(File::open("/dev/null").unwrap());
    let wire = Wire { sim: sim.clone(), core: core.clone(), run_id: String::new(), ready };
    flight::run(&core, wire);
    let mut sim = sim.borrow_mut();
    sim.drain();
    assert!(!core.status().is_dead, "the I/O side panicked");
    for ticket in 0..sim.asked.len() as u64 {
        let answer = sim.outcomes.get(&ticket).unwrap_or_else(|| panic!("{ticket}: no answer"));
        let was_applied = sim.applied.contains(&ticket);
        assert!(
            !(was_applied && NOT_APPLIED.contains(&answer.outcome)),
            "ticket {ticket} was told {:?}, and was applied",
            answer.outcome
        );
        assert!(was_applied || answer.outcome != Outcome::Won, "ticket {ticket} won nothing");
    }
    sim.counts.clone()
}

#[test]
fn every_claim_has_one_outcome_and_what_is_not_applied_never_is() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("VAUCHFLOW_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("VAUCHFLOW_SCHEDULES").unwrap_or(SCHEDULES),
    };
    let is_whole = seeds.end - seeds.start >= SCHEDULES;
    let mut counts: HashMap<u8, usize> = HashMap::new();
    for seed in seeds {
        let played = std::panic::catch_unwind(|| play(seed));
        let played = played.unwrap_or_else(|_| panic!("again: VAUCHFLOW_SEED={seed}"));
        for (outcome, count) in played {
            *counts.entry(outcome).or_default() += count;
        }
    }
    println!("{counts:?}");
    let reached = [
        Outcome::Won,
        Outcome::Replayed,
        Outcome::SoldOut,
        Outcome::Overloaded,
        Outcome::Expired,
        Outcome::Unavailable,
        Outcome::Unknown,
    ];
    for outcome in reached {
        assert!(!is_whole || counts.contains_key(&(outcome as u8)), "{outcome:?} never came up");
    }
}
