//! What goes wrong, and how it is put right again.

use super::hub;
use super::node;
use super::server::{self, HUB};
use super::world::{EPOCH_MS, Link, MS, S, World};
use bytes::Bytes;
use schemas::envelope::Headers;
use schemas::subject;

use super::jetstream::New;

const HOUR_MS: i64 = 3_600_000;

/// Something that goes wrong. Whatever it stops is started again by itself, some time later.
pub fn strike(w: &mut World, hub_may_be_replaced: bool) {
    let edges = w.edges.len() as u64;
    let edge = usize::try_from(w.random.below(edges)).unwrap_or(0);
    let pause =
        if w.random.per_mille(300) { w.random.between(S, 20 * S) } else { w.random.between(50 * MS, 3 * S) };
    match w.random.below(108) {
        0..18 => {
            w.tell(|| format!("link {edge} is cut for {} ms", pause / MS));
            w.edges[edge].link.cut = true;
            w.after(pause, move |w| w.edges[edge].link.cut = false);
        }
        18..28 => {
            let link = Link {
                cut: w.edges[edge].link.cut,
                loss: w.random.below(150),
                twice: w.random.below(150),
                late: w.random.below(80),
            };
            w.edges[edge].link = link;
        }
        28..38 => {
            node::stop(w, edge);
            w.after(pause, move |w| node::start(w, edge));
        }
        38..44 => {
            let sync = w.random.per_mille(500);
            node::restart_module(w, edge, sync);
        }
        44..52 => {
            server::stop(w, edge + 1);
            w.after(pause, move |w| server::start(w, edge + 1));
        }
        52..57 => {
            node::power_off(w, edge);
            w.after(pause, move |w| node::power_on(w, edge));
        }
        57..60 => lose_local(w, edge, pause),
        60..61 => {
            node::lose_disk(w, edge, pause);
            // A machine that is set up anew has no time before it has a network.
            if w.random.per_mille(500) {
                set_clock_to(w, edge + 1, -EPOCH_MS);
            }
        }
        61..65 => {
            node::containerd(w, edge, false);
            w.after(pause, move |w| node::containerd(w, edge, true));
        }
        65..70 => node::crash_container(w, edge),
        70..78 => {
            let module = w.random.below(hub::MODULES);
            hub::restart_module(w, module);
        }
        78..85 => {
            hub::stop(w);
            w.after(pause, hub::start);
        }
        85..90 => {
            server::stop(w, HUB);
            w.after(pause, |w| server::start(w, HUB));
        }
        90..92 => hub::back_up(w),
        92..93 => hub::lose_consumers(w),
        93..101 => {
            let at = usize::try_from(w.random.below(edges + 1)).unwrap_or(HUB);
            set_clock(w, at);
        }
        _ => {
            let replaced = hub_may_be_replaced && w.random.per_mille(600);
            hub::stop(w);
            server::lose_power(w, HUB);
            if replaced {
                let by_backup = w.random.per_mille(700);
                hub::replace_store(w, by_backup);
            }
            w.after(pause, |w| {
                server::start(w, HUB);
                hub::start(w);
            });
        }
    }
}

/// A machine's clock leaps: as one without a battery does, as summer time does on the wrong kind of clock, far ahead, or right.
fn set_clock(w: &mut World, at: usize) {
    let off_ms = match w.random.below(5) {
        0 => -EPOCH_MS,
        1 => -HOUR_MS,
        2 => 5 * 365 * 24 * HOUR_MS,
        3 => 30 * 1_000,
        _ => 0,
    };
    set_clock_to(w, at, off_ms);
}

fn set_clock_to(w: &mut World, at: usize, off_ms: i64) {
    w.servers[at].clock_off_ms = off_ms;
    if at == HUB {
        w.checks.downs.hub_clock_set();
    }
    let shows = w.now(at);
    w.tell(|| format!("the clock of machine {at} is set to {}", shows.rfc3339()));
}

/// The node's store loses its bucket, or some of it, while its server is down, and mostly its runtime too.
fn lose_local(w: &mut World, edge: usize, pause: u64) {
    let all = w.random.per_mille(500);
    let both = w.random.per_mille(600);
    w.tell(|| format!("node {edge} loses {} of its bucket", if all { "all" } else { "some" }));
    if both {
        node::stop(w, edge);
    }
    server::stop(w, edge + 1);
    let name = subject::bucket_stream(subject::BUCKET_LOCAL);
    if all {
        w.servers[edge + 1].server.remove(&name);
    } else {
        let last = w.servers[edge + 1].server.stream(&name).map_or(0, |stream| stream.last_sequence());
        let until = w.random.below(last + 1);
        if let Some(stream) = w.servers[edge + 1].server.stream_mut(&name) {
            stream.purge(">", until);
        }
    }
    super::checks::lost_local(w, edge);
    w.after(pause, move |w| node::power_on(w, edge));
}

/// A workload on a node says something durably.
pub fn say(w: &mut World) {
    let edges = w.edges.len() as u64;
    let edge = usize::try_from(w.random.below(edges)).unwrap_or(0);
    for _ in 0..w.random.between(1, 6) {
        let delay = w.near_us();
        w.after(delay, move |w| {
            if w.servers[edge + 1].up {
                let new = New {
                    subject: "up.default.temp".to_owned(),
                    headers: Headers::new(),
                    payload: Bytes::from_static(&[7; 64]),
                };
                let _ = server::store(w, edge + 1, new, None);
            }
        });
    }
}

/// Somebody at the hub sends to nodes.
pub fn send(w: &mut World) {
    let edges = w.edges.len() as u64;
    let edge = usize::try_from(w.random.below(edges)).unwrap_or(0);
    for _ in 0..w.random.between(1, 4) {
        let delay = w.near_us();
        w.after(delay, move |w| super::downlink::send(w, edge));
    }
}

/// Everything runs, and every link is good.
pub fn heal(w: &mut World) {
    w.tell(|| "everything heals".to_owned());
    // A clock that is wrong must do no harm, and one that is set right must do none either.
    if w.random.per_mille(500) {
        w.servers.iter_mut().for_each(|place| place.clock_off_ms = 0);
    }
    server::start(w, HUB);
    hub::start(w);
    for edge in 0..w.edges.len() {
        w.edges[edge].link = Link::default();
        node::containerd(w, edge, true);
        node::power_on(w, edge);
    }
}
