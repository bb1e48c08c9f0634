//! tests.

pub mod cluster;
pub mod demo;
pub mod faults;
pub mod fuzz;
pub mod quiet;
pub mod sim;
pub mod stop;
pub mod tidy;
