//! Server-sent events: what is said on a subject, told to one reader for as long as it stays.

use std::sync::Arc;
use std::time::Duration;

use bus::guest::Guest;
use bytes::{BufMut, Bytes, BytesMut};
use http_body_util::{BodyExt, StreamBody};
use hyper::Response;
use hyper::body::Frame;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderValue};
use schemas::command::Refusal;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::answer::{Answer, Door, Line};
use crate::frame;
use crate::listening::{Reader, Tell};
use crate::tally::Taken;

/// Where nothing is said a reader is told so often that the connection stands.
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);
/// A reader that takes nothing for so long is cut off.
pub const STALL_TIMEOUT: Duration = Duration::from_secs(30);
/// Pieces of the answer that wait to be written, besides what the connection itself holds. What is not written yet stands in
/// the ring alone.
const PIECES_WAITING_MAX: usize = 1;
const LAST_EVENT_ID: &str = "last-event-id";
const MISSED: &str =
    "what came after your Last-Event-ID is not known here any more; the oldest that is follows";

/// The answer: events until the reader goes, is too slow, or the door closes.
pub async fn tell(
    door: &Door,
    guest: &Arc<Guest>,
    filter: &str,
    headers: &HeaderMap,
    line: Line,
    place: Taken,
) -> Result<Response<Answer>, Refusal> {
    let last = headers.get(LAST_EVENT_ID).and_then(|value| value.to_str().ok());
    let reader = door.listening.read(guest, filter, last, line.from).await?;
    let (pieces, receiver) = mpsc::channel(PIECES_WAITING_MAX);
    let teller = Teller { pieces, cut: line.cut, stop: door.stop.clone() };
    door.tellers.spawn(async move {
        teller.run(reader).await;
        drop(place);
    });
    let stream = futures::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|bytes| (Ok(Frame::data(bytes)), receiver))
    });
    let mut response = Response::new(StreamBody::new(stream).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

struct Teller {
    pieces: mpsc::Sender<Bytes>,
    cut: CancellationToken,
    stop: CancellationToken,
}

impl Teller {
    async fn run(&self, mut reader: Reader) -> Option<()> {
        let id = reader.id();
        self.send(frame::opening(&id)).await?;
        if reader.has_gap() {
            self.send(frame::gap(&id, MISSED)).await?;
        }
        loop {
            let told = tokio::select! {
                told = tokio::time::timeout(HEARTBEAT_INTERVAL, reader.next()) => told,
                () = self.pieces.closed() => return None,
                () = self.stop.cancelled() => return None,
            };
            match told {
                Err(_) => self.send(frame::heartbeat()).await?,
                Ok(Tell::Frames(mut frames)) if frames.len() == 1 => self.send(frames.pop()?).await?,
                Ok(Tell::Frames(frames)) => {
                    let mut all = BytesMut::with_capacity(frames.iter().map(Bytes::len).sum());
                    frames.into_iter().for_each(|frame| all.put(frame));
                    self.send(all.freeze()).await?;
                }
                Ok(Tell::Slow) => return self.send(frame::slow()).await,
                Ok(Tell::End(Some(refusal))) => {
                    return self.send(frame::refused(&refusal.code, &refusal.message)).await;
                }
                Ok(Tell::End(None)) => return None,
            }
        }
    }

    /// `None` when there is nobody to tell any more.
    async fn send(&self, piece: Bytes) -> Option<()> {
        match tokio::time::timeout(STALL_TIMEOUT, self.pieces.send(piece)).await {
            Ok(sent) => sent.ok(),
            Err(_) => {
                self.cut.cancel();
                None
            }
        }
    }
}
