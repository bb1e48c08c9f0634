//! tests.

pub mod cluster;
pub mod sim;
pub mod tidy;
