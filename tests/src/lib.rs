//! tests.

pub mod tidy;
