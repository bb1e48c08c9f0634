//! The heart: keeps a node's state in step with the hub over a link that comes and goes.
//!
//! | direction | edge | hub |
//! |---|---|---|
//! | down | bucket `local`, the only thing that other edge modules watch | bucket `desired`, pulled through the node's consumer |
//! | down | stream DOWN (workloads' `down.`), with the node's cursor | a stream for each node (`to.<node>.>`), read by sequence |
//! | up | streams OUTBOX (reports, events) and UPLINK (workloads' `up.`) | streams UP and FROM, with a cursor for each lane |
//! | both | heartbeat: a request through the link, so its answer proves both ways | module `nodes` answers |
//!
//! [`down`], [`downlink`], [`up`], [`pace`], [`turns`], [`watchdog`], [`ways`], [`clock`] and [`disk`] decide; [`edge`] composes them into the
//! module that runs on a node, with the heartbeat; [`rim`] and [`housekeeping`] do what they want done; [`hub`] and
//! [`downlink::hub`] are the modules at the other end. Nothing here reads a clock except [`rim`].

pub mod clock;
pub mod disk;
pub mod down;
pub mod downlink;
pub mod edge;
pub mod facts;
pub mod housekeeping;
pub mod hub;
mod known;
pub mod pace;
pub mod rim;
pub mod turns;
pub mod up;
pub mod watchdog;
pub mod ways;
