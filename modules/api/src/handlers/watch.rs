//! GET with `watch=true`: a stream of events, one JSON document a line.
//!
//! A watch without `resourceVersion` begins with ADDED for all that is there; one with it continues from the cache's
//! ring, or is told 410 when the ring no longer goes back so far. The stream is read at the client's pace and holds
//! at most one batch, so a slow client costs nothing and is dropped when the ring overtakes it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::response::Response;
use schemas::Timestamp;
use schemas::object::Object;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::accept::{self, Form};
use super::{Api, Asked};
use crate::cache::{Cache, EventType, seen};
use crate::resource::Kind;
use crate::selector::Selector;
use crate::status::ApiError;
use crate::table::{self, Include};

/// Changes taken from the ring at once.
const BATCH_MAX: usize = 64;
/// How often an idle watch is told how far it is, when it asked for that.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(30);
/// How long a watch lasts when the client does not say; then it comes again.
const WATCH_TIMEOUT_S: u64 = 45 * 60;
/// How long a watch waits for a cache that is not filled yet.
const FILLED_TIMEOUT: Duration = Duration::from_secs(5);

struct Watching {
    cache: Arc<Cache>,
    changed: tokio::sync::watch::Receiver<u64>,
    kind: &'static Kind,
    namespace: Option<String>,
    selector: Selector,
    form: Form,
    include: Include,
    columns_told: bool,
    filling: u64,
    position: u64,
    lines: VecDeque<Bytes>,
    bookmarks: Option<tokio::time::Interval>,
    until: Instant,
    stop: CancellationToken,
    ended: bool,
}

impl Api {
    pub(crate) async fn watch(&self, asked: Asked) -> Result<Response, ApiError> {
        let kind = asked.target.kind;
        let query = &asked.query;
        if !kind.allows("watch") {
            return Err(asked.not_allowed());
        }
        if !query.get("sendInitialEvents").is_empty() {
            let why = "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
            let cause = crate::status::Cause::forbidden("sendInitialEvents", why);
            return Err(ApiError::invalid("ListOptions.meta.k8s.io", "", vec![cause]));
        }
        let form = Form::parse(&asked.head.headers)?;
        let include = accept::include(query)?;
        let mut selector = Selector::parse(kind, query.get("labelSelector"), query.get("fieldSelector"))?;
        if let Some(name) = &asked.target.name {
            selector.only(name);
        }
        let timeout_s = query.number("timeoutSeconds")?.filter(|s| *s > 0).unwrap_or(WATCH_TIMEOUT_S);
        let cache = self.cache(kind)?;
        let filling = tokio::time::timeout(FILLED_TIMEOUT, cache.filled())
            .await
            .map_err(|_| ApiError::unavailable(format!("{} are not read yet; try again", kind.plural)))?;
        let mut bookmarks =
            query.flag("allowWatchBookmarks").then(|| tokio::time::interval(BOOKMARK_INTERVAL));
        if let Some(bookmarks) = &mut bookmarks {
            bookmarks.reset();
        }
        let mut watching = Watching {
            changed: cache.subscribe(),
            cache,
            kind,
            namespace: asked.target.namespace.clone(),
            selector,
            form,
            include,
            columns_told: false,
            filling,
            position: 0,
            lines: VecDeque::new(),
            bookmarks,
            until: Instant::now() + Duration::from_secs(timeout_s.min(24 * 3600)),
            stop: self.stop.clone(),
            ended: false,
        };
        let from = query.number("resourceVersion")?.unwrap_or(0);
        if from == 0 {
            let (objects, revision) = self.chosen(&asked, &watching.selector).await?;
            watching.position = revision;
            for object in &objects {
                watching.tell(EventType::Added.as_str(), object);
            }
        } else {
            watching.position = from;
            // A list may be ahead of the cache; only what is ahead of the store is from another time.
            if from > watching.cache.revision() && from > self.parts.store.revision().await? {
                return Err(ApiError::expired(format!(
                    "too large resource version: {from} was never reached here; list again"
                )));
            }
            if let Err(floor) = watching.cache.after(filling, from, 1) {
                return Err(too_old(from, floor));
            }
        }
        let lines = futures::stream::unfold(watching, |mut watching| async move {
            let line = watching.next().await?;
            Some((Ok::<_, std::convert::Infallible>(line), watching))
        });
        let mut response = Response::new(Body::from_stream(lines));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
        Ok(response)
    }
}

fn too_old(position: u64, floor: u64) -> ApiError {
    ApiError::expired(format!("too old resource version: {position} ({floor}); list again"))
}

impl Watching {
    /// The next line; `None` ends the watch.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            self.changed.mark_unchanged();
            match self.cache.after(self.filling, self.position, BATCH_MAX) {
                Err(floor) => {
                    self.ended = true;
                    let status = too_old(self.position, floor).to_json();
                    self.line(&json!({"type": "ERROR", "object": status}));
                    continue;
                }
                Ok(changes) if !changes.is_empty() => {
                    for change in changes {
                        self.position = change.revision;
                        for (kind, object) in seen(&change, self.namespace.as_deref(), &self.selector) {
                            self.tell(kind.as_str(), &object);
                        }
                    }
                    continue;
                }
                Ok(_) => {}
            }
            let bookmark = async {
                match &mut self.bookmarks {
                    Some(interval) => interval.tick().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.changed.changed() => if changed.is_err() { return None },
                _ = bookmark => self.bookmark(),
                () = tokio::time::sleep_until(self.until) => {
                    // The last word lets the client go on from here.
                    if self.bookmarks.is_some() {
                        self.bookmark();
                    }
                    self.ended = true;
                }
                () = self.stop.cancelled() => return None,
            }
        }
    }

    fn bookmark(&mut self) {
        let object = json!({
            "kind": self.kind.kind, "apiVersion": self.kind.api_version(),
            "metadata": {"resourceVersion": self.position.to_string(), "creationTimestamp": null},
        });
        let object = match (self.form, Object::try_from(object.clone())) {
            (Form::Table, _) => {
                let metadata = json!({"resourceVersion": self.position.to_string()});
                table::table(self.kind, &[], metadata, self.include, false, Timestamp::now())
            }
            (Form::Partial, Ok(object)) => table::partial(&object),
            _ => object,
        };
        self.line(&json!({"type": "BOOKMARK", "object": object}));
    }

    fn tell(&mut self, kind: &str, object: &Object) {
        let body = match self.form {
            Form::Table => {
                let metadata = json!({"resourceVersion": object.text(&["metadata", "resourceVersion"])});
                let columns = !std::mem::replace(&mut self.columns_told, true);
                table::table(self.kind, &[object], metadata, self.include, columns, Timestamp::now())
            }
            form => accept::one(self.kind, object, form, self.include),
        };
        self.line(&json!({"type": kind, "object": body}));
    }

    fn line(&mut self, event: &Value) {
        self.lines.push_back(Bytes::from(format!("{event}\n")));
    }
}
