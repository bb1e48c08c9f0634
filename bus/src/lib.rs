//! The only crate that knows NATS: connections, servers, streams, buckets, and the runner of modules.
//!
//! A module is written against [`module::Module`]: inputs in, effects out, nothing else. The [`runner`] opens what its
//! [`flow`]s declare, feeds it, carries out its effects in the one order that loses nothing (persist, publish,
//! acknowledge), and starts it again when it falls.
//!
//! * [`module`] the trait, its inputs and effects: all that a module's author needs
//! * [`flow`] what a module may read and write: its documentation and its NATS permissions in one
//! * [`runner`] one module running; [`host`] all modules of a process
//! * [`provision`] the table of streams and buckets with their bounds
//! * [`store`] the typed object store over KV
//! * [`durable`] what a module keeps on disk, and the reports it still owes
//! * [`link`] an edge's side of the link to the hub: byte-bounded pulls, atomic batches with a cursor
//! * [`downlink`] messages from the hub to one node: each node's stream, and what waits on the node
//! * [`stream`] credit-bounded byte streams (logs, exec)
//! * [`queue`] stored messages taken one by one, by consumers that come and go; [`dead`] dead letters
//! * [`acknowledgement`] what a stream answers
//! * [`command`] asking a module on a node
//! * [`relay`] taking what MQTT clients said, for who carries it elsewhere
//! * [`audit`] the hub's audit streams
//! * [`guest`] connections in the name of who comes through another door
//! * [`tool`] what a tool at a prompt needs: listen, publish, ask
//! * [`program`] log and stop signal of the programs around a host
//! * [`proxy`] an HTTP proxy on the way to the hub
//! * [`connection`] connecting; [`server`] supervising a `nats-server`; [`identity`] keys and permissions

pub mod acknowledgement;
pub mod audit;
pub mod command;
pub mod connection;
pub mod dead;
pub mod downlink;
pub mod durable;
pub mod flow;
pub mod guest;
pub mod host;
pub mod identity;
pub mod link;
pub mod module;
pub mod pause;
pub mod program;
pub mod provision;
pub mod proxy;
pub mod queue;
pub mod relay;
pub mod runner;
pub mod server;
pub mod store;
pub mod stream;
pub mod tool;

/// What decoders are tried with: the file needs nothing but std, and stands with the tests of all crates.
#[cfg(test)]
#[path = "../../tests/src/fuzz.rs"]
mod fuzz;
