//! The section `drift`.

use std::path::Path;

use mistralrs_tpq::config::{DriftPolicy, FallbackCodec};

use super::{error, error_in, parse, NONE};

const PAPER: &str = "version: 1\ncodec: {kind: paper, manifest: m}\n";

#[test]
fn a_full_section_means_what_it_says_and_a_layer_belongs_to_the_first_group_that_matches() {
    let drift = parse(&format!(
        "{PAPER}drift:\n  policy: off\n  groups:\n    - {{layers: \"*.mlp.*\", policy: recalibrate}}\n    \
         - {{layers: \"*.layers.0.*\", policy: fallback}}\n  fallback_codec: none\n  report_after_tokens: 64\n  \
         clip_ratio: 2\n  noise_ratio: 1.2\n  learn_tokens: 4096\n  write_manifest: learned\n"
    ))
    .drift;
    let policy_of = |layer: &str| drift.groups[drift.group_of(layer)].policy;
    assert_eq!(policy_of("model.layers.0.mlp.down_proj"), DriftPolicy::Recalibrate);
    assert_eq!(policy_of("model.layers.0.self_attn.o_proj"), DriftPolicy::Fallback);
    assert_eq!(policy_of("model.layers.1.self_attn.o_proj"), DriftPolicy::Off);
    assert_eq!(
        (drift.fallback_codec, drift.report_after_tokens, drift.learn_tokens),
        (FallbackCodec::None, 64, 4096)
    );
    assert_eq!((drift.clip_ratio, drift.noise_ratio), (2.0, 1.2));
    assert_eq!(drift.write_manifest.as_deref(), Some(Path::new("conf/learned")));
    assert!(!drift.is_off() && drift.off().is_off());
    assert_eq!(parse(NONE).drift.groups[0].policy, DriftPolicy::Warn);
}

#[test]
fn mistakes_are_answered_with_key_value_and_the_nearest_key() {
    for (drift, expected) in [
        ("{polcy: warn}", "unknown key `drift.polcy`, did you mean `drift.policy`?"),
        ("{policy: recalibrat}", "`drift.policy` is `recalibrat`, expected one of off, warn, fallback, recalibrate (did you mean `recalibrate`?)"),
        ("{groups: 3}", "`drift.groups` is 3, expected a list of groups"),
        ("{groups: [a]}", "`drift.groups[0]` is `a`, expected a list of groups, each with"),
        ("{groups: [{layers: a, policy: warn}, {layer: b}]}", "unknown key `drift.groups[1].layer`, did you mean `drift.groups[1].layers`?"),
        ("{groups: [{policy: warn}]}", "`drift.groups[0].layers` is missing"),
        ("{groups: [{layers: \"a b\", policy: warn}]}", "`drift.groups[0].layers` is `a b`"),
        ("{groups: [{layers: a}]}", "`drift.groups[0].policy` is missing"),
        ("{clip_ratio: 0.5}", "`drift.clip_ratio` is 0.5, expected a ratio from 1.01 to 1000000"),
        ("{learn_tokens: 3}", "`drift.learn_tokens` is 3, expected a whole number from 16 to 1048576"),
        ("{write_manifest: 1}", "`drift.write_manifest` is 1, expected the path of a folder"),
    ] {
        let message = error_in(&format!("drift: {drift}"));
        assert!(message.contains(expected) && message.starts_with("conf/tpq.yaml:3: "), "{message}");
    }
}

#[test]
fn what_is_done_about_ranges_needs_a_codec_that_has_some() {
    let groups = "{groups: [{layers: a, policy: warn}, {layers: b, policy: recalibrate}]}";
    for (drift, key) in [
        ("{policy: fallback}", "drift.policy` is `fallback`"),
        ("{policy: recalibrate}", "drift.policy` is `recalibrate`"),
        (groups, "drift.groups[1].policy` is `recalibrate`"),
    ] {
        for kind in ["none", "dynamic"] {
            let message = error(&format!("version: 1\ncodec: {{kind: {kind}}}\ndrift: {drift}\n"));
            let expected = format!("{key}, expected off or warn: `codec.kind: {kind}` has no calibrated ranges");
            assert!(message.contains(&expected), "{message}");
        }
        for codec in [
            "kind: paper",
            "kind: rd",
            "kind: rd, entropy: true",
            "kind: rd, budget_scope: model",
        ] {
            parse(&format!(
                "version: 1\ncodec: {{{codec}, manifest: m}}\ndrift: {drift}\n"
            ));
        }
    }
    parse(&format!("{NONE}drift: {{policy: warn}}\n"));
}

#[test]
fn ranks_must_agree_on_drift_but_not_on_where_rank_0_writes() {
    let digest = |drift: &str| parse(&format!("{NONE}drift: {drift}\n")).policy_digest();
    let base = digest("{}");
    assert_eq!(base, parse(NONE).policy_digest());
    assert_eq!(base, digest("{policy: warn, write_manifest: x}"));
    for other in [
        "{policy: off}",
        "{fallback_codec: none}",
        "{groups: [{layers: a, policy: warn}]}",
        "{report_after_tokens: 17}",
        "{clip_ratio: 9}",
        "{noise_ratio: 9}",
        "{learn_tokens: 17}",
    ] {
        assert_ne!(base, digest(other), "{other}");
    }
}
