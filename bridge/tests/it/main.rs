//! All tests from outside, one module a subject: one program, because each would be compiled and linked with everything anew.

mod archive;
mod doctor_process;
mod export_process;
#[cfg(test)]
mod fault_support;
mod fuzz_inputs;
mod kinds;
mod manual_process;
mod process_crash;
mod read_chatdb;
mod read_process;
mod read_typedstream;
mod reading_faults;
