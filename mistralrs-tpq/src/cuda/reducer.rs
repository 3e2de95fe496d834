//! The all-reduce of a process's GPU, whatever carries it: chooses the link with the other ranks, keeps each site's tables on
//! the device, and goes through the host where there are no kernels.

#![allow(unsafe_code)]

use std::collections::hash_map::Entry;
use std::collections::HashMap;
use std::time::Duration;

use super::facts::{agree, candidates, tell_all, Facts, GpuLink};
use super::group::{Base, DeviceGroup, Operands};
use super::link::Link;
use super::peer::Peer;
use super::staged::Staged;
use super::tables::SiteTables;
use super::{CudaError, Device};
use crate::codec::{Codec, EncodeStats};
use crate::exchange::{Chosen, Communicator, ExchangeConfig, ExchangeStats, NonFinite, Site};
use crate::transport::Transport;

/// Alike on all ranks.
#[derive(Debug, Clone, Copy)]
pub struct ReducerConfig {
    pub link: GpuLink,
    pub exchange: ExchangeConfig,
}

/// One exchange runs at a time. All ranks call it alike.
#[derive(Debug)]
pub struct DeviceReducer {
    device: Device,
    ranks: usize,
    config: ReducerConfig,
    way: Way,
    /// Values through the host's memory; made when first needed.
    host: Option<Staged>,
    /// By site and choice of codec; `None` for a codec without kernels.
    tables: HashMap<(u32, usize), Option<SiteTables>>,
}

#[derive(Debug)]
enum Way {
    Group(Box<DeviceGroup>),
    Tcp,
    Host,
}

impl DeviceReducer {
    /// Agrees with the other ranks on a link and opens it.
    ///
    /// # Errors
    /// A lost rank, a configured link that some rank cannot use, and what the driver or NCCL reports.
    pub fn join(device: Device, transport: &dyn Transport, config: ReducerConfig) -> Result<Self, CudaError> {
        let place = (transport.rank(), transport.world_size());
        let way = match config.link {
            // Nothing to agree on: ranks without a GPU, which tell nothing, exchange the same frames.
            GpuLink::Tcp => Way::Tcp,
            GpuLink::Host => Way::Host,
            _ => Self::agree(&device, transport, config)?,
        };
        Ok(Self {
            device,
            ranks: place.1,
            config,
            way,
            host: None,
            tables: HashMap::new(),
        })
    }

    fn agree(device: &Device, transport: &dyn Transport, config: ReducerConfig) -> Result<Way, CudaError> {
        let deadline = config.exchange.timeout;
        let place = (transport.rank(), transport.world_size());
        // What can fail on this rank alone comes first: nobody waits for it yet.
        let base = Base::new(device.clone(), place, config.exchange.gather_bits)?;
        let own = Facts {
            host: host_id(),
            nccl: has_nccl(),
        };
        let messages = tell_all(transport, &own.encode(), deadline)?;
        let facts = messages
            .iter()
            .enumerate()
            .map(|(rank, message)| Facts::parse(message).ok_or(CudaError::Facts { rank }));
        let links = candidates(config.link, &facts.collect::<Result<Vec<_>, _>>()?);
        let link = agree(transport, &links, deadline, |link| match link {
            GpuLink::Peer | GpuLink::Nccl => open(link, device, transport, base.status(), config).map(Some),
            _ => Ok(None),
        })?;
        Ok(match link {
            Some(link) => Way::Group(Box::new(base.with(link))),
            None => Way::Tcp,
        })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether exchanges may be captured into CUDA graphs, on all ranks at one place, and replayed so. Who replays one calls
    /// [`DeviceReducer::check`] after it. Over peer memory a rank may as well run the same exchanges without a graph; NCCL wants all
    /// ranks alike. A graph must not run any more once the reducer is gone.
    pub fn captures(&self) -> bool {
        matches!(self.way, Way::Group(_)) && self.config.exchange.nonfinite == NonFinite::Fail
    }

    /// Adds to the stream: the sum of all ranks' values. `choice` tells apart codecs of one site.
    ///
    /// # Errors
    /// What [`Communicator::all_reduce`] and the device report. Over GPU links another rank's fault, and NaN, are seen by
    /// [`DeviceReducer::check`] only, unless the configuration wants NaN to be exchanged again. [`CudaError::Captured`] of an exchange
    /// that a graph cannot repeat, while the stream is captured into one.
    ///
    /// # Safety
    /// As [`DeviceGroup::all_reduce`].
    pub unsafe fn all_reduce(
        &mut self,
        communicator: &Communicator,
        site: &Site,
        (choice, codec): (usize, &dyn Codec),
        operands: &Operands,
    ) -> Result<ExchangeStats, CudaError> {
        if operands.tokens == 0 {
            return Ok(ExchangeStats::default());
        }
        let captured = self.device.is_capturing()?;
        // Nobody waits for this rank then: nothing is exchanged during a capture.
        let refuse = |which| Err(CudaError::Captured { which });
        let auto = match &self.way {
            Way::Group(_) => Some(&ON_DEVICE[..]),
            // As ranks without a GPU choose.
            Way::Tcp | Way::Host => None,
        };
        let chosen = communicator.chosen(codec, operands.tokens, operands.dtype, auto);
        let tables = match self.tables.entry((site.id, choice)) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(_) if captured => return refuse("of a layer that has not exchanged before"),
            Entry::Vacant(entry) => entry.insert(SiteTables::new(&self.device, codec)?),
        };
        let device = &self.device;
        let timeout = self.config.exchange.timeout;
        // SAFETY: in all three ways, the caller's promise.
        unsafe {
            match (&mut self.way, tables) {
                (Way::Group(group), Some(tables)) if on_device(chosen) => {
                    if captured && self.config.exchange.nonfinite == NonFinite::Fallback {
                        return refuse("with `exchange.nonfinite: fallback`");
                    }
                    group.all_reduce(site.id, tables, chosen, operands)?;
                    let stats = ExchangeStats {
                        bytes_sent: communicator.predict(codec, operands.tokens, operands.dtype, chosen),
                        ..ExchangeStats::default()
                    };
                    if self.config.exchange.nonfinite == NonFinite::Fail {
                        return Ok(stats);
                    }
                    group_or_lossless(group, communicator, site, (tables, chosen), operands, stats)
                }
                _ if captured => refuse("through the host's memory"),
                (Way::Tcp, Some(tables)) if chosen == Chosen::OneShot => {
                    let staged = made(&mut self.host, device, communicator, timeout)?;
                    staged.one_shot(communicator, site, codec, tables, operands)
                }
                _ => {
                    let staged = made(&mut self.host, device, communicator, timeout)?;
                    staged.through_host(operands, codec.features(), |input, output| {
                        communicator.all_reduce(site, codec, input, output)
                    })
                }
            }
        }
    }

    /// As [`DeviceGroup::check`]. Where the host takes part in every exchange, what is left to see is payloads that do not decode.
    ///
    /// # Errors
    /// As [`DeviceGroup::check`].
    pub fn check(&mut self, transport: &dyn Transport) -> Result<EncodeStats, CudaError> {
        match &mut self.way {
            Way::Group(group) => group.check(transport, self.config.exchange.timeout),
            Way::Tcp | Way::Host => {
                self.host.as_mut().map_or(Ok(()), Staged::check)?;
                Ok(EncodeStats::default())
            }
        }
    }

    /// Gives the group up, so that the device is free again.
    pub fn abort(&mut self) {
        if let Way::Group(group) = &mut self.way {
            group.abort();
        }
    }

    pub fn ranks(&self) -> usize {
        self.ranks
    }
}

/// With `nonfinite: fallback` the ranks look at each exchange, and repeat it without a codec when some rank had NaN: all see
/// the same marks.
///
/// # Safety
/// As [`DeviceGroup::all_reduce`].
unsafe fn group_or_lossless(
    group: &mut DeviceGroup,
    communicator: &Communicator,
    site: &Site,
    (tables, chosen): (&SiteTables, Chosen),
    operands: &Operands,
    stats: ExchangeStats,
) -> Result<ExchangeStats, CudaError> {
    let (transport, timeout) = (&**communicator.transport(), communicator.timeout());
    let raw = matches!(chosen, Chosen::LosslessOneShot | Chosen::LosslessTwoShot);
    match group.check(transport, timeout) {
        Err(CudaError::NonFinite { .. }) if raw => Ok(stats),
        Err(CudaError::NonFinite { .. }) => {
            // SAFETY: the caller's promise.
            unsafe { group.all_reduce(site.id, tables, Chosen::LosslessOneShot, operands) }?;
            match group.check(transport, timeout) {
                Ok(_) | Err(CudaError::NonFinite { .. }) => Ok(ExchangeStats {
                    fell_back: true,
                    ..stats
                }),
                Err(error) => Err(error),
            }
        }
        Err(error) => Err(error),
        Ok(seen) => Ok(ExchangeStats {
            clipped: seen.clipped,
            ..stats
        }),
    }
}

/// What `auto` chooses from.
const ON_DEVICE: [Chosen; 2] = [Chosen::OneShot, Chosen::TwoShot];

const fn on_device(chosen: Chosen) -> bool {
    matches!(
        chosen,
        Chosen::OneShot | Chosen::TwoShot | Chosen::LosslessOneShot | Chosen::LosslessTwoShot
    )
}

/// Buffers of the host, made at their first use.
fn made<'a>(
    host: &'a mut Option<Staged>,
    device: &Device,
    communicator: &Communicator,
    timeout: Duration,
) -> Result<&'a mut Staged, CudaError> {
    match host {
        Some(staged) => Ok(staged),
        empty => {
            let transport = communicator.transport();
            let place = (transport.rank(), transport.world_size());
            Ok(empty.insert(Staged::new(device.clone(), place, timeout)?))
        }
    }
}

fn open(
    link: GpuLink,
    device: &Device,
    transport: &dyn Transport,
    status: u64,
    config: ReducerConfig,
) -> Result<Box<dyn Link>, CudaError> {
    let deadline = config.exchange.timeout;
    match link {
        GpuLink::Peer => Ok(Box::new(Peer::open(device, transport, status, deadline)?)),
        #[cfg(feature = "nccl")]
        _ => Ok(Box::new(super::nccl::Nccl::open(device, transport, deadline)?)),
        #[cfg(not(feature = "nccl"))]
        _ => Err(CudaError::Absent {
            library: "NCCL support",
            hint: "build with `--features nccl`",
        }),
    }
}

fn has_nccl() -> bool {
    #[cfg(feature = "nccl")]
    return super::nccl::Nccl::available();
    #[cfg(not(feature = "nccl"))]
    false
}

/// Of the running kernel: equal in all containers on a host. Zero where it cannot be read, which equals nobody's.
fn host_id() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).unwrap_or_default().to_be_bytes()
}
