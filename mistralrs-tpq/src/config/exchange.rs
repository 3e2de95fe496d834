//! The section `exchange`, and the table of a link that it may name.

use super::defaults;
use super::error::ConfigError;
use super::plan::read_text;
use super::raw::{Document, Section};
use crate::codec::Dtype;
use crate::cuda::GpuLink;
use crate::exchange::{Algorithm, Gate, GateEntry, GatherBits, LinkTable};
use serde_yaml::Value;
use std::path::Path;

pub(super) const KEYS: [&str; 9] = [
    "algorithm",
    "batch_invariant",
    "gather_bits",
    "nonfinite",
    "min_tokens",
    "min_bytes",
    "prefill_only",
    "table",
    "gpu_link",
];

/// What happens to NaN or infinity in a partial sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Nonfinite {
    /// The request fails.
    Fail,
    /// That exchange is repeated without compression, on all ranks.
    Fallback,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ExchangePlan {
    pub algorithm: Algorithm,
    /// A request's exchanges have the same bits whatever else is being served.
    pub batch_invariant: bool,
    pub gather_bits: GatherBits,
    pub nonfinite: Nonfinite,
    /// Exchanges of fewer tokens stay lossless; 0: none do.
    pub min_tokens: u64,
    /// Exchanges of fewer bytes, as the engine holds them, stay lossless; 0: none do.
    pub min_bytes: u64,
    /// Exchanges of decode steps stay lossless.
    pub prefill_only: bool,
    pub table: LinkTable,
    /// Where compression pays, as measured with the table.
    pub gate: Gate,
    /// What carries payloads between GPUs; without effect on processors.
    pub gpu_link: GpuLink,
}

impl ExchangePlan {
    pub(super) fn parse(section: &Section<'_>, origin: &Path) -> Result<Self, ConfigError> {
        let algorithms = Algorithm::ALL.map(|algorithm| (algorithm.name(), algorithm));
        let links = GpuLink::ALL.map(|link| (link.name(), link));
        let nonfinite = [("fail", Nonfinite::Fail), ("fallback", Nonfinite::Fallback)];
        let gather_bits = match section.integer("gather_bits", 4, 8)? {
            None => GatherBits::default(),
            Some(4) => GatherBits::Four,
            Some(8) => GatherBits::Eight,
            Some(other) => return Err(section.wrong("gather_bits", &Value::from(other), "4 or 8")),
        };
        let (table, gate) = table(section, origin)?;
        let plan = Self {
            batch_invariant: false,
            algorithm: section.choice("algorithm", &algorithms)?.unwrap_or_default(),
            gather_bits,
            nonfinite: section.choice("nonfinite", &nonfinite)?.unwrap_or(Nonfinite::Fail),
            min_tokens: section
                .integer("min_tokens", 0, defaults::MIN_TOKENS_LIMIT)?
                .unwrap_or(defaults::MIN_TOKENS),
            min_bytes: section.integer("min_bytes", 0, u64::from(u32::MAX))?.unwrap_or(0),
            prefill_only: section.boolean("prefill_only")?.unwrap_or(false),
            table,
            gate,
            gpu_link: section.choice("gpu_link", &links)?.unwrap_or_default(),
        };
        let batch_invariant = match (section.boolean("batch_invariant")?, plan.depends_on_the_batch()) {
            (Some(true), Some(key)) => {
                return Err(section.wrong_text(
                    "batch_invariant",
                    "true",
                    &format!("false, or no `exchange.{key}`, which makes a sum depend on what else is in the batch"),
                ))
            }
            (wanted, conflict) => wanted.unwrap_or(conflict.is_none()),
        };
        Ok(Self {
            batch_invariant,
            ..plan
        })
    }

    /// The key with which a token's sum cannot be the same alone and in company, if there is one.
    fn depends_on_the_batch(&self) -> Option<&'static str> {
        let keys = [
            ("algorithm: ring", self.algorithm == Algorithm::Ring),
            ("min_tokens", self.min_tokens > 0),
            ("min_bytes", self.min_bytes > 0),
            // What the prefix cache keeps of a decode step is then not what a prefill of the same text makes.
            ("prefill_only", self.prefill_only),
        ];
        keys.into_iter().find(|(_, set)| *set).map(|(key, _)| key)
    }

    /// One line for each decision that all ranks must share; goes into the policy digest.
    pub(super) fn canonical(&self) -> String {
        let nonfinite = match self.nonfinite {
            Nonfinite::Fail => "fail",
            Nonfinite::Fallback => "fallback",
        };
        let LinkTable {
            latency_ns,
            message_ns,
            kbyte_per_s,
        } = self.table;
        let always = format!(
            "algorithm={}\nbatch_invariant={}\ngather_bits={}\nnonfinite={nonfinite}\nmin_tokens={}\nmin_bytes={}\nprefill_only={}\n\
             table={latency_ns} {message_ns} {kbyte_per_s}\n",
            self.algorithm.name(),
            self.batch_invariant,
            self.gather_bits.bits(),
            self.min_tokens,
            self.min_bytes,
            self.prefill_only,
        );
        // Only where they say something, so that older digests stay what they were.
        let gate: String = self
            .gate
            .entries()
            .map(|entry| format!("gate={}\n", gate_text(entry)))
            .collect();
        let link = match self.gpu_link {
            GpuLink::Auto => String::new(),
            link => format!("gpu_link={}\n", link.name()),
        };
        always + &gate + &link
    }
}

/// The text of a table file; [`read_table`] reads it.
pub fn table_text(table: &LinkTable, gate: &Gate) -> String {
    let costs = format!(
        "# What the links of this group cost; `exchange.table` in tpq.yaml names this file. All ranks need the same.\n\
         version: 1\n\
         # From a send to its arrival, short message. Nanoseconds.\n\
         latency_ns: {}\n\
         # Each further message of one step. Nanoseconds.\n\
         message_ns: {}\n\
         # What a rank sends, all peers together. Kilobytes (1000 bytes) a second.\n\
         kbyte_per_s: {}\n",
        table.latency_ns, table.message_ns, table.kbyte_per_s
    );
    let mut entries = gate.entries().peekable();
    if entries.peek().is_none() {
        return costs;
    }
    let entries: String = entries.map(|entry| format!("  - {}\n", gate_text(entry))).collect();
    costs + "# Ranks, dtype, and the raw bytes of a message from which on compression pays: shorter ones are exact.\ngate:\n" + &entries
}

fn gate_text(
    GateEntry {
        ranks,
        dtype,
        from_bytes,
    }: GateEntry,
) -> String {
    format!("{ranks} {} {from_bytes}", dtype.name())
}

fn gate_entry(text: &str) -> Option<GateEntry> {
    let mut words = text.split_whitespace();
    let (ranks, dtype, from_bytes) = (words.next()?, words.next()?, words.next()?);
    let dtypes = [Dtype::F32, Dtype::Bf16, Dtype::F16];
    let entry = GateEntry {
        ranks: ranks
            .parse()
            .ok()
            .filter(|ranks| (2..=defaults::MAX_WORLD_SIZE).contains(ranks))?,
        dtype: dtypes.into_iter().find(|known| known.name() == dtype)?,
        from_bytes: from_bytes.parse().ok()?,
    };
    words.next().is_none().then_some(entry)
}

fn gate(root: &Section<'_>) -> Result<Gate, ConfigError> {
    const EXPECTED: &str = "a list with entries as `2 bf16 65536`: ranks, dtype, bytes; one for each ranks and dtype";
    let mut gate = Gate::default();
    match root.get("gate") {
        None => {}
        Some(Value::Sequence(items)) => {
            for item in items {
                let entry = item.as_str().and_then(gate_entry);
                if !entry.is_some_and(|entry| gate.add(entry)) {
                    return Err(root.wrong("gate", item, EXPECTED));
                }
            }
        }
        Some(other) => return Err(root.wrong("gate", other, EXPECTED)),
    }
    Ok(gate)
}

/// Reads a table that `tpq bench exchange --write-table` wrote.
///
/// # Errors
/// An unreadable file, unknown keys, values that are absent or out of range.
pub fn read_table(path: &Path) -> Result<(LinkTable, Gate), ConfigError> {
    /// A minute of latency, and more than any network card moves: beyond these a number is in another unit.
    const NANOSECONDS: u64 = 60_000_000_000;
    const KBYTE_PER_S: u64 = 1_000_000_000;
    let text = read_text(path)?;
    let document = Document::new(path, &text);
    let root = document.root(&["version", "latency_ns", "message_ns", "kbyte_per_s", "gate"])?;
    super::plan::check_version(&root)?;
    let number = |key, min, max| {
        let value = root.integer(key, min, max)?;
        value.ok_or_else(|| root.missing(key, "write the table anew with `tpq bench exchange --write-table`"))
    };
    let table = LinkTable {
        latency_ns: number("latency_ns", 0, NANOSECONDS)?,
        message_ns: number("message_ns", 0, NANOSECONDS)?,
        kbyte_per_s: number("kbyte_per_s", 1, KBYTE_PER_S)?,
    };
    Ok((table, gate(&root)?))
}

fn table(section: &Section<'_>, origin: &Path) -> Result<(LinkTable, Gate), ConfigError> {
    match section.get("table") {
        None => Ok(Default::default()),
        Some(Value::String(path)) if !path.is_empty() => {
            read_table(&origin.parent().unwrap_or(Path::new("")).join(path))
        }
        Some(other) => Err(section.wrong(
            "table",
            other,
            "the path of a table of `tpq bench exchange --write-table`",
        )),
    }
}
