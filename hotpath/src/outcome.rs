//! What became of a claim. The numbers are those of `claim.lua` and of `core.hot.Outcome`.

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Outcome {
    Won = 0,
    Replayed = 1,
    Mismatch = 2,
    SoldOut = 3,
    CustomerLimit = 4,
    NotStarted = 5,
    Ended = 6,
    Paused = 7,
    Busy = 8,
    Fenced = 9,
    /// The queue was full: not applied.
    Overloaded = 10,
    /// The deadline passed before it was sent: not applied.
    Expired = 11,
    /// No connection, sealed, or another server: not applied.
    Unavailable = 12,
    /// Sent, and no trustworthy answer.
    Unknown = 13,
    /// A crowd's facts do not answer: ask `PostgreSQL`.
    Ask = 14,
    /// On the block list.
    Blocked = 15,
}

impl Outcome {
    /// The refusals a script may give by number; wins and replays have forms of their own.
    pub fn of_refusal(code: i64) -> Option<Self> {
        Some(match code {
            2 => Self::Mismatch,
            3 => Self::SoldOut,
            5 => Self::NotStarted,
            6 => Self::Ended,
            7 => Self::Paused,
            8 => Self::Busy,
            9 => Self::Fenced,
            14 => Self::Ask,
            15 => Self::Blocked,
            _ => return None,
        })
    }
}

/// The five fields a claim is answered with; see `core.hot.Answer`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub outcome: Outcome,
    pub seq: u64,
    pub at_ms: i64,
    pub remaining: i64,
    pub detail: Option<Vec<u8>>,
}

impl Answer {
    pub fn bare(outcome: Outcome) -> Self {
        Self { outcome, seq: 0, at_ms: 0, remaining: 0, detail: None }
    }
}

/// Why a slot answers no win any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sealed {
    RunId,
    Fenced,
    SeqNotAboveMark,
    Asked,
}

impl Sealed {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RunId => "run_id",
            Self::Fenced => "fenced",
            Self::SeqNotAboveMark => "seq_not_above_mark",
            Self::Asked => "asked",
        }
    }
}
