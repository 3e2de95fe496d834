//! Station 0: where mistral.rs calls in.
//!
//! [`install`] reads the configuration and hands the engine three things: a provider that supplies rank, world size and
//! the all-reduce of each row-parallel layer, a step channel that carries rank 0's decisions, and the products of its linear
//! layers on the processor. The first two belong to one [`Node`], the process's place in the group. The links are opened when
//! the engine is about to read a model, because only then the model's fingerprint is known, which the ranks compare.
//!
//! ```text
//! install ── Node ──┬── provider: prepare(model) -> connect, compare; reducer(site) -> SiteReducer
//!                   └── step channel: engine messages and tpq's own commands, in one order
//! ```

mod choice;
#[cfg(feature = "cuda")]
mod device;
mod drift;
mod driver;
mod fingerprint;
mod group;
mod linear;
mod links;
mod logits;
mod node;
mod observed;
mod provider;
mod record;
mod reducer;
mod state;
mod step;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

pub use crate::command::{gathered_layers, gathered_reports, Command, LayerError, LayerState, RankReport, Reply};
pub use choice::CodecChoice;
pub use driver::{Driver, Generated, ModelOptions, SequenceLogits};
pub use fingerprint::model_fingerprint;
pub use node::Node;
pub use state::State;

use crate::config::{Environment, Plan, Source};

/// Puts the exchange of `config` under every model that this process loads from now on.
///
/// Returns the node, or `None` for a world size of one: the engine then runs as upstream does.
///
/// On a rank other than 0 the engine's `build()` does not return: the rank follows rank 0, and its process exits when
/// the group ends, with 0 when rank 0 ended it and 1 otherwise.
///
/// # Errors
/// An invalid configuration (file and key named), a second call, a call after a model was loaded.
pub fn install(config: &Path) -> Result<Option<Arc<Node>>> {
    let plan = Plan::load(config)?;
    install_plan(plan)
}

/// As [`install`], from a file or from a table inside another program's file.
///
/// # Errors
/// As [`install`].
pub fn install_from(source: &Source) -> Result<Option<Arc<Node>>> {
    install_plan(source.load()?)
}

/// As [`install`], from a plan that is already loaded.
///
/// # Errors
/// As [`install`].
pub fn install_plan(plan: Plan) -> Result<Option<Arc<Node>>> {
    let origin = plan.origin.display().to_string();
    let environment = Environment::from_process();
    let topology = plan.topology(&environment)?;
    let secret = plan.secret(&environment)?;
    let Some(place) = links::place(&plan, &topology, secret)? else {
        tracing::warn!("{origin}: the world size is 1, so there is nothing to exchange: running as one process");
        return Ok(None);
    };
    let rejoins = plan.rejoins(&environment);
    let node = Arc::new(Node::new(plan, place, rejoins)?);
    mistralrs_quant::set_all_reduce_provider(Arc::new(provider::Provider::new(node.clone())))
        .context("tpq cannot be installed")?;
    mistralrs_quant::set_cpu_product(linear::cpu_product).context("tpq cannot be installed")?;
    mistralrs_core::set_step_channel(Box::new(step::Channel::new(node.clone()))).context("tpq cannot be installed")?;
    Ok(Some(node))
}
