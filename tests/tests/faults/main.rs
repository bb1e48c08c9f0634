//! Six pairs of the fault suite, and the proof that its power cut loses what was not synced. All pairs: `make faults`.
//!
//! See `tests::faults`. One of them: `cargo test -p tests --test faults power_of_the_node -- --nocapture`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // a test fails by panicking

mod power;

use tests::faults;

async fn run(pair: &str) -> anyhow::Result<()> {
    faults::run(pair.parse()?).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hub_does_not_hear_the_node_and_its_server_falls() -> anyhow::Result<()> {
    run("cut-up/hub-server").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_link_flaps_and_the_nodes_server_falls() -> anyhow::Result<()> {
    run("flap/leaf-server").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_hubs_process_is_stopped_and_goes_on() -> anyhow::Result<()> {
    run("stop/hub-process").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_nodes_agent_falls_on_a_slow_link() -> anyhow::Result<()> {
    run("slow/edge-process").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_power_of_the_node_fails() -> anyhow::Result<()> {
    run("power/leaf-server").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_power_of_the_hub_fails() -> anyhow::Result<()> {
    run("power/hub-server").await
}
