//! A site's `rd` as the kernels read it: by feature, where the parts of its code are; by unit of eight codes, whose they are.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::args::{Table, CHUNK};
use super::SiteLayout;
use crate::codec::rd::codebook::{self, table, thresholds};
use crate::codec::rd::layout::{Class, Layout, Planes};
use crate::codec::rd::level;
use crate::codec::RdTables;

/// Planes of a row: 16, 8, 4, 2 and 1 bits of a code, then zeros.
const PLANES: usize = 6;
const CODES: usize = PLANES - 1;
/// Classes with a part in each plane, in the order of a row.
const IN_PLANE: [&[u8]; CODES] = [&[16], &[8], &[6, 5, 4], &[6, 3, 2], &[5, 3, 1]];
const WIDTHS: [u8; CODES] = [16, 8, 4, 2, 1];
/// What the kernels call a class of 16 bits; the others are their bits.
const WORD: u32 = 9;
/// Classes of the codebook with levels by table.
const TABLES: std::ops::RangeInclusive<u8> = 1..=5;
const CLIPS: usize = 9;
/// Entries of the tables have 24 bits for a feature, 28 for a bit of a row.
const MOST_FEATURES: usize = 1 << 20;

/// `RdShape` of `kernels/args.cuh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct Shape {
    units: [u32; PLANES + 1],
    bytes: [u32; PLANES + 1],
}

/// Tables of one site for all ranks, each rank's rows after those of the rank before.
#[derive(Debug, Clone, PartialEq)]
pub struct RdLayout {
    /// By feature, `stride` for each rank.
    steps: Vec<f32>,
    source: Vec<u32>,
    second: Vec<u32>,
    /// By entry, eight to a unit, `job_stride` for each rank.
    inv_steps: Vec<f32>,
    jobs: Vec<u32>,
    shapes: Vec<Shape>,
    codebook: Vec<f32>,
    stride: usize,
    job_stride: usize,
    row_len: usize,
}

/// One rank's tables.
struct RankTables {
    steps: Vec<f32>,
    source: Vec<u32>,
    second: Vec<u32>,
    inv_steps: Vec<f32>,
    jobs: Vec<u32>,
    shape: Shape,
}

impl RdLayout {
    /// `None` for rows beyond what the tables' entries can hold.
    pub fn new(tables: &RdTables) -> Option<Self> {
        let (features, row_len) = (tables.features(), tables.longest_row());
        if features > MOST_FEATURES {
            return None;
        }
        let ranks: Vec<RankTables> = tables
            .layouts()
            .iter()
            .map(|layout| RankTables::new(layout, row_len))
            .collect();
        let stride = features.next_multiple_of(CHUNK);
        let job_stride = ranks.iter().map(|rank| rank.jobs.len()).max().unwrap_or(0);
        Some(Self {
            steps: rows(&ranks, stride, |rank| &rank.steps),
            source: rows(&ranks, stride, |rank| &rank.source),
            second: rows(&ranks, stride, |rank| &rank.second),
            inv_steps: rows(&ranks, job_stride, |rank| &rank.inv_steps),
            jobs: rows(&ranks, job_stride, |rank| &rank.jobs),
            shapes: ranks.iter().map(|rank| rank.shape).collect(),
            codebook: codebook(),
            stride,
            job_stride,
            row_len,
        })
    }
}

impl SiteLayout for RdLayout {
    fn row_len(&self) -> usize {
        self.row_len
    }

    /// Units of the rank that has the most.
    fn units(&self) -> usize {
        self.shapes.iter().map(|shape| shape.units[PLANES]).max().unwrap_or(0) as usize
    }

    fn parts(&self) -> Vec<(usize, &[u8])> {
        vec![
            (offset_of!(Table, steps), bytemuck::cast_slice(&self.steps)),
            (offset_of!(Table, source), bytemuck::cast_slice(&self.source)),
            (offset_of!(Table, second), bytemuck::cast_slice(&self.second)),
            (offset_of!(Table, inv_steps), bytemuck::cast_slice(&self.inv_steps)),
            (offset_of!(Table, slot_feature), bytemuck::cast_slice(&self.jobs)),
            (offset_of!(Table, shapes), bytemuck::cast_slice(&self.shapes)),
            (offset_of!(Table, codebook), bytemuck::cast_slice(&self.codebook)),
        ]
    }

    fn numbers(&self) -> Table {
        Table {
            stride: self.stride as u32,
            job_stride: self.job_stride as u32,
            ..Table::default()
        }
    }
}

impl RankTables {
    fn new(layout: &Layout, row_len: usize) -> Self {
        let planes = layout.planes();
        let starts = starts(&planes, row_len);
        let classes: Vec<Class<'_>> = layout.classes().collect();
        let features = layout.features();
        let mut tables = Self {
            steps: vec![0.0; features],
            source: vec![0; features],
            second: vec![0; features],
            inv_steps: Vec::new(),
            jobs: Vec::new(),
            shape: Shape::zeroed(),
        };
        for (plane, members) in IN_PLANE.into_iter().enumerate() {
            tables.shape.units[plane] = (tables.jobs.len() / CHUNK) as u32;
            let mut bit = 8 * starts[plane];
            let in_plane = members
                .iter()
                .filter_map(|bits| classes.iter().find(|class| class.bits == *bits));
            for class in in_plane {
                tables.add(class, plane, bit);
                bit += class.count * usize::from(WIDTHS[plane]);
            }
            let whole = tables.jobs.len().next_multiple_of(CHUNK);
            tables.jobs.resize(whole, 0);
            tables.inv_steps.resize(whole, 0.0);
        }
        let units = tables.jobs.len() / CHUNK;
        let zeros = row_len - planes.end;
        tables.shape.units[CODES] = units as u32;
        tables.shape.units[PLANES] = (units + zeros.div_ceil(CHUNK)) as u32;
        tables.shape.bytes = starts.map(|start| start as u32);
        tables
    }

    /// The parts in `plane` of a class's codes, whose first is at `bit` of a row.
    fn add(&mut self, class: &Class<'_>, plane: usize, bit: usize) {
        let kind = if class.bits == 16 { WORD } else { u32::from(class.bits) };
        // Bits of the code that are in planes before this one.
        let before = IN_PLANE[..plane]
            .iter()
            .zip(WIDTHS)
            .filter(|(members, _)| members.contains(&class.bits));
        let shift: u32 = before.map(|(_, width)| u32::from(width)).sum();
        let order = class.order.as_flattened().iter().take(class.count);
        let steps = class.steps.as_flattened().iter().zip(class.inv_steps.as_flattened());
        for (index, (&feature, (step, inv_step))) in order.zip(steps).enumerate() {
            let at = (bit + index * usize::from(WIDTHS[plane])) as u32;
            let first = shift == 0;
            self.jobs
                .push(feature | kind << 24 | shift << 28 | u32::from(first) << 31);
            self.inv_steps.push(*inv_step);
            let feature = feature as usize;
            if first {
                self.source[feature] = kind << 28 | at;
                self.steps[feature] = *step;
            } else {
                self.second[feature] = at;
            }
        }
    }
}

/// Where planes begin, then where the next row does.
fn starts(planes: &Planes, row_len: usize) -> [usize; PLANES + 1] {
    let Planes {
        words,
        bytes,
        nibbles,
        crumbs,
        singles,
        end,
    } = *planes;
    [words, bytes, nibbles, crumbs, singles, end, row_len]
}

fn rows<T: Copy + Zeroable>(ranks: &[RankTables], stride: usize, row: impl Fn(&RankTables) -> &Vec<T>) -> Vec<T> {
    let mut rows = Vec::new();
    for (rank, tables) in ranks.iter().enumerate() {
        rows.extend_from_slice(row(tables));
        rows.resize((rank + 1) * stride, T::zeroed());
    }
    rows
}

/// Levels by code and thresholds of the classes that have tables, then where each class of up to 8 bits clips.
fn codebook() -> Vec<f32> {
    let levels = TABLES.flat_map(|bits| (0..1 << bits).map(move |code| level(bits, code)));
    let thresholds = TABLES.flat_map(|bits| thresholds(bits).into_iter().take(table(bits).len() - 1));
    let clips = (0..CLIPS as u8).map(|bits| if bits == 0 { 0.0 } else { codebook::clip(bits) });
    levels.chain(thresholds).chain(clips).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::RdRank;

    #[test]
    fn a_layout_says_where_each_code_is_and_whose_each_unit_is() {
        let ranks = [(vec![6, 0, 16, 5, 4, 3], 2.0), (vec![0, 0, 4, 4, 0, 0], 0.5)];
        let ranks = ranks.map(|(bits, step)| RdRank {
            steps: vec![step; bits.len()],
            bits,
        });
        let layout = RdLayout::new(&RdTables::new(&ranks).unwrap()).unwrap();
        // Gain, one word, no bytes, nibbles of 6, 5, 4, crumbs of 6, 3, single bits of 5, 3: 2 + 2 + 2 + 1 + 1.
        assert_eq!((layout.row_len(), layout.units()), (8, 4));
        let (six, five, four, three) = (6 << 28 | 32, 5 << 28 | 36, 4 << 28 | 40, 3 << 28 | (48 + 2));
        assert_eq!(layout.source[..8], [six, 0, 9 << 28 | 16, five, four, three, 0, 0]);
        assert_eq!(layout.second[..8], [48, 0, 0, 56, 0, 57, 0, 0]);
        assert_eq!(layout.source[8..], [0, 0, 4 << 28 | 16, 4 << 28 | 20, 0, 0, 0, 0]);
        assert_eq!(layout.steps[8..12], [0.0, 0.0, 0.5, 0.5]);
        let counts = 1 << 31;
        let nibbles = [6 << 24 | counts, 3 | 5 << 24 | counts, 4 | 4 << 24 | counts, 0];
        assert_eq!(layout.jobs[8..12], nibbles);
        assert_eq!(layout.jobs[16..19], [6 << 24 | 4 << 28, 5 | 3 << 24 | counts, 0]);
        assert_eq!(layout.jobs[24..27], [3 | 5 << 24 | 4 << 28, 5 | 3 << 24 | 2 << 28, 0]);
        // The other rank's row ends early and is filled up with one unit of zeros.
        assert_eq!(layout.shapes[1].units, [0, 0, 0, 1, 1, 1, 2]);
        assert_eq!(layout.shapes[1].bytes, [2, 2, 2, 3, 3, 3, 8]);
    }

    #[test]
    fn the_codebook_has_its_parts_where_the_kernels_look_for_them() {
        let codebook = codebook();
        assert_eq!(codebook.len(), 62 + 26 + CLIPS);
        assert_eq!(codebook[2..6], [0.452_78, 1.510_418, -0.452_78, -1.510_418]);
        for bits in TABLES {
            let (half, first) = (1 << (bits - 1), 62 + (1 << (bits - 1)) - usize::from(bits));
            assert_eq!(codebook[first..first + half - 1], thresholds(bits)[..half - 1]);
        }
    }
}
