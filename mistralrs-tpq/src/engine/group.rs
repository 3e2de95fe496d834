//! The open links of this process, and how lost ones are replaced.
//!
//! A group lives until its first failure, which is final. With `rejoin` every rank then forms it anew with the same peers: on
//! rank 0 a thread of its own, so that HTTP goes on answering (with 503), on the others the engine's thread, which has nothing
//! else to do. Rank 0's engine takes the new group up between two requests, because only then is no sequence half done.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};

use super::links::{self, Place};
use crate::codec::Dtype;
use crate::config::Plan;
use crate::exchange::Communicator;
use crate::transport::{Patience, Timed, Transport};
use crate::wire::Identity;

/// A rank's first message to rank 0.
const LOADED: &[u8] = b"loaded";
const LEAST: &[u8] = b"least ";
/// Ranks agree on numbers where they have a paged cache.
const ALIKE: &str = "start all ranks with paged attention (on GPUs), or all with --no-paged-attn";

/// Between two attempts to form the group anew, and between two looks at whether that is necessary.
const PAUSE: Duration = Duration::from_millis(200);

/// Links that agree on a model.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) transport: Arc<Timed>,
    pub(super) communicator: Arc<Communicator>,
    pub(super) model: [u8; 32],
    pub(super) dtype: Dtype,
    #[cfg(feature = "cuda")]
    pub(super) exchange: crate::exchange::ExchangeConfig,
    #[cfg(feature = "cuda")]
    pub(super) device: super::device::DeviceSlot,
    identity: Identity,
    timeout: Duration,
    /// Rank 0: all others have loaded the model. Another rank: has said so.
    loaded: AtomicBool,
    /// Rank 0: what the ranks agreed on while they loaded, in this order; also in the groups before this one.
    agreed: Mutex<Vec<u64>>,
}

impl Group {
    fn connect(plan: &Plan, place: &Place, identity: Identity) -> Result<Arc<Self>> {
        let started = Instant::now();
        let transport = Arc::new(Timed::new(links::connect(plan, place, identity.clone())?));
        tracing::info!(
            "rank {} of {} connected in {:.1} s; codec {}",
            place.rank,
            place.peers.len(),
            started.elapsed().as_secs_f64(),
            plan.codec.name(),
        );
        Ok(Arc::new(Self {
            communicator: Arc::new(Communicator::new(transport.clone(), links::exchange_config(plan))),
            transport,
            #[cfg(feature = "cuda")]
            exchange: links::exchange_config(plan),
            #[cfg(feature = "cuda")]
            device: super::device::DeviceSlot::default(),
            model: identity.model,
            dtype: identity.dtype,
            identity,
            timeout: plan.links.timeout,
            loaded: AtomicBool::new(false),
            agreed: Mutex::default(),
        }))
    }

    pub(super) fn send_to_followers(&self, message: &[u8]) -> Result<()> {
        self.await_loaded()?;
        for rank in 1..self.transport.world_size() {
            self.transport.send_message(rank, message)?;
        }
        Ok(())
    }

    pub(super) fn receive_from_rank_0(&self) -> Result<Vec<u8>> {
        if !self.loaded.swap(true, Ordering::AcqRel) {
            self.transport.send_message(0, LOADED)?;
        }
        Ok(self.transport.recv_message(0, Patience::Silence(self.timeout))?)
    }

    /// The least of all ranks' values. All ranks call it at the same points, each when it gets there: as long as the others live,
    /// that is no reason to give up. A rank that loads its model again for a group that runs is told what the others agreed on when
    /// they did, which may be more than its own value.
    pub(super) fn least(&self, value: u64) -> Result<u64> {
        let least = least(&*self.transport, value, self.timeout)?;
        if !self.loaded.load(Ordering::Acquire) {
            self.agreed().push(least);
        }
        Ok(least)
    }

    /// Rank 0, before its first message: loading takes each rank its own time, and as long as it lives that is no reason
    /// to give up. The first exchange, on the other hand, would wait for `timeout` only.
    fn await_loaded(&self) -> Result<()> {
        if self.loaded.load(Ordering::Acquire) {
            return Ok(());
        }
        let agreed = self.agreed().clone();
        for rank in 1..self.transport.world_size() {
            await_loaded(&*self.transport, rank, &agreed, self.timeout)?;
        }
        self.loaded.store(true, Ordering::Release);
        Ok(())
    }

    fn agreed(&self) -> MutexGuard<'_, Vec<u64>> {
        self.agreed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns when `rank` has loaded the model. A rank that came back to the others asks meanwhile what they have `agreed` on.
fn await_loaded(transport: &dyn Transport, rank: usize, agreed: &[u64], timeout: Duration) -> Result<()> {
    let mut answers = agreed.iter();
    loop {
        let message = transport.recv_message(rank, Patience::Silence(timeout))?;
        if message == LOADED {
            return Ok(());
        }
        let answer = number(&message).and(answers.next());
        let answer = answer
            .with_context(|| format!("rank {rank} sent something else than that it has loaded the model: {ALIKE}"))?;
        transport.send_message(rank, &numbered(*answer))?;
    }
}

fn least(transport: &dyn Transport, value: u64, timeout: Duration) -> Result<u64> {
    let receive = |from: usize| -> Result<u64> {
        let message = transport.recv_message(from, Patience::Silence(timeout))?;
        let other = || format!("rank {from} sent something else than a number to agree on: {ALIKE}");
        number(&message).with_context(other)
    };
    if transport.rank() > 0 {
        transport.send_message(0, &numbered(value))?;
        return receive(0);
    }
    let others = 1..transport.world_size();
    let least = others
        .clone()
        .try_fold(value, |least, rank| receive(rank).map(|value| least.min(value)))?;
    others
        .into_iter()
        .try_for_each(|rank| transport.send_message(rank, &numbered(least)))?;
    Ok(least)
}

fn numbered(value: u64) -> Vec<u8> {
    [LEAST, &value.to_le_bytes()].concat()
}

fn number(message: &[u8]) -> Option<u64> {
    let value = message.strip_prefix(LEAST)?.try_into().ok()?;
    Some(u64::from_le_bytes(value))
}

/// The group of the moment.
#[derive(Debug, Default)]
pub(super) struct GroupSlot {
    current: RwLock<Option<Arc<Group>>>,
    /// Rank 0: formed anew, and not yet taken up.
    fresh: Mutex<Option<Arc<Group>>>,
    /// How often the group was formed anew.
    reformed: std::sync::atomic::AtomicU64,
    ended: AtomicBool,
}

impl GroupSlot {
    pub(super) fn current(&self) -> Option<Arc<Group>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn group(&self) -> Result<Arc<Group>> {
        self.current()
            .context("the links are not open: no model has been loaded under tpq")
    }

    pub(super) fn reformed(&self) -> u64 {
        self.reformed.load(Ordering::Relaxed)
    }

    /// Opens the links for the first time.
    pub(super) fn open(&self, plan: &Plan, place: &Place, identity: Identity) -> Result<()> {
        let group = Group::connect(plan, place, identity)?;
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.is_some() {
            bail!("tpq serves one model per process, and one is loaded already");
        }
        *current = Some(group);
        Ok(())
    }

    fn replace(&self, group: Arc<Group>) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Some(group);
        self.reformed.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether requests can be served now, or why not.
    pub(super) fn health(&self) -> Result<(), String> {
        let Some(failure) = self.current().and_then(|group| group.transport.failure()) else {
            return Ok(());
        };
        let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner);
        match &*fresh {
            Some(group) if group.transport.failure().is_none() => Ok(()),
            _ => Err(failure.to_string()),
        }
    }

    /// Rank 0, on a thread of its own: forms the group anew whenever it has failed.
    pub(super) fn keep_formed(&self, plan: &Plan, place: &Place) {
        while !self.ended.load(Ordering::Acquire) {
            std::thread::sleep(PAUSE);
            let Some(old) = self.current().filter(|group| group.transport.failure().is_some()) else {
                continue;
            };
            let waiting = self.fresh.lock().unwrap_or_else(PoisonError::into_inner).clone();
            if waiting.is_some_and(|group| group.transport.failure().is_none()) {
                continue;
            }
            tracing::info!("forming the group anew: waiting for all {} ranks", place.peers.len());
            let formed = Group::connect(plan, place, old.identity.clone()).and_then(|group| {
                group.agreed().clone_from(&old.agreed());
                group.await_loaded()?;
                Ok(group)
            });
            match formed {
                Ok(group) => {
                    tracing::info!("the group is complete again");
                    *self.fresh.lock().unwrap_or_else(PoisonError::into_inner) = Some(group);
                }
                Err(error) => tracing::warn!("could not form the group anew, trying again: {error:#}"),
            }
        }
    }

    /// Rank 0, between two requests: takes up the group that was formed anew, if there is one.
    pub(super) fn take_up(&self) -> bool {
        if self.current().is_none_or(|group| group.transport.failure().is_none()) {
            return false;
        }
        let fresh = self.fresh.lock().unwrap_or_else(PoisonError::into_inner).take();
        match fresh.filter(|group| group.transport.failure().is_none()) {
            Some(group) => {
                self.replace(group);
                true
            }
            None => false,
        }
    }

    /// Another rank, after `failure`: forms the group anew within `connect_timeout`, or gives up.
    pub(super) fn rejoin(&self, plan: &Plan, place: &Place, failure: anyhow::Error) -> Result<()> {
        let old = self.group()?;
        tracing::warn!("rank {} lost its group and joins it again: {failure:#}", place.rank);
        old.transport.close();
        let deadline = Instant::now() + plan.links.connect_timeout;
        loop {
            match Group::connect(plan, place, old.identity.clone()) {
                Ok(group) => {
                    self.replace(group);
                    return Ok(());
                }
                // A rank that left during the attempt, or the port of this rank's former self: both pass.
                Err(error) if Instant::now() >= deadline => {
                    return Err(error.context("could not join the group again"));
                }
                Err(error) => tracing::info!("not joined yet: {error:#}"),
            }
            std::thread::sleep(PAUSE);
        }
    }

    pub(super) fn close(&self) {
        self.ended.store(true, Ordering::Release);
        if let Some(group) = self.current() {
            group.transport.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::memory;

    const TIMEOUT: Duration = Duration::from_secs(20);

    fn ranks<T: Send>(count: usize, body: impl Fn(&dyn Transport) -> T + Sync) -> Vec<T> {
        std::thread::scope(|scope| {
            let body = &body;
            let start = |transport| scope.spawn(move || body(&transport));
            let threads: Vec<_> = memory::group(count).into_iter().map(start).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        })
    }

    #[test]
    fn ranks_agree_on_the_least_of_their_values() {
        for values in [vec![70, 500, 9], vec![3, 8], vec![u64::MAX, u64::MAX]] {
            let agree = |transport: &dyn Transport| least(transport, values[transport.rank()], TIMEOUT).unwrap();
            let agreed = ranks(values.len(), agree);
            let expected = values.iter().min().unwrap();
            assert!(agreed.iter().all(|agreed| agreed == expected), "{agreed:?}");
        }
    }

    #[test]
    fn a_rank_that_comes_back_is_told_what_the_others_agreed_on() {
        let outcomes = ranks(2, |transport| match transport.rank() {
            0 => await_loaded(transport, 1, &[70, 1], TIMEOUT).map(|()| vec![]),
            _ => {
                // What the others have cannot be changed any more.
                let told = [500, 0].map(|value| least(transport, value, TIMEOUT));
                transport.send_message(0, LOADED)?;
                told.into_iter().collect()
            }
        });
        let told: Result<Vec<_>> = outcomes.into_iter().collect();
        assert_eq!(told.unwrap(), [vec![], vec![70, 1]]);
    }

    #[test]
    fn a_rank_that_asks_for_more_than_was_agreed_on_is_refused() {
        let outcomes = ranks(2, |transport| match transport.rank() {
            0 => await_loaded(transport, 1, &[], TIMEOUT).map_err(|error| error.to_string()),
            _ => transport
                .send_message(0, &numbered(5))
                .map_err(|error| error.to_string()),
        });
        let error = outcomes[0].as_ref().unwrap_err();
        assert!(error.contains(ALIKE), "{error}");
    }

    #[test]
    fn another_message_in_place_of_a_number_is_an_error_that_names_the_rank() {
        let outcomes = ranks(2, |transport| match transport.rank() {
            0 => least(transport, 5, TIMEOUT).map_err(|error| error.to_string()),
            _ => {
                transport.send_message(0, LOADED).unwrap();
                Ok(0)
            }
        });
        let error = outcomes[0].as_ref().unwrap_err();
        assert!(
            error.starts_with("rank 1 sent something else") && error.ends_with(ALIKE),
            "{error}"
        );
    }
}
