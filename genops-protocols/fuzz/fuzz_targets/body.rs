//! See `genops_protocols::fuzzing::body` for the laws.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| genops_protocols::fuzzing::body(data));
