//! Writing and reading the hub's audit streams. What was done and what was refused stand apart ([`schemas::audit`]).

use std::time::Duration;

use schemas::Timestamp;
use schemas::audit::AuditRecord;
use schemas::envelope::{self, Headers};
use schemas::subject;

use crate::connection::{Bus, to_nats};
use crate::link::{self, LinkError};

/// A record is on disk within this, or the caller is told that it is not.
const WRITE_TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of one page.
const PAGE_MAX_BYTES: usize = 4 * 1024 * 1024;

/// Subject and headers of a record: what a module reports, and what [`write`] sends.
pub fn addressed(record: &AuditRecord, module: &str) -> (String, Headers) {
    let to = subject::audit(record.refused(), &record.node, &record.verb);
    (to, envelope::headers(&record.node, module, "Audit", &record.id, record.at))
}

/// Writes a record; it is on disk when this returns.
pub async fn write(bus: &Bus, record: &AuditRecord, module: &str) -> Result<(), LinkError> {
    let lost = |cause: &dyn ToString| LinkError::Lost(cause.to_string());
    let (to, headers) = addressed(record, module);
    let payload = schemas::encode(record).into();
    let written = async {
        let sent = bus.jetstream.publish_with_headers(to, to_nats(&headers), payload).await;
        sent.map_err(|error| lost(&error))?.await.map_err(|error| lost(&error))
    };
    tokio::time::timeout(WRITE_TIMEOUT, written)
        .await
        .map_err(|_| lost(&"no acknowledgement in time"))?
        .map(drop)
}

/// The records since then in order of time, at most `limit`, the latest of them.
pub async fn read(
    bus: &Bus,
    since: Timestamp,
    limit: usize,
    wanted: impl Fn(&AuditRecord) -> bool,
) -> Result<Vec<AuditRecord>, LinkError> {
    let mut records: Vec<AuditRecord> = Vec::new();
    for (stream, refused) in [(subject::STREAM_AUDIT, false), (subject::STREAM_REFUSED, true)] {
        let filter = subject::audit_filter(refused);
        let mut page = link::read_since(bus, stream, &filter, since, PAGE_MAX_BYTES).await?;
        while let Some(last) = page.last().map(|message| message.sequence) {
            let read = page.iter().filter_map(|message| schemas::decode(&message.payload).ok());
            records.extend(read.filter(|record: &AuditRecord| record.at >= since && wanted(record)));
            // Bounded while reading too: the latest are wanted.
            if records.len() > limit.saturating_mul(2) {
                latest(&mut records, limit);
            }
            page = link::read(bus, stream, &filter, last + 1, PAGE_MAX_BYTES).await?;
        }
    }
    latest(&mut records, limit);
    Ok(records)
}

fn latest(records: &mut Vec<AuditRecord>, limit: usize) {
    records.sort_by(|a, b| (a.at, &a.id).cmp(&(b.at, &b.id)));
    records.drain(..records.len().saturating_sub(limit));
}
