//! What a series would do to a tree that may have all, some or none of it already.

use super::overlay::{Base, Changes, Direction, Overlay, Rejected};
use super::series::Series;

#[derive(Debug)]
pub enum State {
    Applies,
    AlreadyApplied,
    Fails(Rejected),
}

#[derive(Debug)]
pub struct Plan {
    /// Name and state of each patch, in series order.
    pub states: Vec<(String, State)>,
    /// What applying those that apply changes.
    pub changes: Changes,
}

impl Plan {
    pub fn count(&self, wanted: fn(&State) -> bool) -> usize {
        self.states.iter().filter(|(_, state)| wanted(state)).count()
    }

    pub fn failures(&self) -> impl Iterator<Item = &Rejected> {
        self.states.iter().filter_map(|(_, state)| match state {
            State::Fails(rejected) => Some(rejected),
            _ => None,
        })
    }
}

/// All patches onto a tree that has none of them: the published crates.
///
/// # Errors
/// The first patch that does not apply.
pub fn apply_all(base: &Base, series: &Series) -> Result<Changes, Rejected> {
    let mut overlay = Overlay::new(base);
    for patch in &series.patches {
        overlay.apply(patch, Direction::Forward)?;
    }
    Ok(overlay.into_changes())
}

/// A later patch may change lines of an earlier one, so "is it applied" is asked of the longest prefix that can be
/// taken off from its end; after it, each patch is tried forward and then backward (upstream may have taken just one).
pub fn forward(base: &Base, series: &Series) -> Plan {
    let applied = applied_prefix(base, series);
    let mut overlay = Overlay::new(base);
    let mut states = Vec::new();
    for (index, patch) in series.patches.iter().enumerate() {
        let state = if index < applied {
            State::AlreadyApplied
        } else {
            match overlay.apply(patch, Direction::Forward) {
                Ok(()) => State::Applies,
                Err(_) if overlay.clone().apply(patch, Direction::Reverse).is_ok() => State::AlreadyApplied,
                Err(rejected) => State::Fails(rejected),
            }
        };
        states.push((patch.name.clone(), state));
    }
    Plan {
        states,
        changes: overlay.into_changes(),
    }
}

/// Names of the patches to take off, last first, and the resulting changes. A patch that is not there is passed over.
///
/// # Errors
/// A patch that is neither wholly there nor wholly absent: its lines were edited since.
pub fn reverse(base: &Base, series: &Series) -> Result<(Vec<String>, Changes), Rejected> {
    let mut overlay = Overlay::new(base);
    let mut taken_off = Vec::new();
    let states = forward(base, series).states;
    for (patch, (_, state)) in series.patches.iter().zip(&states).rev() {
        if !matches!(state, State::Applies) {
            overlay.apply(patch, Direction::Reverse)?;
            taken_off.push(patch.name.clone());
        }
    }
    Ok((taken_off, overlay.into_changes()))
}

fn applied_prefix(base: &Base, series: &Series) -> usize {
    let reverses = |&length: &usize| {
        let mut overlay = Overlay::new(base);
        let mut last_first = series.patches[..length].iter().rev();
        last_first.all(|patch| overlay.apply(patch, Direction::Reverse).is_ok())
    };
    (1..=series.patches.len()).rev().find(reverses).unwrap_or(0)
}
