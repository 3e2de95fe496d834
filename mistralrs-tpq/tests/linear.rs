//! Products of linear layers: the bits of the specification on every instruction set, for any number of rows and threads.

use half::f16;
use mistralrs_tpq::codec::Dtype;
use mistralrs_tpq::linear::{product, Kernel, Weight, MAX_ROWS};
use proptest::prelude::*;

/// Pseudo-random values in -1..1 of several magnitudes.
fn values<T: Weight>(seed: u32, count: usize) -> Vec<T> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let value = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let scale = [1.0, 0.1, 0.003][(state >> 5) as usize % 3];
        T::from_f32((state >> 8) as f32 / (1 << 23) as f32 * scale - scale)
    };
    (0..count).map(value).collect()
}

fn bits<T: Weight>(values: &[T]) -> Vec<u32> {
    values.iter().map(|value| value.to_f32().to_bits()).collect()
}

/// The kernel of this processor; without one the specification is compared with itself, and says so.
fn best(dtype: Dtype) -> Kernel {
    Kernel::best(dtype).unwrap_or_else(|| {
        println!("no kernel for {dtype:?} on this processor");
        Kernel::scalar()
    })
}

fn matches_the_specification<T: Weight>(rows: usize, outputs: usize, inputs: usize) {
    let (x, w) = (values::<T>(1, rows * inputs), values::<T>(2, outputs * inputs));
    let expected = product(Kernel::scalar(), &x, &w, inputs);
    let got = product(best(T::DTYPE), &x, &w, inputs);
    assert_eq!(
        bits(&got),
        bits(&expected),
        "{rows} rows, {outputs} outputs, {inputs} inputs"
    );
}

#[test]
fn products_have_the_bits_of_the_specification_for_odd_sizes() {
    for rows in [1, 2, 3, 4, 5, 7, 8, 13, 16] {
        for (outputs, inputs) in [
            (1, 1),
            (3, 7),
            (8, 8),
            (47, 9),
            (49, 64),
            (50, 1023),
            (5, 1025),
            (97, 2051),
        ] {
            matches_the_specification::<f32>(rows, outputs, inputs);
            matches_the_specification::<f16>(rows, outputs, inputs);
        }
    }
}

#[test]
fn a_row_has_the_same_bits_alone_and_among_others() {
    let (inputs, outputs) = (1100, 67);
    let w = values::<f32>(3, outputs * inputs);
    let x = values::<f32>(4, MAX_ROWS * inputs);
    let kernel = best(Dtype::F32);
    let alone: Vec<Vec<u32>> = x
        .chunks(inputs)
        .map(|row| bits(&product(kernel, row, &w, inputs)))
        .collect();
    for rows in (1..=19).chain([64, MAX_ROWS]) {
        let together = product(kernel, &x[..rows * inputs], &w, inputs);
        for (row, (together, alone)) in together.chunks(outputs).zip(&alone).enumerate() {
            assert_eq!(&bits(together), alone, "row {row} of {rows}");
        }
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let (rows, inputs, outputs) = (7, 512, 1000);
    let (x, w) = (values::<f32>(5, rows * inputs), values::<f32>(6, outputs * inputs));
    let of = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| bits(&product(best(Dtype::F32), &x, &w, inputs)))
    };
    assert_eq!(of(1), of(3));
}

#[test]
fn nan_and_infinity_reach_their_row_and_no_other() {
    let (inputs, outputs) = (40, 9);
    let w: Vec<f32> = vec![1.0; outputs * inputs];
    for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut x = vec![0.5f32; 5 * inputs];
        x[2 * inputs + 33] = special;
        let product = product(best(Dtype::F32), &x, &w, inputs);
        for (row, product) in product.chunks(outputs).enumerate() {
            assert_eq!(
                product.iter().all(|y| y.is_finite()),
                row != 2,
                "{special} in row 2, row {row}"
            );
        }
    }
}

#[test]
fn nothing_times_something_is_nothing() {
    let kernel = best(Dtype::F32);
    assert!(product::<f32>(kernel, &[], &[1.0; 12], 4).is_empty());
    assert!(product::<f32>(kernel, &[1.0; 12], &[], 4).is_empty());
}

#[test]
fn there_is_no_kernel_for_bf16_which_candle_does_not_multiply_either() {
    assert_eq!(Kernel::best(Dtype::Bf16), None);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against f64: each of the sums of `inputs` products rounds at most `inputs` times.
    #[test]
    fn a_product_is_within_the_rounding_of_its_sum(
        rows in 1usize..6, outputs in 1usize..20, inputs in 1usize..1500, seed in any::<u32>(),
    ) {
        let (x, w) = (values::<f32>(seed, rows * inputs), values::<f32>(seed ^ 77, outputs * inputs));
        let got = product(best(Dtype::F32), &x, &w, inputs);
        for (row, got) in x.chunks(inputs).zip(got.chunks(outputs)) {
            for (weights, got) in w.chunks(inputs).zip(got) {
                let terms = || row.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w));
                let (exact, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                let bound = inputs as f64 * f64::from(f32::EPSILON) * size;
                prop_assert!((f64::from(*got) - exact).abs() <= bound, "{got} for {exact}");
            }
        }
    }
}
