//! tests.

pub mod cluster;
pub mod demo;
pub mod sim;
pub mod tidy;
