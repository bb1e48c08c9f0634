//! Does what the edge's end wants done across the link and on the node's own streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bus::connection::{Bus, Handles};
use bus::downlink;
use bus::link::{self, Have, LinkError};
use bus::module::{Account, Rim};
use bus::server::LeafServer;
use bus::store::Store;
use futures::StreamExt;
use schemas::name::NodeName;
use schemas::subject::{self, Lane};

use crate::downlink::Batch;
use crate::edge::{self, Act, Came, Done, Sync, Wanted, account};
use crate::facts::{self, NodeConfig};
use crate::housekeeping::Housekeeping;

/// A pull waits so long for the first entry.
const PULL_WAIT: Duration = Duration::from_secs(10);
/// An answer to a pull or to a commit is waited for so long at first, and at most.
const PULL_PATIENCE: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(300)];
const COMMIT_PATIENCE: [Duration; 2] = [Duration::from_secs(8), Duration::from_secs(120)];
/// The node's own server answers within this, or it is asked again.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// A read of the node's stream waits so long for something to come.
const READ_WAIT: Duration = Duration::from_secs(5);
/// What wakes a read may be seen before the server has stored it: look again after so long.
const STORE_DELAY: Duration = Duration::from_millis(5);
/// How often to look again before waiting for the next wake-up.
const STORE_LOOKS: u32 = 8;

/// The rim of the edge's sync.
pub struct EdgeRim {
    node: NodeName,
    boot_id: String,
    config: NodeConfig,
    server: Arc<LeafServer>,
    house: Housekeeping,
    pull_patience: Patience,
    commit_patience: Patience,
    read_patience: Patience,
}

impl EdgeRim {
    /// The rim of `node`, whose own server is `server`.
    pub fn new(node: NodeName, boot_id: String, config: NodeConfig, server: Arc<LeafServer>) -> Self {
        let (pull_patience, commit_patience) = (Patience::new(PULL_PATIENCE), Patience::new(COMMIT_PATIENCE));
        let read_patience = Patience::new(PULL_PATIENCE);
        let house = Housekeeping::new(config.data_dir.clone());
        Self { node, boot_id, config, server, house, pull_patience, commit_patience, read_patience }
    }
}

/// How long an answer is waited for. Too long, and what a link lost that is up again holds everything up; too short, and what
/// a slow link still carries is sent again. So it follows the link: three times what the last answer took, and twice as
/// long after one that did not come.
struct Patience {
    now_ms: AtomicU64,
    bounds: [Duration; 2],
}

impl Patience {
    fn new(bounds: [Duration; 2]) -> Self {
        let this = Self { now_ms: AtomicU64::new(0), bounds };
        this.set(Duration::ZERO);
        this
    }

    fn now(&self) -> Duration {
        Duration::from_millis(self.now_ms.load(Ordering::Relaxed))
    }

    fn set(&self, patience: Duration) {
        let [min, max] = self.bounds;
        let ms = u64::try_from(patience.clamp(min, max).as_millis()).unwrap_or(u64::MAX);
        self.now_ms.store(ms, Ordering::Relaxed);
    }

    fn answered(&self, took: Duration) {
        self.set(took * 3);
    }

    /// After so long. An error that came at once says nothing of the link's pace.
    fn unanswered(&self, waited: Duration) {
        if waited >= self.now() {
            self.set(self.now() * 2);
        }
    }
}

impl EdgeRim {
    /// What is asked across the link of `account`. It ends with the link: the answer is then not waited for, because a hub
    /// whose server fell has forgotten the question, and the link may be back long before patience ends.
    async fn while_linked<T>(
        &self,
        account: Account,
        asked: impl Future<Output = Result<T, LinkError>>,
    ) -> Result<T, LinkError> {
        // A link that breaks while the server is not heard yet, after its start, is left to patience.
        let lost = self.server.link_lost(account);
        tokio::select! {
            outcome = asked => outcome,
            () = lost => Err(LinkError::Lost("the link broke".to_owned())),
        }
    }
}

impl EdgeRim {
    /// For messages from the hub.
    async fn messages(&self, work: &Bus, wanted: Wanted) -> Came {
        match wanted {
            Wanted::Find => Came::Found(downlink::cursor(work).await),
            Wanted::Read(from, max_bytes) => {
                let (since, patience) = (Instant::now(), self.read_patience.now());
                let read = downlink::read(work, &self.node, from, max_bytes, patience);
                match self.while_linked(Account::Work, read).await {
                    Ok((sent, took)) => {
                        self.read_patience.answered(took);
                        tracing::debug!(
                            ?from,
                            max_bytes,
                            messages = sent.len(),
                            took_ms = ms(since),
                            "read at the hub"
                        );
                        Came::Have(Ok(sent), u64::try_from(took.as_millis()).unwrap_or(u64::MAX))
                    }
                    Err(error) => {
                        self.read_patience.unanswered(since.elapsed());
                        tracing::debug!(?from, %error, "messages were not read");
                        Came::Have(Err(error), 0)
                    }
                }
            }
            Wanted::Commit(batch) => Came::Committed(write_down(work, &batch).await),
            Wanted::Tidy => Came::Tidied(downlink::tidy(work).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "what came from the hub is tidied again");
                0
            })),
        }
    }
}

/// Into the node's own DOWN. A reader is there before what it is to hand out.
async fn write_down(work: &Bus, batch: &Batch) -> Result<u64, LinkError> {
    for namespace in &batch.readers {
        downlink::ensure_reader(work, namespace).await?;
    }
    link::commit(work, &batch.messages, &batch.cursor(), batch.expect_revision, WRITE_PATIENCE).await
}

fn of(bus: &Handles, lane: Lane) -> Result<&Bus, LinkError> {
    bus.bus(account(lane)).ok_or_else(|| LinkError::Lost("no connection in the lane's account".to_owned()))
}

fn ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

async fn read(bus: &Bus, lane: Lane, from: u64, max_bytes: usize) -> Result<Have, LinkError> {
    let stream = lane.edge_stream();
    let look = || async {
        let messages = link::read(bus, stream, lane.filter(), from, max_bytes).await?;
        Ok(Have { messages, through: 0 })
    };
    // Followed before the first look, so that nothing can come between.
    let mut arrivals = link::arrivals(bus, lane.filter()).await?;
    let deadline = tokio::time::Instant::now() + READ_WAIT;
    loop {
        for again in 0..STORE_LOOKS {
            let have = look().await?;
            if !have.messages.is_empty() {
                return Ok(have);
            }
            tokio::time::sleep(STORE_DELAY * again).await;
        }
        match tokio::time::timeout_at(deadline, arrivals.next()).await {
            Err(_) if lane.is_alone() => return Ok(Have::default()),
            Err(_) => {
                // The end is asked for first: what is stored after that is not said to be looked at.
                let through = link::state(bus, stream).await?.last_sequence;
                return Ok(Have { through, ..look().await? });
            }
            Ok(None) => return Err(LinkError::Lost("the subscription ended".to_owned())),
            Ok(Some(_)) => {}
        }
    }
}

impl Rim<Sync> for EdgeRim {
    async fn act(&self, bus: &Handles, act: Act) -> Option<Done> {
        match act {
            Act::Pull { round, max_bytes, wait } => {
                let wait = if wait { PULL_WAIT } else { Duration::ZERO };
                let (since, patience) = (Instant::now(), self.pull_patience.now());
                let pull = link::pull(&bus.control, &self.node, max_bytes, wait, patience);
                let outcome = self.while_linked(Account::Control, pull).await;
                match &outcome {
                    Ok((_, took)) => self.pull_patience.answered(*took),
                    Err(_) => self.pull_patience.unanswered(since.elapsed()),
                }
                let (outcome, took_ms) = match outcome {
                    Ok((pulled, took)) => (Ok(pulled), u64::try_from(took.as_millis()).unwrap_or(u64::MAX)),
                    Err(error) => (Err(error), 0),
                };
                match &outcome {
                    Ok(pulled) => {
                        tracing::debug!(round, max_bytes, entries = pulled.len(), took_ms, "pulled")
                    }
                    Err(error) => tracing::debug!(round, max_bytes, %error, "pull failed"),
                }
                Some(Done::Pulled { round, outcome, took_ms })
            }
            Act::Acknowledge(acks) => {
                if let Err(error) = link::acknowledge(&bus.control, &acks).await {
                    tracing::debug!(%error, "acknowledgements were not sent; the entries come again");
                }
                None
            }
            Act::FindCursor { lane, round } => {
                let found = async {
                    let bus = of(bus, lane)?;
                    let state = link::state(bus, lane.edge_stream()).await?;
                    let cursor = subject::cursor(&self.node, lane);
                    Ok((link::cursor(bus, lane.hub_stream(), &cursor).await?, state))
                };
                let outcome = self.while_linked(account(lane), found).await;
                Some(Done::Found { lane, round, outcome })
            }
            Act::Count { lane } => {
                let state = async { link::state(of(bus, lane)?, lane.edge_stream()).await };
                state.await.ok().map(|state| Done::Counted { lane, state })
            }
            Act::Read { lane, round, from, max_bytes } => {
                let since = Instant::now();
                let have = async { read(of(bus, lane)?, lane, from, max_bytes).await };
                let outcome = have.await;
                if let Ok(have) = &outcome {
                    let (lane, messages) = (lane.as_str(), have.messages.len());
                    tracing::debug!(lane, from, messages, max_bytes, took_ms = ms(since), "read");
                }
                Some(Done::Have { lane, round, outcome })
            }
            Act::Commit { lane, round, messages, cursor, expect_revision } => {
                let since = Instant::now();
                let bytes = edge::bytes(&messages);
                let commit = async {
                    let (cursor, patience) = (cursor.raise(&self.node, lane), self.commit_patience.now());
                    link::commit(of(bus, lane)?, &messages, &cursor, expect_revision, patience).await
                };
                let outcome = self.while_linked(account(lane), commit).await;
                match &outcome {
                    Ok(_) => {
                        self.commit_patience.answered(since.elapsed());
                        let (lane, messages) = (lane.as_str(), messages.len());
                        tracing::debug!(lane, messages, bytes, took_ms = ms(since), "committed");
                    }
                    Err(error) => {
                        self.commit_patience.unanswered(since.elapsed());
                        tracing::debug!(lane = lane.as_str(), %error, "batch was not committed");
                    }
                }
                Some(Done::Committed { lane, round, outcome, bytes, took_ms: ms(since) })
            }
            Act::Trim { lane, sequence } => {
                let since = Instant::now();
                let filter = (!lane.is_alone()).then_some(lane.filter());
                let trim = async { link::trim(of(bus, lane)?, lane.edge_stream(), filter, sequence).await };
                match trim.await {
                    Ok(count) => {
                        tracing::debug!(lane = lane.as_str(), count, took_ms = ms(since), "trimmed");
                    }
                    Err(error) => tracing::debug!(%error, "the next trim takes it too"),
                }
                None
            }
            Act::Messages { round, wanted } => {
                Some(Done::Messages { round, came: self.messages(bus.work.as_ref()?, wanted).await })
            }
            Act::LookAtStore => {
                let listed = Store::new(&bus.control, subject::BUCKET_LOCAL).list(">").await;
                let (entries, _) = listed.ok()?; // the server is away: looked at again
                Some(Done::StoreHas(entries.into_iter().map(|entry| entry.key).collect()))
            }
            Act::Inspect => {
                let report = facts::inspect(self.node.as_str(), &self.boot_id, &self.config);
                Some(Done::Inspected(Box::new(report)))
            }
            Act::LookAtDisk => self.house.look(&self.server).await.map(Done::Disk),
            Act::KeepHouse(house) => self.house.keep(bus, house).await.map(Done::Cleared),
            Act::LookAtLink { reach } => self.server.look(reach).await.map(Done::Link),
            Act::MoveLink(way) => {
                if let Err(error) = self.server.set_way(way).await {
                    tracing::warn!(%error, "the link does not go another way yet; tried again");
                }
                None
            }
            Act::RebuildLink => {
                if let Err(error) = self.server.rebuild_links().await {
                    tracing::warn!(%error, "the links are not dropped; tried again");
                }
                None
            }
            Act::Warn(text) => {
                tracing::warn!("{text}");
                None
            }
            Act::RestartServer => {
                if let Err(error) = self.server.restart().await {
                    tracing::warn!(%error, "the node's server is not ready yet");
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_follows_the_link() {
        let seconds = Duration::from_secs;
        let patience = Patience::new([seconds(8), seconds(120)]);
        assert_eq!(patience.now(), seconds(8));
        patience.unanswered(seconds(8));
        assert_eq!(patience.now(), seconds(16));
        patience.unanswered(seconds(1)); // refused at once
        assert_eq!(patience.now(), seconds(16));
        patience.answered(seconds(12));
        assert_eq!(patience.now(), seconds(36));
        for _ in 0..4 {
            patience.unanswered(patience.now());
        }
        assert_eq!(patience.now(), seconds(120));
        patience.answered(seconds(0));
        assert_eq!(patience.now(), seconds(8));
    }
}
