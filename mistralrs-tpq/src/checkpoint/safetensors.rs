//! Headers of safetensors files whose data is not in memory.
//!
//! The `safetensors` crate writes a tensor from one slice: 2.4 GB for Gemma 2's embedding in F32. Only its header is made here;
//! the tests read the files with the crate.

use std::collections::BTreeMap;

use serde::Serialize;

use super::layout::TensorSpec;
use crate::codec::Dtype;

#[derive(Serialize)]
#[serde(untagged)]
enum Entry<'a> {
    Metadata {
        format: &'static str,
    },
    Tensor {
        dtype: &'static str,
        shape: &'a [usize],
        data_offsets: [u64; 2],
    },
}

/// Length prefix and header of a file that holds `tensors` in this order. The data that follows is aligned to 8 bytes.
pub(super) fn header(tensors: &[TensorSpec], dtype: Dtype) -> Vec<u8> {
    let mut entries = BTreeMap::from([("__metadata__", Entry::Metadata { format: "pt" })]);
    let mut offset = 0;
    for tensor in tensors {
        let end = offset + tensor.elements() * dtype.size() as u64;
        let entry = Entry::Tensor {
            dtype: name(dtype),
            shape: &tensor.shape,
            data_offsets: [offset, end],
        };
        entries.insert(&tensor.name, entry);
        offset = end;
    }
    let mut json = serde_json::to_vec(&entries).unwrap_or_else(|_| unreachable!("names and numbers serialize"));
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json);
    header
}

const fn name(dtype: Dtype) -> &'static str {
    match dtype {
        Dtype::F32 => "F32",
        Dtype::Bf16 => "BF16",
        Dtype::F16 => "F16",
    }
}
