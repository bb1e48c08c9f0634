//! A thermometer on an edge node: a small workload that shows what a container on Edgewire can rely on.
//!
//! Every `SENSOR_INTERVAL_MS` it makes reading `n` and sends it twice:
//!
//! | subject | what it shows |
//! |---|---|
//! | `app.<namespace>.temp` | live: whoever listens now gets it, on this node or another; at most once |
//! | `up.<namespace>.temp` | durable: stored on this node when it is acknowledged, and carried to the hub in order |
//!
//! A durable reading is sent again, under the same `Nats-Msg-Id`, until it is acknowledged; only then is its number
//! appended to `acked.log` and synced to disk. So that file is the sender's own list of what must arrive, written by
//! nobody but the sender, and what the hub received can be judged by it.
//!
//! | variable | default | |
//! |---|---|---|
//! | `NATS_URL` | set by Edgewire | `nats://user:password@address:port` |
//! | `NATS_INBOX_PREFIX` | set by Edgewire | where this container may receive replies |
//! | `EDGEWIRE_NAMESPACE` | `default` | the pod's namespace |
//! | `SENSOR_DATA` | `/data` | directory of `acked.log` and `series`; keep it on a volume |
//! | `SENSOR_INTERVAL_MS` | `100` | between two readings |
//! | `SENSOR_IN_FLIGHT` | `1` | durable readings sent before the first is acknowledged |
//!
//! With one in flight the order is strict. With more it is kept too, unless the server refuses one and takes the next.

mod acked;
mod config;
mod link;

use std::{process::ExitCode, time::Duration};

use async_nats::{Client, HeaderMap, Request, connection::State};
use futures::future::join_all;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    time::{MissedTickBehavior, interval, sleep},
};

use crate::{acked::Acked, config::Config, link::RETRY};

/// How long a durable reading waits for its acknowledgement before it is sent again.
const ACK_TIMEOUT: Duration = Duration::from_secs(1);
/// One line in the log for so many acknowledged readings.
const ACKED_PER_LINE: u64 = 50;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sensor: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), String> {
    let config = Config::from_env(|name| std::env::var(name).ok())?;
    let mut acked = Acked::open(&config.data)?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|e| format!("cannot listen for SIGTERM: {e}"))?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|e| format!("cannot listen for SIGINT: {e}"))?;
    println!("series {} continues after reading {}", acked.series(), acked.last());

    let client = link::connect("sensor", &config.url, config.inbox_prefix.as_deref()).await?;
    let (made, readings) = watch::channel(acked.last());
    tokio::select! {
        () = make(&config, &client, &made) => Ok(()),
        result = deliver(&config, &client, &mut acked, readings) => result,
        _ = terminate.recv() => { println!("stopped by SIGTERM"); Ok(()) }
        _ = interrupt.recv() => { println!("stopped by SIGINT"); Ok(()) }
    }?;
    println!("acked up to reading {}", acked.last());
    Ok(())
}

/// Makes readings for ever, sends each live, and tells the durable side how far it is.
async fn make(config: &Config, client: &Client, made: &watch::Sender<u64>) {
    let subject = format!("app.{}.temp", config.namespace);
    let mut ticks = interval(config.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        made.send_modify(|n| *n += 1);
        let n = *made.borrow();
        // Live means now: what cannot be sent now is not kept for later.
        if client.connection_state() == State::Connected
            && let Err(error) = client.publish(subject.clone(), reading(n).into()).await
        {
            eprintln!("live reading {n} was not sent: {error}");
        }
    }
}

/// Carries every reading to its acknowledgement, in order, and only then into the list.
async fn deliver(
    config: &Config,
    client: &Client,
    acked: &mut Acked,
    mut readings: watch::Receiver<u64>,
) -> Result<(), String> {
    let subject = format!("up.{}.temp", config.namespace);
    let mut trouble = None;
    loop {
        let made = *readings.wait_for(|made| *made > acked.last()).await.map_err(|e| e.to_string())?;
        while acked.last() < made {
            while client.connection_state() != State::Connected {
                sleep(RETRY).await;
            }
            let first = acked.last() + 1;
            let last = made.min(acked.last() + config.in_flight);
            let sent = (first..=last).map(|n| send(client, &subject, acked.series(), n));
            for (n, result) in (first..=last).zip(join_all(sent).await) {
                match result {
                    Ok(()) => {
                        acked.push(n)?;
                        if trouble.take().is_some() || n % ACKED_PER_LINE == 0 {
                            println!("acked reading {n}, {} waiting", made - n);
                        }
                    }
                    // Said once; the readings that follow in this round are sent again with this one.
                    Err(reason) => {
                        if trouble.as_ref() != Some(&reason) {
                            eprintln!(
                                "reading {n} is not acknowledged yet, sending it until it is: {reason}"
                            );
                            trouble = Some(reason);
                        }
                        sleep(RETRY).await;
                        break;
                    }
                }
            }
        }
    }
}

/// Sends one durable reading and waits for its acknowledgement. Sent again, it is the same message to the server.
async fn send(client: &Client, subject: &str, series: &str, n: u64) -> Result<(), String> {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("{series}-{n}"));
    let request = Request::new().headers(headers).payload(reading(n).into()).timeout(Some(ACK_TIMEOUT));
    let reply = client.send_request(subject.to_owned(), request).await.map_err(|e| {
        format!("{e} (subject {subject}; is its stream there, and may this pod publish to it?)")
    })?;
    acknowledged(&reply.payload)
}

/// Is this reply JetStream's word that the message is stored?
fn acknowledged(reply: &[u8]) -> Result<(), String> {
    let reply: serde_json::Value =
        serde_json::from_slice(reply).map_err(|e| format!("the reply is not an acknowledgement: {e}"))?;
    if let Some(error) = reply.get("error") {
        return Err(format!("the server refused it: {error}"));
    }
    if reply.get("stream").is_some() && reply.get("seq").is_some_and(serde_json::Value::is_u64) {
        return Ok(());
    }
    Err(format!("the reply is not an acknowledgement: {reply}"))
}

/// Reading `n` as JSON: a temperature that swings around 21 degrees, the same each time it is asked for.
fn reading(n: u64) -> String {
    let celsius = 21.0 + 2.0 * (n as f64 / 30.0).sin();
    format!(r#"{{"n":{n},"c":{celsius:.1}}}"#)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_stored_message_is_acknowledged() {
        assert_eq!(acknowledged(br#"{"stream":"UPLINK","seq":7}"#), Ok(()));
        assert_eq!(acknowledged(br#"{"stream":"UPLINK","seq":7,"duplicate":true}"#), Ok(()));
        let full = acknowledged(
            br#"{"error":{"code":503,"description":"maximum bytes exceeded"},"stream":"UPLINK","seq":0}"#,
        );
        assert!(full.unwrap_err().contains("maximum bytes exceeded"));
        for other in ["", "+OK", "{}", "null", r#"{"stream":"UPLINK"}"#, r#"{"seq":1}"#] {
            assert!(acknowledged(other.as_bytes()).is_err(), "{other}");
        }
    }

    #[test]
    fn a_reading_is_the_same_each_time() {
        assert_eq!(reading(118), reading(118));
        let value: serde_json::Value = serde_json::from_str(&reading(118)).unwrap();
        assert_eq!(value.get("n").unwrap(), 118);
        assert!((19.0..=23.0).contains(&value.get("c").unwrap().as_f64().unwrap()));
    }
}
