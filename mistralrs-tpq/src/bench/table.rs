//! What a link costs, from measured exchanges.

use super::Row;
use crate::codec::Dtype;
use crate::exchange::{Algorithm, Chosen, Gate, GateEntry, LinkTable};

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

/// Where compression pays, by what was measured: the smallest size from which on some algorithm with a codec was no slower than
/// raw values were, up to the largest size measured. Sizes without rows of both kinds say nothing.
pub fn gate(rows: &[Row]) -> Gate {
    let mut gate = Gate::default();
    let mut kinds: Vec<(usize, Dtype)> = Vec::new();
    for row in rows {
        let dtypes = [Dtype::F32, Dtype::Bf16, Dtype::F16];
        let Some(dtype) = dtypes.into_iter().find(|dtype| dtype.name() == row.dtype) else {
            continue;
        };
        if kinds.contains(&(row.ranks, dtype)) {
            continue;
        }
        kinds.push((row.ranks, dtype));
        let of_kind = rows
            .iter()
            .filter(|other| (other.ranks, &other.dtype) == (row.ranks, &row.dtype));
        let mut sizes: Vec<(usize, f64, f64)> = Vec::new();
        for row in of_kind {
            let bytes = row.tokens * row.features * dtype.size();
            let at = sizes.iter().position(|(size, ..)| *size == bytes).unwrap_or_else(|| {
                sizes.push((bytes, f64::INFINITY, f64::INFINITY));
                sizes.len() - 1
            });
            let (_, raw, coded) = &mut sizes[at];
            let best = if row.codec == "none" { raw } else { coded };
            *best = best.min(row.us_median);
        }
        sizes.retain(|(_, raw, coded)| raw.is_finite() && coded.is_finite());
        sizes.sort_by_key(|(bytes, ..)| *bytes);
        if sizes.is_empty() {
            continue;
        }
        let slower = sizes.iter().rposition(|(_, raw, coded)| coded > raw);
        let from_bytes = match slower.map_or(Some(0), |last| (last + 1 < sizes.len()).then_some(last + 1)) {
            Some(0) => 0,
            Some(first) => sizes[first].0 as u64,
            None => u64::MAX,
        };
        gate.add(GateEntry {
            ranks: row.ranks,
            dtype,
            from_bytes,
        });
    }
    gate
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

    fn timed(dtype: &str, bytes: usize, codec: &str, us_median: f64) -> Row {
        Row {
            features: bytes / 2,
            dtype: dtype.to_owned(),
            codec: codec.to_owned(),
            us_median,
            ..rows(2, LinkTable::default())[0].clone()
        }
    }

    #[test]
    fn the_gate_opens_where_compression_stays_no_slower_than_raw_values() {
        let mut measured = Vec::new();
        // A lucky small size does not open it.
        for (bytes, raw, coded) in [
            (1 << 10, 5.0, 4.0),
            (1 << 12, 6.0, 9.0),
            (1 << 14, 10.0, 10.0),
            (1 << 16, 30.0, 12.0),
        ] {
            measured.push(timed("bf16", bytes, "none", raw));
            measured.push(timed("bf16", bytes, "paper", coded + 1.0));
            measured.push(timed("bf16", bytes, "dynamic", coded));
        }
        let from_bytes = |rows: &[Row]| gate(rows).entries().map(|entry| entry.from_bytes).collect::<Vec<_>>();
        assert_eq!(from_bytes(&measured), [1 << 14]);
        measured.push(timed("bf16", 1 << 18, "none", 40.0));
        measured.push(timed("bf16", 1 << 18, "paper", 41.0));
        assert_eq!(from_bytes(&measured), [u64::MAX]);
        assert_eq!(from_bytes(&measured[..3]), [0]);
        assert_eq!(from_bytes(&measured[..1]), [0_u64; 0], "nothing to compare with");
    }
}
