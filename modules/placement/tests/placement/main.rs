//! The module against a model of the two buckets: what ends in `desired` for what happens to the objects.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic is how a test fails, in its helpers too"
)]

mod answers;
mod chaos;
mod down;
mod selected;
mod up;
mod world;
