//! Which GPU each rank has.

use crate::cli::CliError;

/// The GPUs that CUDA's driver shows a process, in the process's order.
pub(super) const VARIABLE: &str = "CUDA_VISIBLE_DEVICES";

/// For each rank what its [`VARIABLE`] says, or nothing at all: then all see what `tpq` sees.
///
/// # Errors
/// `wanted` that is not one for each rank, or names what is no GPU.
pub(super) fn of_ranks(wanted: &[String], ranks: usize) -> Result<Vec<String>, CliError> {
    if wanted.is_empty() {
        return Ok(one_each(visible(), ranks));
    }
    check(wanted, ranks)?;
    Ok(wanted.to_vec())
}

/// One for each rank, or none at all where there are fewer GPUs. A single process may want all of them.
fn one_each(mut visible: Vec<String>, ranks: usize) -> Vec<String> {
    if ranks == 1 || visible.len() < ranks {
        return Vec::new();
    }
    visible.truncate(ranks);
    visible
}

#[cfg(feature = "cuda")]
fn visible() -> Vec<String> {
    let count = crate::cuda::device_count();
    match std::env::var(VARIABLE) {
        Ok(list) => list.split(',').map(|gpu| gpu.trim().to_owned()).take(count).collect(),
        Err(_) => (0..count).map(|gpu| gpu.to_string()).collect(),
    }
}

#[cfg(not(feature = "cuda"))]
fn visible() -> Vec<String> {
    Vec::new()
}

/// Two ranks may share one.
fn check(gpus: &[String], ranks: usize) -> Result<(), CliError> {
    if gpus.len() != ranks {
        return Err(CliError::Usage(format!(
            "--gpus names {} for {ranks} ranks: name one for each",
            gpus.len()
        )));
    }
    // The driver ends its list at the first name it does not know and says nothing.
    let number = |gpu: &str| !gpu.is_empty() && gpu.bytes().all(|byte| byte.is_ascii_digit());
    let known = |gpu: &str| number(gpu) || gpu.starts_with("GPU-") || gpu.starts_with("MIG-");
    match gpus.iter().find(|gpu| !known(gpu)) {
        Some(gpu) => Err(CliError::Usage(format!(
            "--gpus: {gpu:?} is no GPU: expected a number, or GPU-... or MIG-... as nvidia-smi -L prints them"
        ))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rank_has_a_gpu_of_its_own_where_there_are_enough() {
        let visible = |count: usize| (0..count).map(|gpu| gpu.to_string()).collect();
        assert_eq!(one_each(visible(4), 2), ["0", "1"]);
        assert_eq!(one_each(visible(2), 2), ["0", "1"]);
        assert!(one_each(visible(1), 2).is_empty());
        assert!(one_each(visible(0), 2).is_empty());
        assert!(one_each(visible(4), 1).is_empty());
    }
}
