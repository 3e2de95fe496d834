//! Over what the GPUs of a group exchange. Each rank tells all others what it has; all decide alike from the same facts.
//! Whether a link then works is only known when it has been tried, so after a trial the ranks compare its outcome, and all
//! go on to the next one when one of them failed.

use std::time::Duration;

use super::CudaError;
use crate::transport::{RecvOp, SendOp, Transport, MAX_RANKS};

/// What carries payloads between GPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum GpuLink {
    /// The first of those below that all ranks have.
    #[default]
    Auto,
    /// Ranks of one host read each other's memory.
    Peer,
    Nccl,
    /// The group's own connections, through page-locked host memory.
    Tcp,
    /// As `tcp`, with the codec on the processor: for codecs that the GPU has no kernels for.
    Host,
}

impl GpuLink {
    pub const ALL: [Self; 5] = [Self::Auto, Self::Peer, Self::Nccl, Self::Tcp, Self::Host];

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|link| link.name() == name)
    }

    /// As in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Peer => "peer",
            Self::Nccl => "nccl",
            Self::Tcp => "tcp",
            Self::Host => "host",
        }
    }
}

/// Bytes of a rank's facts, and of a trial's outcome.
pub const MESSAGE_LEN: usize = 192;
const MAGIC: &[u8; 8] = b"tpq gpu1";

/// What a rank tells of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Facts {
    /// Alike for processes under one running kernel.
    pub host: [u8; 16],
    /// Whether this rank's program has NCCL and found the library.
    pub nccl: bool,
}

impl Facts {
    pub fn encode(&self) -> [u8; MESSAGE_LEN] {
        let mut message = [0; MESSAGE_LEN];
        message[..16].copy_from_slice(&self.host);
        message[16] = u8::from(self.nccl);
        message
    }

    pub fn parse(message: &[u8; MESSAGE_LEN]) -> Option<Self> {
        let (host, rest) = message.split_first_chunk()?;
        let nccl = match rest.first()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let known = rest[1..].iter().all(|byte| *byte == 0);
        known.then_some(Self { host: *host, nccl })
    }
}

/// The links to try, in this order. A configured one is the only one.
pub fn candidates(wanted: GpuLink, ranks: &[Facts]) -> Vec<GpuLink> {
    if wanted != GpuLink::Auto {
        return vec![wanted];
    }
    let first = ranks.first().map(|facts| facts.host);
    let one_host = ranks
        .iter()
        .all(|facts| Some(facts.host) == first && facts.host != [0; 16]);
    let nccl = ranks.iter().all(|facts| facts.nccl);
    let have = [(GpuLink::Peer, one_host), (GpuLink::Nccl, nccl), (GpuLink::Tcp, true)];
    have.into_iter().filter(|(_, has)| *has).map(|(link, _)| link).collect()
}

/// Tries `links` in turn until one works on all ranks; `open` tries one on this rank.
///
/// # Errors
/// The link of the configuration that a rank cannot use, with that rank's reason; a lost rank.
pub fn agree<L>(
    transport: &dyn Transport,
    links: &[GpuLink],
    deadline: Duration,
    mut open: impl FnMut(GpuLink) -> Result<L, CudaError>,
) -> Result<L, CudaError> {
    let mut refused = None;
    for &link in links {
        let opened = open(link);
        let reason = opened.as_ref().err().map(ToString::to_string).unwrap_or_default();
        let outcomes = tell_all(transport, &outcome(&reason), deadline)?;
        let failed = outcomes.iter().position(|message| message[0] != 0);
        match (failed, opened) {
            (None, Ok(opened)) => {
                tracing::info!("GPUs exchange over {}", link.name());
                return Ok(opened);
            }
            (None, Err(error)) => return Err(error),
            (Some(rank), _) => {
                let reason = text(&outcomes[rank]);
                tracing::warn!("GPUs cannot exchange over {}: rank {rank}: {reason}", link.name());
                refused = Some(CudaError::LinkRefused {
                    link: link.name(),
                    rank,
                    reason,
                });
            }
        }
    }
    let none = || CudaError::ApiMisuse {
        what: "no link between GPUs to try".to_owned(),
    };
    Err(refused.unwrap_or_else(none))
}

/// Byte 0: length of the reason, zero for success.
fn outcome(reason: &str) -> [u8; MESSAGE_LEN] {
    let mut message = [0; MESSAGE_LEN];
    let mut len = reason.len().min(MESSAGE_LEN - 1);
    while !reason.is_char_boundary(len) {
        len -= 1;
    }
    message[0] = len as u8;
    message[1..=len].copy_from_slice(&reason.as_bytes()[..len]);
    message
}

fn text(message: &[u8; MESSAGE_LEN]) -> String {
    let len = usize::from(message[0]).min(MESSAGE_LEN - 1);
    // A peer's bytes end up in a log line here.
    String::from_utf8_lossy(&message[1..=len])
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// Sends `own` to every rank and returns the messages of all, by rank.
///
/// # Errors
/// A lost rank, or one that sends something else here.
pub fn tell_all(
    transport: &dyn Transport,
    own: &[u8; MESSAGE_LEN],
    deadline: Duration,
) -> Result<Vec<[u8; MESSAGE_LEN]>, CudaError> {
    let (rank, ranks) = (transport.rank(), transport.world_size().min(MAX_RANKS));
    let mut messages = vec![[0; MESSAGE_LEN]; ranks];
    let mut headers = vec![[0; MAGIC.len()]; ranks];
    messages[rank] = *own;
    headers[rank] = *MAGIC;
    let peers = (0..ranks).filter(|peer| *peer != rank);
    let sends: Vec<_> = peers.map(|to| SendOp::new(to, [MAGIC, own])).collect();
    let room = messages.iter_mut().zip(&mut headers).enumerate();
    let mut recvs: Vec<_> = room
        .filter(|(from, _)| *from != rank)
        .map(|(from, (payload, header))| RecvOp { from, header, payload })
        .collect();
    transport.transfer(&sends, &mut recvs, deadline, &mut |_| Ok(()))?;
    match headers.iter().position(|header| header != MAGIC) {
        None => Ok(messages),
        Some(rank) => {
            let error = CudaError::Facts { rank };
            transport.abort(rank, &error.to_string());
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::memory;

    const DEADLINE: Duration = Duration::from_secs(20);

    fn facts(host: u8, nccl: bool) -> Facts {
        Facts { host: [host; 16], nccl }
    }

    #[test]
    fn facts_survive_their_message_and_unknown_ones_are_refused() {
        for facts in [facts(7, true), facts(0, false)] {
            assert_eq!(Facts::parse(&facts.encode()), Some(facts));
        }
        for at in [16, 17, MESSAGE_LEN - 1] {
            let mut message = facts(7, false).encode();
            message[at] = 2;
            assert_eq!(Facts::parse(&message), None);
        }
    }

    #[test]
    fn memory_is_shared_on_one_host_only_and_a_configured_link_is_the_only_one() {
        use GpuLink::{Auto, Nccl, Peer, Tcp};
        assert_eq!(candidates(Auto, &[facts(1, true), facts(1, true)]), [Peer, Nccl, Tcp]);
        assert_eq!(candidates(Auto, &[facts(1, true), facts(2, true)]), [Nccl, Tcp]);
        assert_eq!(candidates(Auto, &[facts(1, true), facts(2, false)]), [Tcp]);
        // A host that could not be told apart is no reason to believe that two are the same.
        assert_eq!(candidates(Auto, &[facts(0, false), facts(0, false)]), [Tcp]);
        assert_eq!(candidates(Nccl, &[facts(1, false), facts(2, false)]), [Nccl]);
    }

    /// Each rank opens what `opens` lets it.
    fn agree_on_threads(
        links: &'static [GpuLink],
        opens: fn(usize, GpuLink) -> Result<(), CudaError>,
    ) -> Vec<Result<GpuLink, CudaError>> {
        let ranks: Vec<_> = memory::group(3)
            .into_iter()
            .map(|transport| {
                std::thread::spawn(move || {
                    let rank = transport.rank();
                    agree(&transport, links, DEADLINE, |link| opens(rank, link).map(|()| link))
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    }

    fn absent() -> CudaError {
        CudaError::Driver {
            what: "open a peer's memory",
            reason: "peer access is not supported\n".to_owned(),
        }
    }

    #[test]
    fn all_ranks_leave_a_link_that_one_of_them_cannot_use() {
        let opens = |rank, link| match (rank, link) {
            (1, GpuLink::Peer) => Err(absent()),
            _ => Ok(()),
        };
        for agreed in agree_on_threads(&[GpuLink::Peer, GpuLink::Nccl, GpuLink::Tcp], opens) {
            assert_eq!(agreed.unwrap(), GpuLink::Nccl);
        }
    }

    #[test]
    fn a_configured_link_that_one_rank_cannot_use_is_an_error_on_all_that_names_it() {
        let opens = |rank, _| if rank == 2 { Err(absent()) } else { Ok(()) };
        for agreed in agree_on_threads(&[GpuLink::Peer], opens) {
            let error = agreed.unwrap_err();
            assert!(
                matches!(
                    &error,
                    CudaError::LinkRefused {
                        link: "peer",
                        rank: 2,
                        ..
                    }
                ),
                "{error}"
            );
            assert!(error.to_string().contains("peer access is not supported"), "{error}");
            assert!(!error.to_string().contains('\n'), "{error:?}");
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_two_characters() {
        let reason = "é".repeat(150);
        assert_eq!(text(&outcome(&reason)), "é".repeat(95));
    }
}
