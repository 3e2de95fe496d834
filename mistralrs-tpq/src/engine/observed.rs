//! What a calibration has seen so far: observers of this rank, gathered on rank 0 and handed back to resume.

use anyhow::{ensure, Context, Result};

use super::node::{lock, Node};
use super::step::COMMAND;
use crate::command::{gathered_layers, Command, LayerState};
use crate::transport::Transport;

impl Node {
    pub(super) fn observe(&self, layer: &str, features: usize, rows: &[f32]) -> Result<()> {
        let ema = self.plan.calibration.ema;
        let mut observers = lock(&self.observers);
        if !observers.contains_key(layer) {
            observers.insert(layer.to_owned(), crate::calibrate::RangeObserver::new(features, ema)?);
        }
        let observer = observers.get_mut(layer).context("observer was just inserted")?;
        observer.observe(rows)?;
        Ok(())
    }

    /// Rank 0: the calibration state of every rank, `[rank]`.
    ///
    /// # Errors
    /// A lost rank, or one that lacks a layer of this one.
    pub fn gather_layers(&self) -> Result<Vec<LayerState>> {
        let names: Vec<String> = lock(&self.observers).keys().cloned().collect();
        let mut ranks = vec![LayerState::new(); self.world_size()];
        for name in names {
            let replies = gathered_layers(self.gather(&Command::GatherLayer(name))?)?;
            ranks
                .iter_mut()
                .zip(replies)
                .for_each(|(rank, reply)| rank.extend(reply));
        }
        Ok(ranks)
    }

    /// Rank 0: hands every rank the calibration state it had, `[rank]`.
    ///
    /// # Errors
    /// A lost rank.
    pub fn restore_layers(&self, ranks: Vec<LayerState>) -> Result<()> {
        ensure!(
            ranks.len() == self.world_size(),
            "{} states for {} ranks",
            ranks.len(),
            self.world_size()
        );
        for (rank, layers) in ranks.into_iter().enumerate() {
            for layer in layers {
                let command = Command::RestoreLayers([layer].into());
                if rank == 0 {
                    self.obey(command)?;
                    continue;
                }
                let mut message = vec![COMMAND];
                serde_json::to_writer(&mut message, &command)?;
                self.group()?.transport.send_message(rank, &message)?;
            }
        }
        Ok(())
    }
}
