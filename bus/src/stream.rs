//! Credit-bounded byte streams between the hub and a node (logs, exec), over plain subjects.
//!
//! The asker makes a session name, subscribes, and sends the opening request on the command's subject with the
//! session's up-subject as reply: so a node needs the right to publish on its own subjects only. Then both sides send
//! [`Frame`]s. A side may have at most [`STREAM_CREDIT_BYTES`] unread at the other; the reader grants more as it reads. A
//! frame that is missing, or silence beyond [`STREAM_SILENCE_MAX_MS`], ends the stream with an error: bytes are never
//! skipped unsaid.

use std::time::Duration;

use async_nats::Subscriber;
use futures::StreamExt;
use schemas::command::{FRAME_MAX_BYTES, Frame, Refusal, Reply, STREAM_CREDIT_BYTES, STREAM_SILENCE_MAX_MS};
use schemas::name::NodeName;
use schemas::subject;

use crate::connection::Bus;

/// How long the opening request waits for the node.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// One end of a byte stream.
pub struct ByteStream {
    bus: Bus,
    to: String,
    frames: Subscriber,
    sent: u64,
    received: u64,
    credit: u64,
    unread: u32,
    last_heard: tokio::time::Instant,
    alive: tokio::time::Interval,
    ended: bool,
}

/// A random session name.
pub fn new_session() -> String {
    schemas::object::new_uid()
}

fn gone(cause: impl std::fmt::Display) -> Refusal {
    Refusal::new(502, "EW-STREAM-LOST", format!("the stream to the node was lost: {cause}; try again"))
}

impl ByteStream {
    fn new(bus: &Bus, to: String, frames: Subscriber) -> Self {
        let mut alive = tokio::time::interval(Duration::from_millis(STREAM_SILENCE_MAX_MS / 3));
        alive.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self {
            bus: bus.clone(),
            to,
            frames,
            sent: 0,
            received: 0,
            credit: u64::from(STREAM_CREDIT_BYTES),
            unread: 0,
            last_heard: tokio::time::Instant::now(),
            alive,
            ended: false,
        }
    }

    /// The asker's end: sends `request` (which holds `session`) to a module on a node and waits for its answer.
    pub async fn open<T: serde::Serialize>(
        bus: &Bus,
        node: &NodeName,
        module: &str,
        verb: &str,
        session: &str,
        request: &T,
    ) -> Result<Self, Refusal> {
        let up = subject::stream_up(node, session);
        let mut frames = bus.client.subscribe(up.clone()).await.map_err(gone)?;
        bus.client
            .publish_with_reply(subject::command(node, module, verb), up, schemas::encode(request).into())
            .await
            .map_err(gone)?;
        let unreachable = || {
            Refusal::new(
                503,
                "EW-NODE-UNREACHABLE",
                format!("node {node} does not answer; is its link up? see `edgewire nodes`"),
            )
        };
        let answer = match tokio::time::timeout(OPEN_TIMEOUT, frames.next()).await {
            Ok(Some(answer)) => answer,
            _ => return Err(unreachable()),
        };
        if answer.status == Some(async_nats::StatusCode::NO_RESPONDERS) {
            return Err(unreachable());
        }
        schemas::decode::<Reply<()>>(&answer.payload).map_err(gone)??;
        Ok(Self::new(bus, subject::stream_down(node, session), frames))
    }

    /// The node's end: subscribes to the session's frames. Call before answering the opening request.
    pub async fn accept(bus: &Bus, node: &NodeName, session: &str) -> Result<Self, Refusal> {
        let frames = bus.client.subscribe(subject::stream_down(node, session)).await.map_err(gone)?;
        Ok(Self::new(bus, subject::stream_up(node, session), frames))
    }

    /// Answers the opening request at the node's end.
    pub async fn answer(&self, reply: &Reply<()>) -> Result<(), Refusal> {
        self.bus.client.publish(self.to.clone(), schemas::encode(reply).into()).await.map_err(gone)
    }

    async fn frame(&self, frame: &Frame) -> Result<(), Refusal> {
        self.bus.client.publish(self.to.clone(), schemas::encode(frame).into()).await.map_err(gone)
    }

    /// May bytes be sent now? When not, [`next`](Self::next) has to be called until credit comes.
    pub fn can_send(&self) -> bool {
        self.credit > 0 && !self.ended
    }

    /// Sends bytes on a channel; at most [`FRAME_MAX_BYTES`] of them and no more than the credit are taken: gives how
    /// many. Empty `bytes` close the channel.
    pub async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<usize, Refusal> {
        let room = usize::try_from(self.credit).unwrap_or(usize::MAX).min(FRAME_MAX_BYTES);
        let taken = bytes.get(..room.min(bytes.len())).unwrap_or_default();
        if taken.is_empty() && !bytes.is_empty() {
            return Ok(0);
        }
        let frame = Frame::Data { sequence: self.sent, channel, bytes: bytes::Bytes::copy_from_slice(taken) };
        self.frame(&frame).await?;
        self.sent += 1;
        self.credit = self.credit.saturating_sub(taken.len() as u64);
        Ok(taken.len())
    }

    /// Ends the stream.
    pub async fn end(&mut self, exit_code: Option<i32>, error: Option<Refusal>) -> Result<(), Refusal> {
        self.ended = true;
        self.frame(&Frame::End { exit_code, error }).await?;
        self.bus.client.flush().await.map_err(gone)
    }

    /// Says that this side is still here, while its own reader is busy with the last frame. To be called more often than
    /// [`STREAM_SILENCE_MAX_MS`].
    pub async fn alive(&self) -> Result<(), Refusal> {
        self.frame(&Frame::Alive).await
    }

    /// The next [`Frame::Data`] or [`Frame::End`]; `None` says that credit came and sending may go on. Reading a frame
    /// grants its bytes again, so call it only when the last one's bytes have been dealt with.
    pub async fn next(&mut self) -> Result<Option<Frame>, Refusal> {
        if self.unread > 0 {
            // Taken back only when sent: a call that is cancelled here grants again rather than never.
            self.frame(&Frame::Credit { bytes: self.unread }).await?;
            self.unread = 0;
        }
        let silence = Duration::from_millis(STREAM_SILENCE_MAX_MS);
        loop {
            tokio::select! {
                message = self.frames.next() => {
                    let message = message.ok_or_else(|| gone("the subscription ended"))?;
                    self.last_heard = tokio::time::Instant::now();
                    match schemas::decode::<Frame>(&message.payload).map_err(gone)? {
                        Frame::Alive => {}
                        Frame::Credit { bytes } => {
                            // Never more than the window, whatever the other side says.
                            self.credit = (self.credit + u64::from(bytes)).min(u64::from(STREAM_CREDIT_BYTES));
                            return Ok(None);
                        }
                        Frame::Data { sequence, .. } if sequence != self.received => {
                            return Err(gone(format!("frame {} is missing", self.received)));
                        }
                        Frame::Data { sequence, channel, bytes } => {
                            if bytes.len() > FRAME_MAX_BYTES {
                                return Err(gone("a frame is over its bound"));
                            }
                            self.received += 1;
                            self.unread = u32::try_from(bytes.len()).unwrap_or(0);
                            return Ok(Some(Frame::Data { sequence, channel, bytes }));
                        }
                        end @ Frame::End { .. } => {
                            self.ended = true;
                            return Ok(Some(end));
                        }
                    }
                }
                _ = self.alive.tick() => {
                    if self.last_heard.elapsed() > silence {
                        return Err(gone("the other side is silent"));
                    }
                    self.frame(&Frame::Alive).await?;
                }
            }
        }
    }
}
