//! The engine's step channel over the mesh: one ordered stream from rank 0 to each other rank.
//!
//! A message is one tag byte and a body: the engine's own bytes, or one of our [`Command`]s. Sharing the stream puts a
//! command between the same two steps on every rank.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use mistralrs_core::{Response, StepChannel};
use tokio::sync::mpsc::Sender;

use super::node::{GroupEnded, Node};
use crate::command::Command;

pub(super) const ENGINE: u8 = 0;
pub(super) const COMMAND: u8 = 1;

/// How the engine's plan starts, which opens a step; what was sampled ends it.
const PLAN: &[u8] = b"{\"Plan\"";

/// The step that is being run, as `tracing` sees it: a span from its plan to what was sampled. The exchanges of the step are in it.
#[derive(Debug, Default)]
pub(super) struct StepSpan {
    step: Mutex<Step>,
    done: Condvar,
}

#[derive(Debug, Default)]
struct Step {
    number: u64,
    /// `None` between two steps.
    running: Option<(tracing::Span, Instant)>,
    /// No step begins any more.
    last: bool,
}

impl StepSpan {
    /// Looks at a message of the engine: a plan before it is sent, what was sampled after that, both when received. An error: a plan
    /// after the last step.
    fn on_message(&self, rank: usize, message: &[u8]) -> Result<()> {
        let mut step = self.lock();
        if message.starts_with(PLAN) {
            if step.last {
                return Err(GroupEnded.into());
            }
            step.number += 1;
            let span = tracing::debug_span!("step", rank, number = step.number);
            step.running = Some((span, Instant::now()));
        } else if let Some((span, started)) = step.running.take() {
            let ms = started.elapsed().as_secs_f64() * 1e3;
            tracing::debug!(parent: &span, ms, "step done");
            self.done.notify_all();
        }
        Ok(())
    }

    /// Lets no further step begin and waits for the one that runs. A client has its last token before the other ranks have, so
    /// that a server whose streams have ended may be in a step. `false`: it did not end in time.
    pub(super) fn end(&self, patience: Duration) -> bool {
        let mut step = self.lock();
        step.last = true;
        let waited = self
            .done
            .wait_timeout_while(step, patience, |step| step.running.is_some());
        let (step, _) = waited.unwrap_or_else(PoisonError::into_inner);
        step.running.is_none()
    }

    fn lock(&self) -> MutexGuard<'_, Step> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The span to put an exchange in; a disabled one between two steps.
    pub(super) fn current(&self) -> tracing::Span {
        self.lock()
            .running
            .as_ref()
            .map_or_else(tracing::Span::none, |(span, _)| span.clone())
    }
}

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
        let (node, opens) = (&self.node, message.starts_with(PLAN));
        if opens {
            node.before_step()?;
            node.step.on_message(node.rank(), message)?;
        }
        let mut framed = Vec::with_capacity(message.len() + 1);
        framed.push(ENGINE);
        framed.extend_from_slice(message);
        node.send_to_followers(&framed)?;
        // The end of the group may wait for the end of the step, and must not overtake it.
        if !opens {
            node.step.on_message(node.rank(), message)?;
        }
        Ok(())
    }

    fn follow(&self) -> Result<Vec<u8>> {
        loop {
            let mut message = self.node.receive_from_rank_0()?;
            match message.first() {
                Some(&ENGINE) => {
                    message.remove(0);
                    self.node.step.on_message(self.node.rank(), &message)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use tracing_subscriber::fmt::format::FmtSpan;

    #[test]
    fn a_step_is_a_span_from_its_plan_to_what_was_sampled_around_its_exchanges() {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let writer = {
            let lines = lines.clone();
            move || Lines(lines.clone())
        };
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_span_events(FmtSpan::CLOSE)
            .with_ansi(false)
            .with_writer(writer)
            .finish();
        tracing::subscriber::with_default(subscriber, || {
            let step = StepSpan::default();
            assert!(step.current().is_none());
            step.on_message(1, br#"{"Plan":{}}"#).unwrap();
            drop(tracing::debug_span!(parent: &step.current(), "exchange").entered());
            step.on_message(1, br#"{"Sampled":[]}"#).unwrap();
            assert!(step.current().is_none());
        });
        let text = String::from_utf8(lines.lock().unwrap().clone()).unwrap();
        assert!(text.contains("step{rank=1 number=1}:exchange"), "{text}");
        assert!(text.contains("step done"), "{text}");
    }

    #[test]
    fn the_end_waits_for_the_step_that_runs_and_lets_no_other_begin() {
        let step = StepSpan::default();
        step.on_message(0, br#"{"Plan":{}}"#).unwrap();
        assert!(!step.end(Duration::from_millis(1)), "the step has not ended");
        std::thread::scope(|scope| {
            let end = scope.spawn(|| step.end(Duration::from_secs(20)));
            step.on_message(0, br#"{"Sampled":[]}"#).unwrap();
            assert!(end.join().unwrap());
        });
        let error = step.on_message(0, br#"{"Plan":{}}"#).unwrap_err();
        assert!(error.is::<GroupEnded>(), "{error}");
    }

    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
}
