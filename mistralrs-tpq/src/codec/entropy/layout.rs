//! One rank's features, as the loops over a row read them.

use super::model::Class;
use super::tables::Tables;

#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// Features that are sent, ascending.
    pub features: Vec<u32>,
    /// The others, which were zero in calibration, ascending.
    pub absent: Vec<u32>,
    /// One for each of `features`.
    pub classes: Vec<Class>,
    /// In units of the gain.
    pub step: f32,
    pub inv_step: f32,
    /// For each of `features`: its class's low bits, and the reach of its model and the place of its zero.
    shifts: Vec<i32>,
    reaches: Vec<i32>,
    zeros: Vec<i32>,
}

impl Layout {
    /// For the features that `classes` names, of rows of `width` values.
    pub fn new(tables: &mut Tables, width: usize, step: f64, classes: Vec<(u32, Class)>) -> Self {
        let (features, classes): (Vec<u32>, Vec<Class>) = classes.into_iter().unzip();
        let mut sent = features.iter().peekable();
        let absent = (0..width as u32).filter(|feature| sent.next_if_eq(&feature).is_none());
        Self {
            absent: absent.collect(),
            step: step as f32,
            inv_step: (1.0 / step) as f32,
            shifts: classes.iter().map(|class| i32::from(class.shift)).collect(),
            reaches: classes.iter().map(|class| tables.model(*class).reach).collect(),
            zeros: classes.iter().map(|class| tables.zero(*class)).collect(),
            features,
            classes,
        }
    }
}

/// Finds what the values `x` of `layout.features` become: their codes in steps, low bits included, and their places in
/// [`Tables`]. Plain loops over arrays, which become vectors.
#[inline(always)]
pub fn locate(layout: &Layout, x: &[f32], inv_gain: f32, codes: &mut [i32], places: &mut [i32]) {
    for (code, x) in codes.iter_mut().zip(x) {
        let position = (x * inv_gain) * layout.inv_step;
        let position = if position.is_nan() { 0.0 } else { position };
        *code = nearest(position.clamp(-LARGEST, LARGEST));
    }
    let classes = layout.shifts.iter().zip(&layout.reaches).zip(&layout.zeros);
    for ((code, place), ((shift, reach), zero)) in codes.iter_mut().zip(places).zip(classes) {
        *code += 1 << shift >> 1;
        // Not `clamp`, which looks whether its bounds are in order: with a way to panic the loop does not become vectors.
        *place = zero + (*code >> shift).max(-reach - 1).min(reach + 1);
    }
}

/// Positions beyond it are out of every model's reach, which ends at 60 * 2^12.
const LARGEST: f32 = (1 << 22) as f32;

/// The whole number nearest to `x`, ties to even: added to 1.5 * 2^23, whose last place is 1, it becomes the low bits of the
/// sum. The cast of a rounded number saturates, for which there is no vector instruction.
#[inline(always)]
fn nearest(x: f32) -> i32 {
    const SHIFT: f32 = (3 << 22) as f32;
    (x + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits()) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_whole_number_is_that_of_a_cast() {
        for x in [
            0.0,
            -0.0,
            0.5,
            1.5,
            2.5,
            -0.5,
            -1.5,
            0.499_999_97,
            1e-40,
            4_194_303.5,
            LARGEST,
            -LARGEST,
            -4_194_303.5,
        ] {
            assert_eq!(nearest(x), x.round_ties_even() as i32, "{x}");
        }
    }
}
