//! See `genops_protocols::fuzzing::event_stream` for the laws.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| genops_protocols::fuzzing::event_stream(data));
