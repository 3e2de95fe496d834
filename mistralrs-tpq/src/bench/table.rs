//! What a link costs, from measured exchanges.

use super::Row;
use crate::exchange::{Algorithm, Chosen, LinkTable};

/// Fits latency, cost of a message and rate to `rows` by least squares of the relative errors. `None` when they are too few
/// or too much alike to tell.
///
/// With two ranks steps and messages are the same number, so the cost of a message is part of the latency then.
pub fn fit(rows: &[Row]) -> Option<LinkTable> {
    let mut normal = [[0.0_f64; 3]; 3];
    let mut right = [0.0_f64; 3];
    for row in rows.iter().filter(|row| row.us_median > 0.0) {
        let (steps, messages) = chosen(row)?.steps(row.ranks);
        let ns = row.us_median * 1e3;
        // Two ranks send one message a step: there is nothing to tell the two costs apart.
        let messages = if row.ranks == 2 { 0 } else { messages };
        let terms = [steps as f64, messages as f64, row.bytes_sent_per_rank as f64].map(|term| term / ns);
        for (i, line) in normal.iter_mut().enumerate() {
            for (j, cell) in line.iter_mut().enumerate() {
                *cell += terms[i] * terms[j];
            }
            right[i] += terms[i];
        }
    }
    if normal[1][1] == 0.0 {
        normal[1][1] = 1.0;
    }
    let [latency, message, per_byte] = solve(normal, right)?;
    (per_byte > 0.0).then(|| LinkTable {
        latency_ns: latency.max(0.0) as u64,
        message_ns: message.max(0.0) as u64,
        kbyte_per_s: (1e6 / per_byte).max(1.0) as u64,
    })
}

/// What a row ran. `auto` ran something else for each size, so its rows say nothing here.
fn chosen(row: &Row) -> Option<Chosen> {
    match Algorithm::from_name(&row.algorithm)? {
        Algorithm::OneShot => Some(Chosen::OneShot),
        Algorithm::TwoShot => Some(Chosen::TwoShot),
        Algorithm::Ring => Some(Chosen::Ring),
        Algorithm::Doubling => Some(Chosen::Doubling),
        _ => None,
    }
}

/// Cramer's rule; columns are scaled first, as bytes are a million times as many as steps.
fn solve(mut matrix: [[f64; 3]; 3], right: [f64; 3]) -> Option<[f64; 3]> {
    let scale: [f64; 3] = std::array::from_fn(|i| matrix[i][i].sqrt());
    if scale.iter().any(|scale| *scale <= 0.0) {
        return None;
    }
    for (i, line) in matrix.iter_mut().enumerate() {
        for (j, cell) in line.iter_mut().enumerate() {
            *cell /= scale[i] * scale[j];
        }
    }
    let whole = determinant(&matrix);
    if whole.abs() < 1e-9 {
        return None;
    }
    Some(std::array::from_fn(|column| {
        let mut replaced = matrix;
        for (i, line) in replaced.iter_mut().enumerate() {
            line[column] = right[i] / scale[i];
        }
        determinant(&replaced) / whole / scale[column]
    }))
}

fn determinant(m: &[[f64; 3]; 3]) -> f64 {
    let minor = |a: usize, b: usize| m[1][a] * m[2][b] - m[1][b] * m[2][a];
    m[0][0] * minor(1, 2) - m[0][1] * minor(0, 2) + m[0][2] * minor(0, 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(ranks: usize, table: LinkTable) -> Vec<Row> {
        let mut rows = Vec::new();
        for algorithm in [
            Algorithm::OneShot,
            Algorithm::TwoShot,
            Algorithm::Ring,
            Algorithm::Doubling,
        ] {
            for bytes in [1_000_u64, 30_000, 2_000_000] {
                let mut row = Row {
                    ranks,
                    tokens: 1,
                    features: 1,
                    dtype: String::new(),
                    codec: String::new(),
                    algorithm: algorithm.name().to_owned(),
                    bytes_sent_per_rank: bytes,
                    bits_per_value: 0.0,
                    us_median: 0.0,
                    us_p99: 0.0,
                    algbw_gbps: 0.0,
                    busbw_gbps: 0.0,
                    wrong: 0,
                };
                let (steps, messages) = chosen(&row).unwrap().steps(ranks);
                row.us_median = table.cost_ns(steps, messages, bytes) as f64 / 1e3;
                rows.push(row);
            }
        }
        rows
    }

    #[test]
    fn a_table_is_found_again_from_the_times_it_predicts() {
        let table = LinkTable {
            latency_ns: 42_000,
            message_ns: 6_000,
            kbyte_per_s: 117_000,
        };
        let near = |got: u64, expected: u64| got.abs_diff(expected) * 100 <= expected;
        for ranks in [3, 4, 8] {
            let fitted = fit(&rows(ranks, table)).unwrap();
            assert!(
                near(fitted.latency_ns, 42_000) && near(fitted.message_ns, 6_000) && near(fitted.kbyte_per_s, 117_000),
                "{fitted:?}"
            );
        }
        let two = fit(&rows(2, table)).unwrap();
        assert!(near(two.latency_ns, 48_000) && two.message_ns == 0, "{two:?}");
    }

    #[test]
    fn one_size_is_too_little_to_tell() {
        let table = LinkTable::default();
        assert_eq!(fit(&rows(2, table)[..1]), None);
    }
}
