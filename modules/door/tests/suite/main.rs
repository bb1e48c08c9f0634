//! The door on a real `nats-server` with accounts and users: what is said by HTTP is said in the user's own name.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a panic is how a test fails

mod bounds;
mod examples;
mod hear;
mod login;
mod say;
mod support;
