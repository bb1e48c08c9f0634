//! `pods/<name>/exec` over WebSocket: Kubernetes' remote command protocol `v5.channel.k8s.io` (and v4).
//!
//! Source: Kubernetes KEP-4006 and `k8s.io/kubelet/pkg/cri/streaming/remotecommand`. Each binary message begins with
//! its channel: 0 stdin, 1 stdout, 2 stderr, 3 the final `metav1.Status`, 4 terminal size; in v5, 255 closes the
//! channel that follows it. SPDY, the older transport, is refused.

use axum::extract::FromRequestParts;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::response::Response;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use schemas::command::{FRAME_MAX_BYTES, Frame, OpenExec, Refusal, channel};
use schemas::object::new_uid;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::logs::{container_of, node_of};
use super::{Api, Asked};
use crate::edge::ByteStream;
use crate::status::ApiError;

/// The channel of the final status.
const ERROR: u8 = 3;
/// v5: the next byte names a channel that ends.
const CLOSE: u8 = 255;
/// The largest message that a client may send.
const MESSAGE_MAX_BYTES: usize = 1024 * 1024;
/// Protocols in order of preference.
const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];

impl Api {
    pub(crate) async fn exec(&self, mut asked: Asked) -> Result<Response, ApiError> {
        let pod = self.find(&asked).await?;
        let container = container_of(&pod, asked.query.get("container"))?;
        let node = node_of(&pod)?;
        let query = &asked.query;
        let open = OpenExec {
            session: new_uid(),
            namespace: pod.namespace().to_owned(),
            pod: pod.name().to_owned(),
            container,
            command: query.all("command"),
            stdin: query.flag("stdin"),
            stdout: query.flag("stdout"),
            stderr: query.flag("stderr") && !query.flag("tty"),
            tty: query.flag("tty"),
        };
        if open.command.is_empty() {
            return Err(ApiError::bad_request("you must specify at least 1 command for the container"));
        }
        if !asked.header("upgrade").eq_ignore_ascii_case("websocket") {
            return Err(ApiError::bad_request(
                "exec is served over WebSocket only (kubectl 1.30 or newer; do not set KUBECTL_REMOTE_COMMAND_WEBSOCKETS=false)",
            ));
        }
        let upgrade = WebSocketUpgrade::from_request_parts(&mut asked.head, &())
            .await
            .map_err(|error| ApiError::bad_request(format!("the WebSocket upgrade is not valid: {error}")))?;
        let (streams, stop) = (self.parts.streams.clone(), self.stop.clone());
        let upgrade = upgrade
            .protocols(PROTOCOLS)
            .max_message_size(MESSAGE_MAX_BYTES)
            .max_frame_size(MESSAGE_MAX_BYTES);
        if upgrade.selected_protocol().is_none() {
            return Err(ApiError::bad_request(format!("exec speaks {} only", PROTOCOLS.join(" and "))));
        }
        Ok(upgrade.on_upgrade(move |socket| async move {
            // Opened after the upgrade, so that a refusal of the node reaches the user: after a failed upgrade
            // kubectl would try SPDY and show that failure instead.
            tokio::select! {
                () = async {
                    match streams.open_exec(&node, open).await {
                        Ok(stream) => pump(socket, stream).await,
                        Err(refusal) => finish(socket, &failure(&refusal)).await,
                    }
                } => {}
                () = stop.cancelled() => {}
            }
        }))
    }
}

/// Carries bytes both ways until the program ends or the client goes.
async fn pump(socket: WebSocket, stream: ByteStream) {
    let (mut to_client, mut from_client) = socket.split();
    let ByteStream { mut incoming, outgoing } = stream;
    let down = async {
        loop {
            let status = match incoming.recv().await {
                // The node's end of a channel: the client learns it from the final status.
                Some(Frame::Data { bytes, .. }) if bytes.is_empty() => continue,
                Some(Frame::Data { channel, bytes, .. }) => {
                    if to_client.send(message(channel, &bytes)).await.is_err() {
                        return;
                    }
                    continue;
                }
                Some(Frame::Credit { .. } | Frame::Alive) => continue,
                Some(Frame::End { error: Some(refusal), .. }) => failure(&refusal),
                Some(Frame::End { exit_code, error: None }) => exit(exit_code.unwrap_or(0)),
                None => failure(&Refusal::new(
                    502,
                    "EW-STREAM-LOST",
                    "the stream to the node was lost; try again",
                )),
            };
            // Whether the client still hears it makes no difference any more.
            let _ = to_client.send(message(ERROR, status.to_string().as_bytes())).await;
            let _ = to_client.send(goodbye()).await;
            // The client closes in turn; what it says until then has no reader.
            return;
        }
    };
    let up = async {
        while let Some(Ok(said)) = from_client.next().await {
            let bytes = match said {
                Message::Binary(bytes) => bytes,
                Message::Text(text) => Bytes::from(text.as_str().to_owned()),
                Message::Close(_) => return,
                Message::Ping(_) | Message::Pong(_) => continue,
            };
            if !forward(&outgoing, &bytes).await {
                return std::future::pending().await; // the node ended: `down` says how
            }
        }
    };
    tokio::select! {
        () = down => {}
        () = up => {}
    }
}

/// One message of the client as frames. `false`: the node no longer listens.
async fn forward(outgoing: &mpsc::Sender<Frame>, bytes: &[u8]) -> bool {
    let Some((kind, data)) = bytes.split_first() else { return true };
    let frame = |channel: u8, bytes: &[u8]| Frame::Data {
        sequence: 0,
        channel,
        bytes: Bytes::copy_from_slice(bytes),
    };
    match *kind {
        CLOSE => match data.first() {
            Some(&closed) => outgoing.send(frame(closed, &[])).await.is_ok(),
            None => true,
        },
        channel::STDIN | channel::RESIZE => {
            for part in data.chunks(FRAME_MAX_BYTES) {
                if outgoing.send(frame(*kind, part)).await.is_err() {
                    return false;
                }
            }
            true
        }
        _ => true,
    }
}

fn message(channel: u8, bytes: &[u8]) -> Message {
    let mut all = Vec::with_capacity(bytes.len() + 1);
    all.push(channel);
    all.extend_from_slice(bytes);
    Message::Binary(all.into())
}

/// The normal end. Without a code, kubectl takes the end for a failure.
fn goodbye() -> Message {
    Message::Close(Some(CloseFrame { code: close_code::NORMAL, reason: "".into() }))
}

fn exit(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({
        "metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
    })
}

fn failure(refusal: &Refusal) -> Value {
    ApiError::from(refusal.clone()).to_json()
}

async fn finish(mut socket: WebSocket, status: &Value) {
    let _ = socket.send(message(ERROR, status.to_string().as_bytes())).await;
    let _ = socket.send(goodbye()).await;
}
