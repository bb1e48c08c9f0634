//! cloud-hub.
fn main() {}
