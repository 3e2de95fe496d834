//! Error bounds of the building blocks, in f64 so that the bound itself never rounds below the truth by much, and one
//! f32 step upwards at the end so that it never does at all.

use half::bf16;

/// Slack for the f32 arithmetic around a code, in steps. The reciprocal and the product move the position of `x` by at
/// most 8.5 * 2^-23 steps before it is rounded; `code * step` adds 8 * 2^-24 steps: 12.5 * 2^-23 < 2^-19 in all.
const SLACK_STEPS: f64 = 1.0 / (1u64 << 19) as f64;

/// Error of a value sent as a code of `lowest..=highest` steps: half a step within half a step of a level, otherwise the
/// distance to the outermost level.
pub fn of_code(x: f32, step: f32, lowest: f32, highest: f32) -> f32 {
    if !x.is_finite() {
        return f32::INFINITY;
    }
    let (x, step) = (f64::from(x), f64::from(step));
    let (a, b) = (f64::from(lowest) * step, f64::from(highest) * step);
    let beyond = (a.min(b) - x).max(x - a.max(b)).max(0.0);
    round_up((step.abs() / 2.0).max(beyond) + step.abs() * SLACK_STEPS)
}

/// Error of a value sent as one of the levels of `rd`, whose highest is `highest` steps and whose inner positions are at most
/// `inside` steps from their level. The slack covers the two products on either side of up to 128 steps, and a step whose
/// scaled value is subnormal.
pub fn of_level(x: f32, step: f64, highest: f32, inside: f32) -> f32 {
    if !x.is_finite() {
        return f32::INFINITY;
    }
    let beyond = f64::from(x).abs() - f64::from(highest) * step;
    let slack = (f64::from(x).abs() + 128.0 * step) * SLACK_STEPS + f64::from(f32::MIN_POSITIVE);
    round_up((f64::from(inside) * step).max(beyond) + slack)
}

/// Error of a value sent as BF16: half a unit in the last of 8 significant bits, `2^-8 |x|`, but at least half of the
/// smallest subnormal, 2^-134. Saturation to the largest BF16 is within the same bound.
pub fn of_bf16(x: f32) -> f32 {
    if !x.is_finite() {
        return f32::INFINITY;
    }
    let half_ulp = f64::from(x.abs()) / 256.0;
    round_up(half_ulp.max(f64::from(bf16::MIN_POSITIVE_SUBNORMAL) / 2.0))
}

/// `bound` plus what is lost when `x` is first saturated to the BF16 range.
pub fn with_bf16_saturation(x: f32, bound: f32) -> f32 {
    let lost = (f64::from(x).abs() - f64::from(bf16::MAX)).max(0.0);
    if lost > 0.0 {
        round_up(f64::from(bound) + lost)
    } else {
        bound
    }
}

fn round_up(bound: f64) -> f32 {
    if bound == 0.0 {
        0.0
    } else {
        (bound as f32).next_up()
    }
}
