//! One YAML file -> a [`Plan`], valid by construction.
//!
//! `raw` reads the file key by key and refuses what it does not know, `plan` checks each value, `defaults` holds every
//! default with its reason, `topology` decides which rank this process is, and `source` which file holds when several do. Nothing here opens a socket or reads the
//! manifest: the plan names it, [`crate::manifest`] loads it.
//!
//! ```
//! use mistralrs_tpq::config::{CodecPlan, Environment, Plan, Topology};
//! use std::path::Path;
//!
//! let plan = Plan::parse("version: 1\ncodec: {kind: dynamic}\n", Path::new("tpq.yaml"))?;
//! assert_eq!(plan.codec, CodecPlan::Dynamic);
//! assert_eq!(plan.topology(&Environment::default())?, Topology::Single);
//! # Ok::<(), mistralrs_tpq::config::ConfigError>(())
//! ```

mod codec;
pub mod defaults;
mod drift;
mod error;
mod exchange;
mod multi_node;
mod peer;
mod plan;
mod raw;
mod secret;
mod source;
mod topology;

pub use codec::{BudgetScope, CodecPlan, Control};
pub use drift::{DriftGroup, DriftPlan, DriftPolicy, FallbackCodec};
pub(crate) use error::nearest;
pub use error::{At, ConfigError};
pub use exchange::{read_table, table_text, ExchangePlan, Nonfinite};
pub use multi_node::MultiNode;
pub use peer::PeerAddr;
pub use plan::{CalibrationPlan, Fraction, Group, Links, OutlierCount, Plan};
pub use secret::environment_secret;
pub use source::{Source, CONFIG_VARIABLE};
pub use topology::{Environment, Membership, Topology, TopologySource};
pub(crate) use topology::{
    PEERS as PEERS_VARIABLE, RANK as RANK_VARIABLE, REJOIN as REJOIN_VARIABLE, WORLD_SIZE as WORLD_SIZE_VARIABLE,
};
