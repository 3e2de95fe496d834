//! The section `exchange`: what ranks must agree on, and the table of the links.

use mistralrs_tpq::codec::Dtype;
use mistralrs_tpq::config::{read_table, table_text, Plan};
use mistralrs_tpq::exchange::{Gate, GateEntry, LinkTable};

use super::{error_in, parse, NONE, TWO};

#[test]
fn the_policy_digest_covers_what_ranks_must_agree_on_and_nothing_else() {
    let digest = |text: &str| parse(text).policy_digest();
    let base = digest(NONE);
    for same in [TWO, "version: 1\ncodec: {kind: none, manifest: m}\ngroup: {timeout_s: 3}\ncalibration: {seed: 4}\nexchange: {algorithm: auto}\n"] {
        assert_eq!(digest(same), base);
    }
    let paper = |path: &str| format!("version: 1\ncodec: {{kind: paper, manifest: {path}}}\n");
    assert_eq!(
        digest(&paper("a.yaml")),
        digest(&paper("/b/a.yaml")),
        "each host may keep its copy elsewhere"
    );
    let mut all = vec![
        base,
        digest(&paper("a.yaml")),
        digest("version: 1\ncodec: {kind: dynamic}\n"),
    ];
    for exchange in [
        "algorithm: one_shot",
        "algorithm: lossless",
        "nonfinite: fallback",
        "min_tokens: 1",
        "algorithm: two_shot",
        "gather_bits: 4",
        "min_bytes: 1",
        "prefill_only: true",
        "gpu_link: tcp",
        "batch_invariant: false",
    ] {
        all.push(digest(&format!("{NONE}exchange: {{{exchange}}}\n")));
    }
    let distinct: std::collections::BTreeSet<_> = all.iter().collect();
    assert_eq!(distinct.len(), all.len());
    // Pinned: ranks of different builds compare it.
    assert_eq!(base.short(), "5a68f753");
}

#[test]
fn batch_invariance_is_the_default_and_not_to_be_had_with_keys_that_break_it() {
    let invariant = |exchange: &str| {
        parse(&format!("{NONE}exchange: {{{exchange}}}\n"))
            .exchange
            .batch_invariant
    };
    assert!(invariant("") && invariant("algorithm: two_shot") && invariant("min_bytes: 0"));
    assert!(!invariant("batch_invariant: false"));
    for (key, named) in [
        ("algorithm: ring", "`exchange.algorithm: ring`"),
        ("min_tokens: 2", "`exchange.min_tokens`"),
        ("min_bytes: 2", "`exchange.min_bytes`"),
        ("prefill_only: true", "`exchange.prefill_only`"),
    ] {
        assert!(!invariant(key), "{key}");
        let message = error_in(&format!("exchange: {{{key}, batch_invariant: true}}"));
        assert!(
            message.contains("`exchange.batch_invariant` is true") && message.contains(named),
            "{message}"
        );
    }
}

#[test]
fn a_table_comes_back_as_written_and_changes_the_policy_digest() {
    let folder = tempfile::tempdir().unwrap();
    let table = LinkTable {
        latency_ns: 31_000,
        message_ns: 2_500,
        kbyte_per_s: 1_190_000,
    };
    let mut gate = Gate::default();
    for (ranks, dtype, from_bytes) in [(2, Dtype::Bf16, 65_536), (4, Dtype::F32, u64::MAX)] {
        assert!(gate.add(GateEntry {
            ranks,
            dtype,
            from_bytes
        }));
    }
    std::fs::write(folder.path().join("link.yaml"), table_text(&table, &Gate::default())).unwrap();
    std::fs::write(folder.path().join("gpu.yaml"), table_text(&table, &gate)).unwrap();
    let plan = |text: &str| Plan::parse(text, &folder.path().join("tpq.yaml")).unwrap();
    let with_table = plan(&format!("{NONE}exchange: {{table: link.yaml}}\n"));
    assert_eq!(with_table.exchange.table, table);
    assert_ne!(with_table.policy_digest(), plan(NONE).policy_digest());
    let with_gate = plan(&format!("{NONE}exchange: {{table: gpu.yaml}}\n"));
    assert_eq!((with_gate.exchange.table, with_gate.exchange.gate), (table, gate));
    assert_ne!(with_gate.policy_digest(), with_table.policy_digest());
}

#[test]
fn a_table_that_is_not_one_is_refused_with_file_and_key() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("link.yaml");
    for (text, expected) in [
        ("version: 1\nlatency_ns: 1\nmessage_ns: 1\n", "`kbyte_per_s` is missing"),
        ("version: 1\nlatency_ns: -4\n", "`latency_ns` is -4"),
        (
            "version: 1\nlatency_us: 4\n",
            "unknown key `latency_us`, did you mean `latency_ns`?",
        ),
        (
            "version: 1\nlatency_ns: 1\nmessage_ns: 1\nkbyte_per_s: 0\n",
            "`kbyte_per_s` is 0",
        ),
        (
            "version: 1\nlatency_ns: 1\nmessage_ns: 1\nkbyte_per_s: 1\ngate: [2 bf16]\n",
            "`gate` is ",
        ),
        (
            "version: 1\nlatency_ns: 1\nmessage_ns: 1\nkbyte_per_s: 1\ngate: [2 bf16 1, 2 bf16 2]\n",
            "one for each ranks and dtype",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let message = read_table(&path).unwrap_err().to_string();
        assert!(message.contains("link.yaml") && message.contains(expected), "{message}");
    }
}
