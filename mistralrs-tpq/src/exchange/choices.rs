//! What was chosen for the shapes seen last, and what the log has said of them.

use std::collections::HashSet;

use super::policy::{choose, predict_bytes_sent, Chosen, Shape};
use super::ExchangeConfig;
use crate::codec::Codec;

/// Choosing prices four algorithms for every rank, which takes longer than a decode step's encoding; a serving group
/// alternates between few shapes.
const KEPT: usize = 16;

type Key = (Shape, u8);

#[derive(Debug, Default)]
pub(super) struct Choices {
    last: [Option<(Key, Chosen)>; KEPT],
    next: usize,
    /// Features, codec and the binary order of magnitude of the message.
    logged: HashSet<(usize, u8, u32)>,
}

impl Choices {
    pub(super) fn choose(&mut self, config: &ExchangeConfig, shape: Shape, codec: &dyn Codec) -> Chosen {
        let key = (shape, codec.tag());
        if let Some((_, chosen)) = self.last.iter().flatten().find(|(known, _)| *known == key) {
            return *chosen;
        }
        let chosen = choose(config, shape, codec);
        self.last[self.next] = Some((key, chosen));
        self.next = (self.next + 1) % KEPT;
        self.log_once(config, shape, codec, chosen);
        chosen
    }

    fn log_once(&mut self, config: &ExchangeConfig, shape: Shape, codec: &dyn Codec, chosen: Chosen) {
        let magnitude = shape.bytes().checked_ilog2().unwrap_or(0);
        if !self.logged.insert((shape.features, codec.tag(), magnitude)) {
            return;
        }
        tracing::info!(
            ranks = shape.world_size,
            tokens = shape.tokens,
            features = shape.features,
            dtype = shape.dtype.name(),
            codec = codec.name(),
            algorithm = chosen.name(),
            bytes = predict_bytes_sent(chosen, shape, 0, codec, config.gather_bits),
            raw_bytes = shape.bytes(),
            "exchange chosen for messages of this size ({})",
            config.algorithm.name()
        );
    }
}
