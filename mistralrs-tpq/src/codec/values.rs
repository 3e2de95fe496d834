//! A partial sum as the engine hands it over: `[tokens, features]`, row-major, in one of three dtypes.

use half::{bf16, f16};

use super::scalar::nearest_bf16;

/// Element type of a partial sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Dtype {
    F32 = 0,
    Bf16 = 1,
    F16 = 2,
}

impl Dtype {
    /// Bytes of one element.
    pub const fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 | Self::F16 => 2,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }

    pub const fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            0 => Some(Self::F32),
            1 => Some(Self::Bf16),
            2 => Some(Self::F16),
            _ => None,
        }
    }
}

/// An element type, for kernels that convert lane by lane instead of copying the tensor.
pub trait Element: Copy {
    const DTYPE: Dtype;

    /// Exact: every BF16 and F16 is an f32.
    fn to_f32(self) -> f32;

    /// To nearest even.
    fn from_f32(x: f32) -> Self;

    /// The elements themselves, where they are f32.
    fn as_f32(_values: &[Self]) -> Option<&[f32]> {
        None
    }
}

impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn as_f32(values: &[Self]) -> Option<&[f32]> {
        Some(values)
    }
}

impl Element for bf16 {
    const DTYPE: Dtype = Dtype::Bf16;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        nearest_bf16(x)
    }
}

impl Element for f16 {
    const DTYPE: Dtype = Dtype::F16;

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }

    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        f16::from_f32(x)
    }
}

/// Borrowed elements of a partial sum.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
    F16(&'a [f16]),
}

/// Where a finished sum is written, in the dtype of the input.
#[derive(Debug)]
pub enum ValuesMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
    F16(&'a mut [f16]),
}

impl<'a> Values<'a> {
    pub const fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::Bf16(v) => v.len(),
            Self::F16(v) => v.len(),
        }
    }

    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub const fn dtype(&self) -> Dtype {
        match self {
            Self::F32(_) => Dtype::F32,
            Self::Bf16(_) => Dtype::Bf16,
            Self::F16(_) => Dtype::F16,
        }
    }

    /// Writes elements `start..start + row.len()` to `row`.
    ///
    /// # Panics
    /// As [`Values::slice`].
    pub fn to_f32(&self, start: usize, row: &mut [f32]) {
        fn convert<T: Element>(values: &[T], row: &mut [f32]) {
            row.iter_mut().zip(values).for_each(|(to, from)| *to = from.to_f32());
        }
        match self.slice(start, start + row.len()) {
            Self::F32(v) => row.copy_from_slice(v),
            Self::Bf16(v) => convert(v, row),
            Self::F16(v) => convert(v, row),
        }
    }

    /// One element's bits.
    ///
    /// # Panics
    /// As [`Values::slice`].
    pub fn bits(&self, at: usize) -> u32 {
        match self {
            Self::F32(v) => v[at].to_bits(),
            Self::Bf16(v) => u32::from(v[at].to_bits()),
            Self::F16(v) => u32::from(v[at].to_bits()),
        }
    }

    /// Elements `start..end`.
    ///
    /// # Panics
    /// When the range is out of bounds: a caller's bug, never a peer's or a user's input.
    pub fn slice(&self, start: usize, end: usize) -> Values<'a> {
        match self {
            Self::F32(v) => Self::F32(&v[start..end]),
            Self::Bf16(v) => Self::Bf16(&v[start..end]),
            Self::F16(v) => Self::F16(&v[start..end]),
        }
    }
}

impl ValuesMut<'_> {
    /// The same elements, borrowed for less long.
    pub fn reborrow(&mut self) -> ValuesMut<'_> {
        match self {
            Self::F32(v) => ValuesMut::F32(v),
            Self::Bf16(v) => ValuesMut::Bf16(v),
            Self::F16(v) => ValuesMut::F16(v),
        }
    }

    /// Elements `start..end`.
    ///
    /// # Panics
    /// As [`Values::slice`].
    pub fn slice(&mut self, start: usize, end: usize) -> ValuesMut<'_> {
        match self {
            Self::F32(v) => ValuesMut::F32(&mut v[start..end]),
            Self::Bf16(v) => ValuesMut::Bf16(&mut v[start..end]),
            Self::F16(v) => ValuesMut::F16(&mut v[start..end]),
        }
    }

    /// The same elements, to read.
    pub fn as_values(&self) -> Values<'_> {
        match self {
            Self::F32(v) => Values::F32(v),
            Self::Bf16(v) => Values::Bf16(v),
            Self::F16(v) => Values::F16(v),
        }
    }
}
