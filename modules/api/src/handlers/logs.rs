//! GET of `pods/<name>/log`: a container's log, as a byte stream from its node.

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::response::Response;
use schemas::Timestamp;
use schemas::command::{Frame, OpenLogs};
use schemas::name::NodeName;
use schemas::object::{Object, new_uid};
use serde_json::Value;

use super::{Api, Asked};
use crate::edge::ByteStream;
use crate::status::ApiError;

impl Api {
    pub(crate) async fn logs(&self, asked: Asked) -> Result<Response, ApiError> {
        let query = &asked.query;
        let pod = self.find(&asked).await?;
        let container = container_of(&pod, query.get("container"))?;
        let node = node_of(&pod)?;
        let since_seconds = match (query.number("sinceSeconds")?, query.get("sinceTime")) {
            (None, since) if !since.is_empty() => {
                let since = Timestamp::parse(since).ok_or_else(|| {
                    ApiError::bad_request(format!("sinceTime={since:?} is not an RFC 3339 time"))
                })?;
                Some(Timestamp::now().since_ms(since).div_ceil(1000))
            }
            (seconds, _) => seconds,
        };
        let open = OpenLogs {
            session: new_uid(),
            namespace: pod.namespace().to_owned(),
            pod: pod.name().to_owned(),
            container,
            follow: query.flag("follow"),
            tail_lines: query.number("tailLines")?,
            since_seconds,
            timestamps: query.flag("timestamps"),
            previous: query.flag("previous"),
            limit_bytes: query.number("limitBytes")?,
        };
        let stream = self.parts.streams.open_logs(&node, open).await?;
        let stop = self.stop.clone();
        let chunks = futures::stream::unfold(stream, move |mut stream| {
            let stop = stop.clone();
            async move {
                let chunk = tokio::select! {
                    chunk = next_chunk(&mut stream) => chunk?,
                    () = stop.cancelled() => return None,
                };
                Some((chunk, stream))
            }
        });
        let mut response = Response::new(Body::from_stream(chunks));
        response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
        Ok(response)
    }
}

/// The next bytes of a log. An error breaks the answer off, so that a client does not take a part for the whole.
async fn next_chunk(stream: &mut ByteStream) -> Option<Result<Bytes, std::io::Error>> {
    loop {
        match stream.incoming.recv().await {
            Some(Frame::Data { bytes, .. }) if bytes.is_empty() => {}
            Some(Frame::Data { bytes, .. }) => return Some(Ok(bytes)),
            Some(Frame::Credit { .. } | Frame::Alive) => {}
            Some(Frame::End { error: None, .. }) => return None,
            Some(Frame::End { error: Some(refusal), .. }) => {
                return Some(Err(std::io::Error::other(refusal.to_string())));
            }
            None => return Some(Err(std::io::Error::other("the stream from the node was lost"))),
        }
    }
}

/// The node of a pod; 400 while it has none.
pub(crate) fn node_of(pod: &Object) -> Result<NodeName, ApiError> {
    match pod.text(&["spec", "nodeName"]) {
        "" => Err(ApiError::bad_request(format!(
            "pod {:?} is not on a node yet: see 'kubectl describe pod {}'",
            pod.name(),
            pod.name()
        ))),
        node => NodeName::new(node).map_err(|error| ApiError::internal(error.to_string())),
    }
}

/// The container that is meant: the named one, or the pod's only one (or its default one).
pub(crate) fn container_of(pod: &Object, asked: &str) -> Result<String, ApiError> {
    let names = |list: &str| {
        let list = pod.get(&["spec", list]).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(|c| c.get("name")?.as_str()).collect::<Vec<_>>()
    };
    let (containers, inits) = (names("containers"), names("initContainers"));
    let asked = match asked {
        "" => pod.annotation("kubectl.kubernetes.io/default-container").unwrap_or(""),
        asked => asked,
    };
    match (asked, containers.as_slice()) {
        ("", [only]) if inits.is_empty() => Ok((*only).to_owned()),
        ("", _) => {
            let all: Vec<&str> = inits.iter().chain(&containers).copied().collect();
            Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {}, choose one of: [{}]",
                pod.name(),
                all.join(" ")
            )))
        }
        (asked, _) if containers.contains(&asked) || inits.contains(&asked) => Ok(asked.to_owned()),
        (asked, _) => {
            Err(ApiError::bad_request(format!("container {asked} is not valid for pod {}", pod.name())))
        }
    }
}
