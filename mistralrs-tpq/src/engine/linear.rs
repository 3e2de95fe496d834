//! The engine's linear layers on the processor, while they have few rows.

use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};
use half::f16;

use crate::codec::Dtype;
use crate::linear::{product, Kernel, Weight, MAX_ROWS};

/// `x wᵀ` of `x` `[.., inputs]` and `w` `[outputs, inputs]`; `None` where candle computes it: more rows than [`MAX_ROWS`], another dtype
/// than F32 and F16, views, a processor without the instructions.
pub(super) fn cpu_product(x: &Tensor, w: &Tensor) -> Result<Option<Tensor>> {
    let (Some(&inputs), &[_, inputs_of_w]) = (x.dims().last(), w.dims()) else {
        return Ok(None);
    };
    let dtype = match x.dtype() {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        _ => return Ok(None),
    };
    let fits = inputs == inputs_of_w && inputs > 0 && x.elem_count() <= MAX_ROWS * inputs;
    let plain = x.dtype() == w.dtype() && x.is_contiguous() && w.is_contiguous() && w.device().is_cpu();
    match Kernel::best(dtype).filter(|_| fits && plain) {
        Some(kernel) => x.apply_op2_no_bwd(w, &Product(kernel)).map(Some),
        None => Ok(None),
    }
}

struct Product(Kernel);

impl Product {
    fn of<T: Weight>(&self, x: &[T], x_layout: &Layout, w: &[T], w_layout: &Layout) -> Result<Vec<T>> {
        let (Some((x_start, x_end)), Some((w_start, w_end))) =
            (x_layout.contiguous_offsets(), w_layout.contiguous_offsets())
        else {
            candle_core::bail!("the operands of a product must be contiguous");
        };
        let inputs = w_layout.dims()[1];
        Ok(product(self.0, &x[x_start..x_end], &w[w_start..w_end], inputs))
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "tpq-linear"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        w: &CpuStorage,
        w_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let product = match (x, w) {
            (CpuStorage::F32(x), CpuStorage::F32(w)) => CpuStorage::F32(self.of::<f32>(x, x_layout, w, w_layout)?),
            (CpuStorage::F16(x), CpuStorage::F16(w)) => CpuStorage::F16(self.of::<f16>(x, x_layout, w, w_layout)?),
            _ => candle_core::bail!("a product is of two f32 or two f16 tensors"),
        };
        let mut dims = x_layout.dims().to_vec();
        if let (Some(last), [outputs, _]) = (dims.last_mut(), w_layout.dims()) {
            *last = *outputs;
        }
        Ok((product, Shape::from(dims)))
    }
}
