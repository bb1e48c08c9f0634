//! tests.

pub mod cluster;
pub mod demo;
pub mod faults;
pub mod sim;
pub mod tidy;
