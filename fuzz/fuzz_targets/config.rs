#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| mistralrs_tpq_fuzz::config(data));
