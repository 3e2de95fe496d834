//! `/metrics`: what rank 0 counts, for Prometheus.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::engine::Node;
use crate::report::prometheus::{Kind, Page};
use crate::transport::Transport;

/// Requests, as the HTTP side sees them.
#[derive(Debug, Default)]
pub(super) struct Requests {
    open: AtomicU64,
    by_status: Mutex<BTreeMap<u16, u64>>,
}

/// A request until its last byte is sent or its client hangs up.
#[derive(Debug)]
pub(super) struct Open(Arc<Requests>);

impl Requests {
    pub(super) fn start(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::Relaxed);
        Open(self.clone())
    }

    pub(super) fn answered(&self, status: u16) {
        let mut by_status = self.by_status.lock().unwrap_or_else(PoisonError::into_inner);
        *by_status.entry(status).or_default() += 1;
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

pub(super) fn page(node: Option<&Node>, requests: &Requests) -> String {
    let mut page = Page::default();
    let open = requests.open.load(Ordering::Relaxed);
    page.metric(
        "tpq_requests_open",
        Kind::Gauge,
        "Requests that are queued, running or being streamed.",
        [(vec![], open as f64)],
    );
    let by_status = requests
        .by_status
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    let by_status: Vec<(String, u64)> = by_status.into_iter().map(|(code, n)| (code.to_string(), n)).collect();
    page.metric(
        "tpq_responses_total",
        Kind::Counter,
        "Responses by HTTP status.",
        by_status
            .iter()
            .map(|(code, n)| (vec![("status", code.as_str())], *n as f64)),
    );
    if let Some(node) = node {
        group(&mut page, node);
        exchanges(&mut page, node);
        if let Some(monitor) = node.drift().filter(|monitor| monitor.is_watching()) {
            super::drift::page(&mut page, monitor);
        }
    }
    page.finish()
}

fn group(page: &mut Page, node: &Node) {
    let healthy = f64::from(u8::from(node.health().is_ok()));
    page.metric(
        "tpq_group_healthy",
        Kind::Gauge,
        "1 while all ranks are there.",
        [(vec![], healthy)],
    );
    page.metric(
        "tpq_group_reformed_total",
        Kind::Counter,
        "How often lost ranks were replaced.",
        [(vec![], node.reformed() as f64)],
    );
    let Some(transport) = node.transport() else { return };
    let ranks: Vec<(usize, String)> = (0..transport.world_size())
        .filter(|rank| *rank != transport.rank())
        .map(|rank| (rank, rank.to_string()))
        .collect();
    page.metric(
        "tpq_rank_wait_seconds_total",
        Kind::Counter,
        "From the start of a transfer to the last byte of a rank: the slowest rank grows fastest. Since the group was formed.",
        ranks
            .iter()
            .map(|(rank, name)| (vec![("rank", name.as_str())], transport.waited_for(*rank).as_secs_f64())),
    );
    let traffic: Vec<_> = ranks
        .iter()
        .map(|(rank, name)| (name, transport.traffic(*rank)))
        .collect();
    page.metric(
        "tpq_link_bytes_total",
        Kind::Counter,
        "Bytes exchanged with a rank, headers and encryption included. Since the group was formed.",
        traffic.iter().flat_map(|(name, traffic)| {
            [("sent", traffic.sent), ("received", traffic.received)]
                .map(|(way, bytes)| (vec![("rank", name.as_str()), ("direction", way)], bytes as f64))
        }),
    );
}

fn exchanges(page: &mut Page, node: &Node) {
    let counters = node.counters();
    let mut counter = |name, help, value: fn(&crate::engine::RankReport) -> f64, kind| {
        page.metric(
            name,
            kind,
            help,
            counters
                .iter()
                .map(|(codec, report)| (vec![("codec", codec.as_str())], value(report))),
        );
    };
    use Kind::{Counter, Gauge};
    counter("tpq_exchanges_total", "All-reduces.", |r| r.exchanges as f64, Counter);
    counter(
        "tpq_exchange_values_total",
        "Values summed.",
        |r| r.values as f64,
        Counter,
    );
    counter(
        "tpq_exchange_sent_bytes_total",
        "Bytes that this rank wrote for exchanges, headers included.",
        |r| r.bytes_sent as f64,
        Counter,
    );
    counter(
        "tpq_effective_bits",
        "Payload bits a value.",
        |r| r.payload_bits as f64 / (r.values.max(1)) as f64,
        Gauge,
    );
    counter(
        "tpq_clipped_total",
        "Values outside their calibrated range.",
        |r| r.clipped as f64,
        Counter,
    );
    counter(
        "tpq_nonfinite_total",
        "NaN and infinities in partial sums.",
        |r| r.nonfinite as f64,
        Counter,
    );
    page.metric(
        "tpq_exchange_seconds_total",
        Kind::Counter,
        "Time in exchanges by stage: encode, wire (waiting included), decode.",
        counters.iter().flat_map(|(codec, report)| {
            [
                ("encode", report.encode_ns),
                ("wire", report.wire_ns),
                ("decode", report.decode_ns),
            ]
            .map(|(stage, ns)| (vec![("codec", codec.as_str()), ("stage", stage)], ns as f64 / 1e9))
        }),
    );
}
