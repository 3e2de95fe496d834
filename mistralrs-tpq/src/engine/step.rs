//! The engine's step channel over the mesh: one ordered stream from rank 0 to each other rank.
//!
//! A message is one tag byte and a body: the engine's own bytes, or one of our [`Command`]s. Sharing the stream puts a
//! command between the same two steps on every rank.

use std::sync::Arc;

use anyhow::{bail, Context, Result};
use mistralrs_core::{Response, StepChannel};
use tokio::sync::mpsc::Sender;

use super::node::{GroupEnded, Node};
use crate::command::Command;

pub(super) const ENGINE: u8 = 0;
pub(super) const COMMAND: u8 = 1;

#[derive(Debug)]
pub(super) struct Channel {
    node: Arc<Node>,
}

impl Channel {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

impl StepChannel for Channel {
    fn publish(&self, message: &[u8]) -> Result<()> {
        let mut framed = Vec::with_capacity(message.len() + 1);
        framed.push(ENGINE);
        framed.extend_from_slice(message);
        self.node.send_to_followers(&framed)
    }

    fn follow(&self) -> Result<Vec<u8>> {
        loop {
            let mut message = self.node.receive_from_rank_0()?;
            match message.first() {
                Some(&ENGINE) => {
                    message.remove(0);
                    return Ok(message);
                }
                Some(&COMMAND) => {
                    let command = Command::parse(&message[1..]).context("rank 0 sent a command of another version")?;
                    self.node.obey(command)?;
                }
                _ => bail!("rank 0 sent a step message with an unknown tag"),
            }
        }
    }

    fn reform(&self) -> bool {
        self.node.reform()
    }

    fn rejoin(&self, failure: anyhow::Error) -> Result<()> {
        self.node.rejoin(failure)
    }

    fn follower_responses(&self) -> Option<Sender<Response>> {
        Some(self.node.collect_responses())
    }

    fn follower_ended(&self, outcome: Result<()>) -> i32 {
        let rank = self.node.rank();
        match outcome {
            Ok(()) => {
                // Rank 0 may be gone already, which is as good.
                let _ = self.node.await_end();
                tracing::info!("rank {rank}: rank 0 ended the group");
                0
            }
            Err(error) if error.is::<GroupEnded>() => {
                tracing::info!("rank {rank}: {error}");
                0
            }
            Err(error) => {
                tracing::error!("rank {rank} leaves the group: {error:#}");
                1
            }
        }
    }
}
