//! tests.

pub mod sim;
pub mod tidy;
