//! Drift over a group of ranks as threads: synthetic partial sums whose features change mid-run, real exchanges, no engine.

#[path = "drift/group.rs"]
mod group;

use proptest::prelude::*;

use group::{Domain, Group, Rank, Step};

const CODECS: [&str; 3] = [
    "{kind: paper, manifest: m}",
    "{kind: rd, manifest: m}",
    "{kind: rd, entropy: true, manifest: m}",
];
const HOME: Domain = Domain(1);
const AWAY: Domain = Domain(2);

/// Decode steps and prompts of one domain, `tokens` in all.
fn text(domain: Domain, tokens: usize, seed: u64) -> Vec<Step> {
    let (mut steps, mut left) = (Vec::new(), tokens);
    while left > 0 {
        let seed = seed + steps.len() as u64;
        let tokens = [1, 3, 1, 30, 2][steps.len() % 5].min(left);
        steps.push(Step { domain, tokens, seed });
        left -= tokens;
    }
    steps
}

fn script(parts: &[(Domain, usize)]) -> Vec<Step> {
    let part = |(index, (domain, tokens)): (usize, &(Domain, usize))| text(*domain, *tokens, index as u64 * 10_000);
    parts.iter().enumerate().flat_map(part).collect()
}

/// Tokens of `steps` before the first for which `seen` holds after its end; all of them when there is none.
fn tokens_until(steps: &[Step], seen: impl Fn(usize) -> bool) -> usize {
    let last = (0..steps.len()).find(|step| seen(*step)).unwrap_or(steps.len());
    steps[..last].iter().map(|step| step.tokens).sum()
}

/// Mean over the last `steps` steps.
fn last_error(rank: &Rank, steps: usize) -> f64 {
    rank.errors[rank.errors.len() - steps..].iter().sum::<f64>() / steps as f64
}

#[test]
fn a_shift_is_reported_within_200_tokens_and_no_shift_is_not() {
    for codec in CODECS {
        let group = Group::new(2, codec, "{}", HOME);
        let steps = script(&[(HOME, 2000), (AWAY, 400)]);
        let rank_0 = &group.run(&steps)[0];
        let drifted = |step: usize| rank_0.status[step].groups[0].drifts > 0;
        let at = tokens_until(&steps, drifted);
        let after = at as i64 - 2000;
        println!("{codec}: reported {after} tokens after the shift");
        assert!((0..=200).contains(&after), "{codec}: {after}");
    }
}

#[test]
fn recalibration_restores_what_fresh_calibration_gives_and_all_ranks_switch_at_one_step() {
    for codec in CODECS {
        for ranks in [2, 3].into_iter().take(if codec == CODECS[0] { 2 } else { 1 }) {
            let drift = "{policy: recalibrate, learn_tokens: 512}";
            let steps = script(&[(HOME, 500), (AWAY, 2000)]);
            let seen = Group::new(ranks, codec, drift, HOME).run(&steps);
            let stale = Group::new(ranks, codec, "{}", HOME).run(&steps);
            let fresh = Group::new(ranks, codec, "{}", AWAY).run(&steps);
            assert_eq!(seen[0].status.last().unwrap().groups[0].switches, 1, "{codec}");
            let [learned, stale, fresh] = [&seen, &stale, &fresh].map(|ranks| last_error(&ranks[0], 50));
            println!("{codec}, {ranks} ranks: error {learned:.5} learned, {stale:.5} stale, {fresh:.5} fresh");
            assert!(
                learned < 1.5 * fresh && stale > 2.0 * learned,
                "{codec}: {learned} {stale} {fresh}"
            );
        }
    }
}

#[test]
fn a_group_in_fallback_is_sent_without_ranges_until_it_recovers() {
    for codec in CODECS {
        let drift = "{policy: fallback, fallback_codec: none}";
        let group = Group::new(2, codec, drift, HOME);
        let steps = script(&[(HOME, 500), (AWAY, 800), (HOME, 2500)]);
        let rank_0 = &group.run(&steps)[0];
        let phase = |step: usize| rank_0.status[step].groups[0].phase.name();
        let exact = |step: usize| rank_0.errors[step] < 1e-9;
        let left = tokens_until(&steps, |step| phase(step) == "fallback");
        assert!((500..700).contains(&left), "{codec}: {left}");
        for step in 1..steps.len() {
            // Decided before a step, and in force in it.
            assert_eq!(exact(step), phase(step) == "fallback", "{codec}, step {step}");
        }
        assert_eq!(phase(steps.len() - 1), "calm", "{codec}");
        let status = rank_0.status.last().unwrap();
        assert_eq!((status.groups[0].drifts, status.groups[0].switches), (1, 0), "{codec}");
    }
}

#[test]
fn each_group_has_its_own_policy() {
    let drift =
        "{policy: off, groups: [{layers: \"*.mlp.*\", policy: recalibrate}, {layers: \"l.0.*\", policy: warn}, \
                 {layers: \"*.attn.*\", policy: fallback}], learn_tokens: 256}";
    let steps = script(&[(HOME, 300), (AWAY, 1200)]);
    let rank_0 = &Group::new(2, CODECS[1], drift, HOME).run(&steps)[0];
    let groups = &rank_0.status.last().unwrap().groups;
    let phases: Vec<&str> = groups.iter().map(|group| group.phase.name()).collect();
    assert_eq!(phases, ["calm", "drifted", "fallback", "calm"]);
    assert_eq!(
        groups.iter().map(|group| group.switches).collect::<Vec<_>>(),
        [1, 0, 0, 0]
    );
}

#[test]
fn a_group_formed_anew_is_at_the_manifest_again_on_every_rank() {
    let mut group = Group::new(2, CODECS[1], "{policy: recalibrate, learn_tokens: 256}", HOME);
    let before = script(&[(HOME, 200), (AWAY, 1000)]);
    let reformed = before.len();
    // The same tokens before and after.
    let steps: Vec<Step> = before.iter().chain(&before).copied().collect();
    group.reforms = vec![reformed];
    let ranks = group.run(&steps);
    assert_eq!(ranks[0].status[reformed - 1].groups[0].switches, 1);
    assert_eq!(ranks[0].status[reformed].groups[0].phase.name(), "calm");
    assert!(
        ranks[0].sums[..reformed] == ranks[0].sums[reformed..],
        "the second run differs from the first"
    );
    assert_ne!(ranks[0].manifest, Some(group.manifest.digest()), "it learned again");
    group.reforms = vec![reformed, 2 * reformed - 1];
    assert_eq!(group.run(&steps)[0].manifest, Some(group.manifest.digest()));
}

#[test]
fn a_rank_whose_sum_differs_is_named_before_a_hundred_tokens_have_gone_out() {
    let mut group = Group::new(3, CODECS[0], "{}", HOME);
    let steps = script(&[(HOME, 600)]);
    group.tampered = Some((2, 10));
    let ranks = group.run(&steps);
    let failure = ranks[0].failure.as_deref().expect("rank 0 has noticed");
    assert!(
        failure.contains("rank 2") && failure.contains("l.0.attn.o_proj"),
        "{failure}"
    );
    let after: usize = steps[10..ranks[0].sums.len()].iter().map(|step| step.tokens).sum();
    assert!(after < 200, "{after} tokens");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, ..ProptestConfig::default() })]

    /// `run` compares all ranks after every step.
    #[test]
    fn ranks_stay_bit_identical_through_any_shifts(
        parts in prop::collection::vec((1u64..4, 50usize..500), 1..6),
        codec in 0usize..3,
        policy in prop::sample::select(vec!["fallback", "recalibrate"]),
    ) {
        let parts: Vec<(Domain, usize)> = parts.into_iter().map(|(domain, tokens)| (Domain(domain), tokens)).collect();
        let drift = format!("{{policy: {policy}, report_after_tokens: 32, learn_tokens: 64}}");
        let ranks = Group::new(2, CODECS[codec], &drift, HOME).run(&script(&parts));
        prop_assert_eq!(&ranks[0].failure, &None);
    }
}
