//! The rows of all codecs, in blocks of 32 values: the same for every instruction set, over the lanes that its module has.

/// Methods of `$proof`, which only a processor with `$features` has, and their functions. The module in which this is
/// expanded has the lanes: `load`, `store`, `splat`, `any_magnitude_above`, `largest_rotated`, `positions`,
/// `clipped_positions`, `total`, `pack`, `narrow`, `codes`, `products`, `accumulate`, `store_rounded` and `fetch_ahead`.
///
/// A macro and not a trait: the methods of a trait cannot be compiled for a feature.
macro_rules! rows {
    ($proof:ident, $features:literal) => {
        impl $proof {
            pub fn paper_encode_row<T: Element>(
                self,
                table: &PaperRow<'_>,
                values: &[T],
                row: &mut [u8],
            ) -> EncodeStats {
                // SAFETY: `self` exists only where `new` has found the features.
                unsafe { paper_encode_row(table, values, row) }
            }

            pub fn paper_decode_row(
                self,
                table: &PaperRow<'_>,
                row: &[u8],
                onto: Onto,
                sum: &mut [f32],
            ) -> Result<(), BadWord> {
                // SAFETY: `self` exists only where `new` has found the features.
                unsafe {
                    match onto {
                        Onto::Zero => paper_decode_row::<true>(table, row, sum),
                        Onto::Sum => paper_decode_row::<false>(table, row, sum),
                    }
                }
            }

            pub fn dynamic_encode_row<T: Element>(self, width: Width, values: &[T], row: &mut [u8]) -> EncodeStats {
                // SAFETY: `self` exists only where `new` has found the features.
                unsafe {
                    match width {
                        Width::Four => dynamic_encode_row::<T, BLOCK_BYTES>(width, values, row),
                        Width::Eight => dynamic_encode_row::<T, BLOCK>(width, values, row),
                    }
                }
            }

            pub fn dynamic_decode_row(
                self,
                width: Width,
                row: &[u8],
                onto: Onto,
                sum: &mut [f32],
            ) -> Result<(), BadWord> {
                // SAFETY: `self` exists only where `new` has found the features.
                unsafe {
                    match (width, onto) {
                        (Width::Four, Onto::Zero) => dynamic_decode_row::<BLOCK_BYTES, true>(width, row, sum),
                        (Width::Four, Onto::Sum) => dynamic_decode_row::<BLOCK_BYTES, false>(width, row, sum),
                        (Width::Eight, Onto::Zero) => dynamic_decode_row::<BLOCK, true>(width, row, sum),
                        (Width::Eight, Onto::Sum) => dynamic_decode_row::<BLOCK, false>(width, row, sum),
                    }
                }
            }

            pub fn dynamic_decode_rounded_row<T: Element>(
                self,
                width: Width,
                row: &[u8],
                values: &mut [T],
            ) -> Result<(), BadWord> {
                // SAFETY: `self` exists only where `new` has found the features.
                unsafe {
                    match width {
                        Width::Four => dynamic_decode_rounded_row::<T, BLOCK_BYTES>(width, row, values),
                        Width::Eight => dynamic_decode_rounded_row::<T, BLOCK>(width, row, values),
                    }
                }
            }

            pub fn round<T: Element>(self, values: &[f32], rounded: &mut [T]) {
                // SAFETY: `self` exists only where `new` has found the features.
                unsafe { round(values, rounded) }
            }

            pub fn widen<T: Element>(self, values: &[T], wide: &mut [f32]) {
                // SAFETY: `self` exists only where `new` has found the features.
                unsafe { widen(values, wide) }
            }

            pub fn gain(self, values: &[f32]) -> bf16 {
                // SAFETY: `self` exists only where `new` has found the features.
                unsafe { gain(values) }
            }

            pub fn locate(
                self,
                layout: &layout::Layout,
                x: &[f32],
                inv_gain: f32,
                codes: &mut [i32],
                places: &mut [i32],
            ) {
                // SAFETY: `self` exists only where `new` has found the features.
                unsafe { locate(layout, x, inv_gain, codes, places) }
            }
        }

        // ---- paper ----

        #[target_feature(enable = $features)]
        fn paper_encode_row<T: Element>(table: &PaperRow<'_>, values: &[T], row: &mut [u8]) -> EncodeStats {
            let slots = table.slots();
            let (plane, outliers) = row.split_at_mut(scalar::plane_len(slots));
            let mut stats = paper_encode_plane(&values[..slots], &table.inv_steps[..slots], plane);
            stats += paper_encode_displaced(table, values, plane);
            stats += paper_encode_outliers(table, values, outliers);
            stats
        }

        /// As [`scalar::paper_encode_outliers`], and the count of dead features.
        #[inline]
        #[target_feature(enable = $features)]
        fn paper_encode_outliers<T: Element>(table: &PaperRow<'_>, values: &[T], outliers: &mut [u8]) -> EncodeStats {
            let mut stats = EncodeStats::default();
            let (blocks, rest) = table.outliers.as_chunks::<BLOCK>();
            let (bytes, bytes_rest) = outliers.split_at_mut(blocks.len() * 2 * BLOCK);
            for (features, bytes) in blocks.iter().zip(bytes.as_chunks_mut::<{ 2 * BLOCK }>().0) {
                let mut gathered = [T::from_f32(0.0); BLOCK];
                for (x, &feature) in gathered.iter_mut().zip(features) {
                    *x = values[feature as usize];
                }
                let x = load(&gathered);
                if any_magnitude_above(&x, MAX_BF16) {
                    stats += scalar::paper_encode_outliers(features, values, bytes);
                    continue;
                }
                let mut nearest = [bf16::ZERO; BLOCK];
                store_rounded(&x, &mut nearest);
                for (bytes, nearest) in bytes.as_chunks_mut().0.iter_mut().zip(nearest) {
                    *bytes = nearest.to_le_bytes();
                }
            }
            stats += scalar::paper_encode_outliers(rest, values, bytes_rest);
            stats.clipped += scalar::paper_clipped_dead(table, values);
            stats
        }

        /// Encodes all features at or beyond E - k, and moves the codes of those that are no outliers.
        #[inline]
        #[target_feature(enable = $features)]
        fn paper_encode_displaced<T: Element>(table: &PaperRow<'_>, values: &[T], plane: &mut [u8]) -> EncodeStats {
            let slots = table.slots();
            let mut stats = EncodeStats::default();
            let mut moved = 0;
            let mut codes = [0; 4 * BLOCK_BYTES];
            let at_once = 2 * codes.len();
            let parts = values[slots..]
                .chunks(at_once)
                .zip(table.inv_steps[slots..].chunks(at_once));
            for (at, (values, inv_steps)) in parts.enumerate() {
                let codes = &mut codes[..scalar::plane_len(values.len())];
                stats += paper_encode_plane(values, inv_steps, codes);
                moved += scalar::paper_place_displaced(table, moved, slots + at * at_once, codes, plane);
            }
            stats
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn paper_encode_plane<T: Element>(values: &[T], inv_steps: &[f32], plane: &mut [u8]) -> EncodeStats {
            let (values, rest) = values.as_chunks::<BLOCK>();
            let (inv_steps, inv_rest) = inv_steps.as_chunks::<BLOCK>();
            let (plane, plane_rest) = plane.split_at_mut(values.len() * BLOCK_BYTES);

            let mut stats = EncodeStats::default();
            let mut clipped = Counter::default();
            for ((values, inv_steps), codes) in values.iter().zip(inv_steps).zip(plane.as_chunks_mut().0) {
                fetch_ahead(values);
                let x = load(values);
                if any_magnitude_above(&x, MAX_FINITE) {
                    stats += scalar::paper_encode_plane(values, inv_steps, codes);
                    continue;
                }
                let positions = clipped_positions(&x, &load(inv_steps), &mut clipped);
                *codes = pack(
                    &positions,
                    scalar::PAPER_LOWEST as i8,
                    scalar::PAPER_HIGHEST as i8,
                );
            }
            stats.clipped += total(clipped);
            stats += scalar::paper_encode_plane(rest, inv_rest, plane_rest);
            stats
        }

        /// ONTO_ZERO: as if `sum` were zeros.
        #[target_feature(enable = $features)]
        fn paper_decode_row<const ONTO_ZERO: bool>(
            table: &PaperRow<'_>,
            row: &[u8],
            sum: &mut [f32],
        ) -> Result<(), BadWord> {
            let slots = table.slots();
            let (plane, outliers) = row.split_at(scalar::plane_len(slots));
            let (slotted, rest) = sum.split_at_mut(slots);
            paper_decode_plane::<ONTO_ZERO>(plane, &table.steps[..slots], slotted);
            if ONTO_ZERO {
                rest.fill(0.0);
            }
            scalar::paper_unpatch_row(table, plane, outliers, sum)
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn paper_decode_plane<const ONTO_ZERO: bool>(plane: &[u8], steps: &[f32], sum: &mut [f32]) {
            let (steps, steps_rest) = steps.as_chunks::<BLOCK>();
            let (sum, sum_rest) = sum.as_chunks_mut::<BLOCK>();
            let (plane, plane_rest) = plane.split_at(steps.len() * BLOCK_BYTES);
            for ((bytes, steps), sum) in plane.as_chunks::<BLOCK_BYTES>().0.iter().zip(steps).zip(sum) {
                accumulate::<ONTO_ZERO>(&codes(bytes), &load(steps), sum);
            }
            if ONTO_ZERO {
                sum_rest.fill(0.0);
            }
            scalar::accumulate_plane(plane_rest, steps_rest, sum_rest);
        }

        // ---- dynamic: groups whose codes take CODES bytes ----

        #[inline]
        #[target_feature(enable = $features)]
        fn dynamic_encode_row<T: Element, const CODES: usize>(
            width: Width,
            values: &[T],
            row: &mut [u8],
        ) -> EncodeStats {
            let (codes, scales) = row.split_at_mut(width.codes_len(values.len()));
            let (groups, rest) = values.as_chunks::<BLOCK>();
            let (codes, codes_rest) = codes.split_at_mut(groups.len() * CODES);
            let (scales, scales_rest) = scales.split_at_mut(groups.len() * 2);

            let mut stats = EncodeStats::default();
            let groups = groups.chunks(AT_ONCE);
            let outputs = codes.as_chunks_mut::<CODES>().0.chunks_mut(AT_ONCE);
            let scales = scales.as_chunks_mut::<2>().0.chunks_mut(AT_ONCE);
            for (values, (codes, scales)) in groups.zip(outputs.zip(scales)) {
                dynamic_encode_groups(width, values, codes, scales, &mut stats);
            }
            if let [scale] = scales_rest.as_chunks_mut().0 {
                *scale = scalar::dynamic_encode_group(width, rest, codes_rest, &mut stats).to_le_bytes();
            }
            stats
        }

        /// Up to `AT_ONCE` groups: their scales take as long as one would, and no group waits for the one before it.
        #[inline]
        #[target_feature(enable = $features)]
        fn dynamic_encode_groups<T: Element, const CODES: usize>(
            width: Width,
            values: &[[T; BLOCK]],
            codes: &mut [[u8; CODES]],
            scales: &mut [[u8; 2]],
            stats: &mut EncodeStats,
        ) {
            let mut fours = [[0_u32; 4]; AT_ONCE];
            for (fours, values) in fours.iter_mut().zip(values) {
                fetch_ahead(values);
                *fours = largest_rotated(&load(values));
            }
            // Loops and not `map`, which took a call and eight divisions for the reciprocals.
            let mut extremes = [0_u32; AT_ONCE];
            for (extreme, [a, b, c, d]) in extremes.iter_mut().zip(fours) {
                *extreme = a.max(b).max(c.max(d));
            }
            let (mut sent, mut inv_scales) = ([bf16::ZERO; AT_ONCE], [0.0; AT_ONCE]);
            for ((sent, inv_scale), extreme) in sent.iter_mut().zip(&mut inv_scales).zip(extremes) {
                // Rotated bits order by magnitude, then the negative above the positive: a tie takes the negative one, as
                // specified.
                *sent = width.scale(f32::from_bits(extreme.rotate_right(1)));
                *inv_scale = scalar::reciprocal(*sent);
            }
            let outputs = codes.iter_mut().zip(scales);
            for (at, (values, (codes, scale))) in values.iter().zip(outputs).enumerate() {
                // `scalar::dynamic_input` would change a value.
                if extremes[at] >> 1 > MAX_BF16 {
                    *scale = scalar::dynamic_encode_group(width, values, codes, stats).to_le_bytes();
                    continue;
                }
                let positions = positions(&load(values), &splat(inv_scales[at]));
                match width {
                    Width::Four => {
                        codes.copy_from_slice(&pack(&positions, width.lowest() as i8, width.highest() as i8))
                    }
                    Width::Eight => codes.copy_from_slice(&narrow(&positions)),
                }
                *scale = sent[at].to_le_bytes();
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn dynamic_decode_row<const CODES: usize, const ONTO_ZERO: bool>(
            width: Width,
            row: &[u8],
            sum: &mut [f32],
        ) -> Result<(), BadWord> {
            let (plane, scales) = row.split_at(width.codes_len(sum.len()));
            let (groups, rest) = sum.as_chunks_mut::<BLOCK>();
            let (plane, plane_rest) = plane.split_at(groups.len() * CODES);
            let count = groups.len();
            let (scales, scales_rest) = scales.as_chunks().0.split_at(count);
            let inputs = plane.as_chunks::<CODES>().0.iter().zip(scales);
            for (group, (sum, (bytes, scale))) in groups.iter_mut().zip(inputs).enumerate() {
                accumulate::<ONTO_ZERO>(&codes(bytes), &splat(width.received_scale(*scale, group)?), sum);
            }
            if ONTO_ZERO {
                rest.fill(0.0);
            }
            if let [scale] = scales_rest {
                scalar::dynamic_decode_group(width, width.received_scale(*scale, count)?, plane_rest, rest);
            }
            Ok(())
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn dynamic_decode_rounded_row<T: Element, const CODES: usize>(
            width: Width,
            row: &[u8],
            values: &mut [T],
        ) -> Result<(), BadWord> {
            let (plane, scales) = row.split_at(width.codes_len(values.len()));
            let (groups, rest) = values.as_chunks_mut::<BLOCK>();
            let (plane, plane_rest) = plane.split_at(groups.len() * CODES);
            let count = groups.len();
            let (scales, scales_rest) = scales.as_chunks().0.split_at(count);
            let inputs = plane.as_chunks::<CODES>().0.iter().zip(scales);
            for (group, (values, (bytes, scale))) in groups.iter_mut().zip(inputs).enumerate() {
                fetch_ahead(values);
                let scale = splat(width.received_scale(*scale, group)?);
                store_rounded(&products(&codes(bytes), &scale), values);
            }
            if let [scale] = scales_rest {
                let scale = width.received_scale(*scale, count)?;
                scalar::dynamic_decode_rounded_group(width, scale, plane_rest, rest);
            }
            Ok(())
        }

        // ---- conversions ----

        #[inline]
        #[target_feature(enable = $features)]
        fn widen<T: Element>(values: &[T], wide: &mut [f32]) {
            let (blocks, rest) = values.as_chunks::<BLOCK>();
            let (wide_blocks, wide_rest) = wide.as_chunks_mut::<BLOCK>();
            for (wide, block) in wide_blocks.iter_mut().zip(blocks) {
                store(&load(block), wide);
            }
            for (wide, x) in wide_rest.iter_mut().zip(rest) {
                *wide = x.to_f32();
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        fn round<T: Element>(values: &[f32], rounded: &mut [T]) {
            let (blocks, rest) = values.as_chunks::<BLOCK>();
            let (rounded_blocks, rounded_rest) = rounded.as_chunks_mut::<BLOCK>();
            for (rounded, block) in rounded_blocks.iter_mut().zip(blocks) {
                fetch_ahead(rounded);
                store_rounded(&load(block), rounded);
            }
            scalar::round(rest, rounded_rest);
        }

        // ---- loops of the specification, compiled for these features ----

        #[target_feature(enable = $features)]
        fn gain(values: &[f32]) -> bf16 {
            row::gain(values)
        }

        #[target_feature(enable = $features)]
        fn locate(layout: &layout::Layout, x: &[f32], inv_gain: f32, codes: &mut [i32], places: &mut [i32]) {
            layout::locate(layout, x, inv_gain, codes, places)
        }
    };
}

pub(super) use rows;
