//! One line per step on stderr: number, what, result, seconds.

use std::fmt::Display;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

pub struct Steps {
    total: usize,
    current: usize,
    started: Instant,
}

impl Steps {
    pub fn new(total: usize) -> Self {
        Self {
            total,
            current: 0,
            started: Instant::now(),
        }
    }

    /// Runs a silent step: a spinner on a terminal; elsewhere only the line at its end.
    ///
    /// # Errors
    /// Those of `work`, after a line that says which step failed.
    pub fn quiet<T, D: Display>(&mut self, label: &str, work: impl FnOnce() -> Result<(T, D)>) -> Result<T> {
        let prefix = self.next(label);
        let spinner = spinner(prefix.clone());
        self.finish(&prefix, Some(spinner), work)
    }

    /// Runs a step whose child processes print for themselves, between a line at its start and one at its end.
    ///
    /// # Errors
    /// Those of `work`, after a line that says which step failed.
    pub fn loud<T, D: Display>(&mut self, label: &str, work: impl FnOnce() -> Result<(T, D)>) -> Result<T> {
        let prefix = self.next(label);
        eprintln!("{prefix} ...");
        self.finish(&prefix, None, work)
    }

    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn next(&mut self, label: &str) -> String {
        self.current += 1;
        format!("[{}/{}] {label}", self.current, self.total)
    }

    fn finish<T, D: Display>(
        &self,
        prefix: &str,
        spinner: Option<ProgressBar>,
        work: impl FnOnce() -> Result<(T, D)>,
    ) -> Result<T> {
        let started = Instant::now();
        let result = work();
        if let Some(spinner) = spinner {
            spinner.finish_and_clear();
        }
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok((value, detail)) => {
                eprintln!("{prefix}: {detail} ({seconds:.1} s)");
                Ok(value)
            }
            Err(error) => {
                eprintln!("{prefix}: failed ({seconds:.1} s)");
                Err(error)
            }
        }
    }
}

fn spinner(message: String) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let spinner = ProgressBar::new_spinner().with_message(message);
    if let Ok(style) = ProgressStyle::with_template("{msg} {spinner} {elapsed}") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}
