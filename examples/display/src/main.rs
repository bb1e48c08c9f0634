//! display.
fn main() {}
