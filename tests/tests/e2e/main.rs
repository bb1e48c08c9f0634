//! End to end: everything that must hold, on a real hub, real nodes, `nats-server`, containerd and `kubectl`.
//!
//! One file a subject. Each test has a cluster of its own (see `tests::cluster`), so they run side by side; several
//! behaviours share a cluster where one leads to the next. Judges stand outside: `ctr` says what runs, `kubectl` what the
//! hub believes, the sensor's own synced list what must have arrived.
//!
//! One of them: `cargo test -p tests --test e2e outage`. `EDGEWIRE_KEEP=1` leaves a failed cluster up for a look.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

mod attack;
mod authority;
mod backup;
mod bad;
mod check;
mod clock;
mod delete;
mod disk;
mod door;
mod down;
mod hub;
mod identity;
mod kill;
mod kubectl;
mod loss;
mod mqtt;
mod outage;
mod programs;
mod restore;
mod router;
mod slow;
mod support;
mod tail;
mod transport;
mod upgrade;
mod uplink;
mod web;
mod workload;
