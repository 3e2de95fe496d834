//! Rows of `rd`, in blocks of 32 slots: the same for every instruction set, over the lanes that its module has.

/// Methods of `$proof`, which only a processor with `$features` has, and their functions. The module in which this is
/// expanded has the lanes: `load`, `store`, `gather`, `add_gathered`, `splat`, `scaled`, `codes`, `levels`, `times`, `pack` and
/// `unpack`.
macro_rules! rd_rows {
    ($proof:ident, $features:literal) => {
        impl $proof {
            pub fn rd_encode_row<T: Element>(
                self,
                layout: &Layout,
                values: &[T],
                scratch: &mut Scratch,
                row: &mut [u8],
            ) -> EncodeStats {
                // SAFETY: `self` exists only where `new` has found the features.
                unsafe { encode_row(layout, values, scratch, row) }
            }

            pub fn rd_decode_row(
                self,
                layout: &Layout,
                row: &[u8],
                scratch: &mut Scratch,
                sum: &mut [f32],
            ) -> Result<(), BadWord> {
                // SAFETY: `self` exists only where `new` has found the features.
                unsafe { decode_row(layout, row, scratch, sum) }
            }
        }

        // ---- encode ----

        #[target_feature(enable = $features)]
        fn encode_row<T: Element>(layout: &Layout, values: &[T], scratch: &mut Scratch, row: &mut [u8]) -> EncodeStats {
            assert_eq!(values.len(), layout.features(), "one row");
            scratch.prepare(layout);
            let Scratch {
                values: wide, parts, ..
            } = scratch;
            let x = widened(values, wide);
            let energy = energy(x, |x| x);
            if !energy.is_finite() {
                return row::encode(layout, values, row);
            }
            let gain = gain_of(energy, x.len());
            let inv_gain = splat(reciprocal(gain));
            row[..GAIN_LEN].copy_from_slice(&gain.to_le_bytes());
            let planes = layout.planes();
            let (words, rest) = row[planes.words..].split_at_mut(planes.bytes - planes.words);
            let bytes = &mut rest[..planes.nibbles - planes.bytes];

            let mut clipped = Counter::default();
            let mut stats = EncodeStats::default();
            for class in layout.classes() {
                match class.bits {
                    16 => stats.clipped += put_words(&class, |feature| x[feature], words),
                    8 => encode_class::<8>(&class, x, &inv_gain, bytes, parts, &mut clipped),
                    6 => encode_class::<6>(&class, x, &inv_gain, bytes, parts, &mut clipped),
                    5 => encode_class::<5>(&class, x, &inv_gain, bytes, parts, &mut clipped),
                    4 => encode_class::<4>(&class, x, &inv_gain, bytes, parts, &mut clipped),
                    3 => encode_class::<3>(&class, x, &inv_gain, bytes, parts, &mut clipped),
                    2 => encode_class::<2>(&class, x, &inv_gain, bytes, parts, &mut clipped),
                    _ => encode_class::<1>(&class, x, &inv_gain, bytes, parts, &mut clipped),
                }
            }
            stats.clipped += total(clipped);
            pack_planes(parts, &planes, row);
            stats
        }

        /// The row in f32: itself, or a copy that stays in the first-level cache. Single values of 16 bits cannot be gathered.
        #[inline]
        #[target_feature(enable = $features)]
        fn widened<'a, T: Element>(values: &'a [T], wide: &'a mut [f32]) -> &'a [f32] {
            if let Some(values) = T::as_f32(values) {
                return values;
            }
            let wide = &mut wide[..values.len()];
            widen(values, wide);
            wide
        }

        /// Codes of a class below 16 bits. `x` has a value for each feature, all finite.
        #[inline]
        #[target_feature(enable = $features)]
        fn encode_class<const BITS: u8>(
            class: &Class<'_>,
            x: &[f32],
            inv_gain: &Lanes,
            bytes: &mut [u8],
            parts: &mut Parts,
            clipped: &mut Counter,
        ) {
            let clip = codebook::clip(BITS);
            for (at, (order, inv_steps)) in class.order.iter().zip(class.inv_steps).enumerate() {
                // SAFETY: a layout has only features below the length of its rows, which is that of `x`.
                let gathered = unsafe { gather(x, order) };
                let codes = codes::<BITS>(&scaled(&gathered, inv_gain, &load(inv_steps)), clip, clipped);
                let used = class.used(at);
                if BITS == 8 {
                    bytes[at * BLOCK..][..used].copy_from_slice(&codes[..used]);
                } else {
                    parts.put::<BITS>(&codes, used);
                }
            }
        }

        /// All parts that were put, and zeros to the end of the row.
        #[inline]
        #[target_feature(enable = $features)]
        pub fn pack_planes(parts: &mut Parts, planes: &Planes, row: &mut [u8]) {
            pack_plane::<16>(parts.nibbles.filled(), &mut row[planes.nibbles..planes.crumbs]);
            pack_plane::<8>(parts.crumbs.filled(), &mut row[planes.crumbs..planes.singles]);
            pack_plane::<4>(parts.singles.filled(), &mut row[planes.singles..planes.end]);
            row[planes.end..].fill(0);
        }

        /// Blocks of parts into a plane, `BYTES` bytes each.
        #[inline]
        #[target_feature(enable = $features)]
        fn pack_plane<const BYTES: usize>(parts: &[[u8; BLOCK]], plane: &mut [u8]) {
            let (whole, rest) = plane.as_chunks_mut::<BYTES>();
            for (bytes, parts) in whole.iter_mut().zip(parts) {
                pack(parts, bytes);
            }
            if let (false, Some(parts)) = (rest.is_empty(), parts.last()) {
                let mut bytes = [0; BYTES];
                pack(parts, &mut bytes);
                rest.copy_from_slice(&bytes[..rest.len()]);
            }
        }

        // ---- decode ----

        #[target_feature(enable = $features)]
        fn decode_row(layout: &Layout, row: &[u8], scratch: &mut Scratch, sum: &mut [f32]) -> Result<(), BadWord> {
            assert_eq!(sum.len(), layout.features(), "one row");
            let gain = splat(received_gain(row)?);
            scratch.prepare(layout);
            let Scratch {
                values: levels,
                parts,
                ..
            } = scratch;
            let planes = layout.planes();
            let bytes = &row[planes.bytes..planes.nibbles];
            unpack_planes(row, &planes, layout, parts);

            let (by_slot, others) = levels.split_at_mut(layout.absent());
            // Added to a feature of 0 bits: whatever the sum is, it stays.
            others[0] = -0.0;
            let mut rest = by_slot.as_chunks_mut::<BLOCK>().0;
            for class in layout.classes() {
                let (levels, others) = rest.split_at_mut(class.order.len());
                rest = others;
                match class.bits {
                    16 => {
                        let mut levels = levels.as_flattened_mut().iter_mut();
                        take_words(&class, &row[planes.words..], |_, x| {
                            levels.next().into_iter().for_each(|level| *level = x)
                        })?
                    }
                    8 => decode_class::<8>(&class, &gain, bytes, parts, levels),
                    6 => decode_class::<6>(&class, &gain, bytes, parts, levels),
                    5 => decode_class::<5>(&class, &gain, bytes, parts, levels),
                    4 => decode_class::<4>(&class, &gain, bytes, parts, levels),
                    3 => decode_class::<3>(&class, &gain, bytes, parts, levels),
                    2 => decode_class::<2>(&class, &gain, bytes, parts, levels),
                    _ => decode_class::<1>(&class, &gain, bytes, parts, levels),
                }
            }
            let levels = &levels[..=layout.absent()];
            let (places, places_rest) = layout.places().as_chunks::<BLOCK>();
            let (sums, sums_rest) = sum.as_chunks_mut::<BLOCK>();
            for (sum, places) in sums.iter_mut().zip(places) {
                // SAFETY: a layout has no place beyond `absent`, which `levels` has.
                unsafe { add_gathered(levels, places, sum) };
            }
            for (sum, place) in sums_rest.iter_mut().zip(places_rest) {
                *sum += levels[*place as usize];
            }
            Ok(())
        }

        /// What the codes of a class below 16 bits add, by slot.
        #[inline]
        #[target_feature(enable = $features)]
        fn decode_class<const BITS: u8>(
            class: &Class<'_>,
            gain: &Lanes,
            bytes: &[u8],
            parts: &mut Parts,
            added: &mut [[f32; BLOCK]],
        ) {
            for (at, (added, steps)) in added.iter_mut().zip(class.steps).enumerate() {
                let used = class.used(at);
                let codes = if BITS == 8 {
                    let mut codes = [0; BLOCK];
                    codes[..used].copy_from_slice(&bytes[at * BLOCK..][..used]);
                    codes
                } else {
                    parts.take::<BITS>(used)
                };
                store(&times(&levels::<BITS>(&codes), &times(&load(steps), gain)), added);
            }
        }

        /// The reverse of [`pack_planes`].
        #[inline]
        #[target_feature(enable = $features)]
        pub fn unpack_planes(row: &[u8], planes: &Planes, layout: &Layout, parts: &mut Parts) {
            let slots = layout.absent();
            unpack_plane::<16>(&row[planes.nibbles..planes.crumbs], parts.nibbles.room(slots));
            unpack_plane::<8>(&row[planes.crumbs..planes.singles], parts.crumbs.room(slots));
            unpack_plane::<4>(&row[planes.singles..planes.end], parts.singles.room(slots));
        }

        /// The reverse of [`pack_plane`].
        #[inline]
        #[target_feature(enable = $features)]
        fn unpack_plane<const BYTES: usize>(plane: &[u8], parts: &mut [[u8; BLOCK]]) {
            let (whole, rest) = plane.as_chunks::<BYTES>();
            for (bytes, parts) in whole.iter().zip(&mut *parts) {
                *parts = unpack(bytes);
            }
            if let (false, Some(parts)) = (rest.is_empty(), parts.get_mut(whole.len())) {
                let mut bytes = [0; BYTES];
                bytes[..rest.len()].copy_from_slice(rest);
                *parts = unpack(&bytes);
            }
        }
    };
}

pub(super) use rd_rows;
