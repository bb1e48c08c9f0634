//! The API judged from outside: by real kubectl, by plain HTTPS, and on a real hub's store.

// A test fails by a panic, also in its helpers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod channel;
mod http;
mod hub;
mod kubectl;
mod support;
