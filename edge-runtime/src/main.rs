//! edge-runtime.
fn main() {}
