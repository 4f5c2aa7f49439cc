//! All tests from outside, one module a subject: one program, because each would be compiled and linked with everything anew.

mod launchd;
mod tunnel;
mod whole;
