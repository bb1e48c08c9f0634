//! sensor.
fn main() {}
