//! A site's calibration as the kernels read it. The scalar code patches a row after it went over it; a thread has no
//! "after", so each chunk of eight features or slots has a byte that says which of them are elsewhere, and where.

use std::mem::offset_of;

use super::args::{Table, CHUNK, OUTLIER};
use crate::codec::PaperTables;

/// A site's calibration, for the kernels.
pub trait SiteLayout {
    /// Chunks that encoding a row takes.
    fn units(&self) -> usize;

    /// Bytes of a row.
    fn row_len(&self) -> usize;

    /// The numbers of a [`Table`], without its addresses.
    fn numbers(&self) -> Table;

    /// What a [`Table`] points to: where in it the address is, and the bytes there.
    fn parts(&self) -> Vec<(usize, &[u8])>;
}

/// Tables of one site for all ranks. E features, k outliers, E - k slots.
#[derive(Debug, Clone, PartialEq)]
pub struct PaperLayout {
    /// Ranks x stride, padded with zeros.
    pub steps: Vec<f32>,
    pub inv_steps: Vec<f32>,
    /// E: the slot with a feature's code, or [`OUTLIER`] and its index among the outliers.
    pub source: Vec<u32>,
    /// E - k: the feature whose code a slot holds.
    pub slot_feature: Vec<u32>,
    /// k, ascending.
    pub outliers: Vec<u32>,
    /// Bit j of byte c: feature `8 c + j` is not in the slot of its own index.
    pub patched_features: Vec<u8>,
    /// Bit j of byte c: slot `8 c + j` does not hold the feature of its own index.
    pub patched_slots: Vec<u8>,
    /// Floats between the rows of `steps`: E rounded up to whole chunks, so that every load of eight is aligned.
    pub stride: usize,
}

impl PaperLayout {
    pub fn new(tables: &PaperTables) -> Self {
        let features = tables.features();
        let stride = features.next_multiple_of(CHUNK);
        let (mut steps, mut inv_steps) = (Vec::new(), Vec::new());
        let mut slot_feature: Vec<u32> = (0..(features - tables.outliers().len()) as u32).collect();
        for row in (0..tables.ranks()).filter_map(|rank| tables.rank(rank)) {
            steps.extend_from_slice(row.steps);
            inv_steps.extend_from_slice(row.inv_steps);
            steps.resize(steps.len().next_multiple_of(stride.max(1)), 0.0);
            inv_steps.resize(steps.len(), 0.0);
            for (&slot, &feature) in row.outliers.iter().zip(row.displaced) {
                slot_feature[slot as usize] = feature;
            }
        }
        let mut source = vec![0; features];
        for (slot, &feature) in (0u32..).zip(&slot_feature) {
            source[feature as usize] = slot;
        }
        for (index, &feature) in (0u32..).zip(tables.outliers()) {
            source[feature as usize] = OUTLIER | index;
        }
        Self {
            patched_features: elsewhere(&source),
            patched_slots: elsewhere(&slot_feature),
            steps,
            inv_steps,
            source,
            slot_feature,
            outliers: tables.outliers().to_vec(),
            stride,
        }
    }
}

impl SiteLayout for PaperLayout {
    /// Chunks of slots, then of outliers.
    fn units(&self) -> usize {
        self.slot_feature.len().div_ceil(CHUNK) + self.outliers.len().div_ceil(CHUNK)
    }

    fn row_len(&self) -> usize {
        self.slot_feature.len().div_ceil(2) + 2 * self.outliers.len()
    }

    fn numbers(&self) -> Table {
        Table {
            stride: self.stride as u32,
            slots: self.slot_feature.len() as u32,
            outlier_count: self.outliers.len() as u32,
            ..Table::default()
        }
    }

    fn parts(&self) -> Vec<(usize, &[u8])> {
        vec![
            (offset_of!(Table, steps), bytemuck::cast_slice(&self.steps)),
            (offset_of!(Table, inv_steps), bytemuck::cast_slice(&self.inv_steps)),
            (offset_of!(Table, source), bytemuck::cast_slice(&self.source)),
            (
                offset_of!(Table, slot_feature),
                bytemuck::cast_slice(&self.slot_feature),
            ),
            (offset_of!(Table, outliers), bytemuck::cast_slice(&self.outliers)),
            (offset_of!(Table, patched_features), &self.patched_features),
            (offset_of!(Table, patched_slots), &self.patched_slots),
        ]
    }
}

fn elsewhere(index: &[u32]) -> Vec<u8> {
    let mut masks = vec![0; index.len().div_ceil(CHUNK)];
    for (here, &there) in index.iter().enumerate() {
        masks[here / CHUNK] |= u8::from(there as usize != here) << (here % CHUNK);
    }
    masks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_says_where_each_feature_and_each_slot_is() {
        // 11 features, outliers 1 and 10: slots 0..9; slot 1 holds the displaced feature 9.
        let tables = PaperTables::new(vec![vec![7.0; 11], vec![14.0; 11]], vec![1, 10]).unwrap();
        let layout = PaperLayout::new(&tables);
        assert_eq!(layout.slot_feature, [0, 9, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(layout.source, [0, OUTLIER, 2, 3, 4, 5, 6, 7, 8, 1, OUTLIER | 1]);
        assert_eq!(layout.patched_slots, [0b10, 0]);
        assert_eq!(layout.patched_features, [0b10, 0b110]);
        assert_eq!((layout.stride, layout.steps.len()), (16, 32));
        assert_eq!(layout.steps[16..20], [2.0, 0.0, 2.0, 2.0]);
    }
}
