//! Why a hello was refused, in words that say what to do about it.

use std::fmt;

/// The part of a hello that did not fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum HelloField {
    Version = 1,
    WorldSize = 2,
    /// `to` is another rank: the lists of peers differ.
    Address = 3,
    Model = 4,
    Dtype = 5,
    Codec = 6,
    Manifest = 7,
    Policy = 8,
    Rank = 9,
    /// A second process with the same rank.
    SameRankTwice = 10,
    /// No secret where one is needed, one where none is, or another one. This refusal is not authenticated.
    Secret = 11,
}

impl HelloField {
    pub const fn from_tag(tag: u8) -> Option<Self> {
        Some(match tag {
            1 => Self::Version,
            2 => Self::WorldSize,
            3 => Self::Address,
            4 => Self::Model,
            5 => Self::Dtype,
            6 => Self::Codec,
            7 => Self::Manifest,
            8 => Self::Policy,
            9 => Self::Rank,
            10 => Self::SameRankTwice,
            11 => Self::Secret,
            _ => return None,
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Version => "protocol version",
            Self::WorldSize => "world size",
            Self::Address => "address of rank",
            Self::Model => "model",
            Self::Dtype => "dtype",
            Self::Codec => "codec",
            Self::Manifest => "manifest",
            Self::Policy => "policy",
            Self::Secret => "secret",
            Self::Rank | Self::SameRankTwice => "rank",
        }
    }

    const fn advice(self) -> &'static str {
        match self {
            Self::Version => "run the same version on all ranks",
            Self::WorldSize | Self::Address => "give all ranks the same `peers`, in the same order",
            Self::Model => "give all ranks the same model files",
            Self::Dtype => "give all ranks the same --dtype",
            Self::Codec | Self::Policy => "give all ranks the same tpq.yaml",
            Self::Secret => "give all ranks the same TPQ_SECRET, TPQ_SECRET_FILE or `group.secret_file`",
            Self::Manifest => "copy manifest.yaml from rank 0",
            Self::Rank | Self::SameRankTwice => "give each process its own rank",
        }
    }
}

/// A hello that does not fit, as both ends report it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The rank whose hello was refused.
    pub sender: u32,
    /// The rank that refused it.
    pub by: u32,
    pub field: HelloField,
    pub expected: String,
    pub got: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sender,
            by,
            field,
            expected,
            got,
        } = self;
        match field {
            HelloField::SameRankTwice => {
                write!(
                    f,
                    "two processes say that they are rank {sender}: {expected} and {got}: {}",
                    field.advice()
                )
            }
            HelloField::Secret => {
                write!(
                    f,
                    "rank {by} expected {expected}, rank {sender} has {got}: {}",
                    field.advice()
                )
            }
            HelloField::Address => {
                write!(
                    f,
                    "rank {sender} looked for rank {got} where rank {expected} listens: {}",
                    field.advice()
                )
            }
            _ => write!(
                f,
                "rank {sender} sent {} {got}, rank {by} expected {expected}: {}",
                field.name(),
                field.advice()
            ),
        }
    }
}

impl std::error::Error for Refusal {}
