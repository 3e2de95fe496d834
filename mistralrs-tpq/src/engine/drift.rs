//! Drift on the real group: rank 0's commands travel on the step channel, the answers on the way that replies take.

use anyhow::{bail, Context, Result};

use super::node::Node;
use super::step::COMMAND;
use crate::command::{Command, Reply};
use crate::monitor::{DriftCommand, DriftError, DriftReply, Monitor, Peers};
use crate::transport::{Patience, Transport};

impl Node {
    /// What is watched, if anything is.
    pub fn drift(&self) -> Option<&Monitor> {
        self.drift.as_ref()
    }

    /// Rank 0, before it publishes the plan of a step.
    pub(super) fn before_step(&self) -> Result<()> {
        let Some(monitor) = &self.drift else { return Ok(()) };
        let outcome = monitor.before_step(&Others(self));
        if let Err(error) = &outcome {
            // The ranks may not agree any more, and without a plan the others would wait.
            let culprit = error.downcast_ref().and_then(DriftError::culprit);
            self.group()?
                .transport
                .abort(culprit.unwrap_or(self.rank()), &format!("{error:#}"));
        }
        outcome
    }

    /// Another rank: does what rank 0 said, and answers if it was a question.
    pub(super) fn obey_drift(&self, command: &DriftCommand) -> Result<()> {
        let monitor = self
            .drift
            .as_ref()
            .context("rank 0 watches drift, this rank does not")?;
        if let Some(answer) = monitor.obey(command)? {
            let reply = serde_json::to_vec(&Reply::Drift(answer))?;
            self.group()?.transport.send_message(0, &reply)?;
        }
        Ok(())
    }

    /// The group was formed anew: all ranks are at the manifest again.
    pub(super) fn forget_drift(&self) {
        if let Some(monitor) = &self.drift {
            monitor.reset();
        }
    }
}

struct Others<'a>(&'a Node);

impl Peers for Others<'_> {
    fn tell(&self, command: &DriftCommand) -> Result<()> {
        let mut message = vec![COMMAND];
        serde_json::to_writer(&mut message, &Command::Drift(command.clone()))?;
        self.0.send_to_followers(&message)
    }

    fn hear(&self) -> Result<Vec<DriftReply>> {
        let node = self.0;
        let transport = &node.group()?.transport;
        let hear = |rank| {
            let message = transport.recv_message(rank, Patience::Total(node.plan.links.timeout))?;
            match serde_json::from_slice(&message) {
                Ok(Reply::Drift(reply)) => Ok(reply),
                Ok(_) => bail!("rank {rank} answered something else than was asked"),
                Err(error) => {
                    let what = error.to_string();
                    Err(DriftError::Answer { rank, what }.into())
                }
            }
        };
        (1..node.world_size()).map(hear).collect()
    }
}
