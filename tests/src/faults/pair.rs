//! Which fault is done to which part, and how the two go together.
//!
//! * SIGSTOP, kill -9: of that process alone.
//! * Power loss: of the machine that the victim stands on; the node's with messages waiting on it. The hub's server and process share one, and so do the node's
//!   three; so two pairs stand for five cells.
//! * A link's fault has no victim process: it is done to the link between the two servers, and while it lasts the victim is
//!   killed -9 and comes back. With no victim ([`Victim::Nobody`]) the link's fault stands alone.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context;

use super::fault::{Fault, Way};
use super::victim::Victim;
use crate::cluster::readings::acked_more;
use crate::cluster::{Cluster, Edge};

/// A silent link is noticed after 10 s; so it is away for longer.
const CUT: Duration = Duration::from_secs(15);
/// Of a link that comes and goes.
const FLAP: Duration = Duration::from_secs(1);
const FLAPS: u32 = 8;
/// So slow is slow.
const SLOW_KBIT_S: u64 = 64;
const SLOW_DELAY: Duration = Duration::from_millis(300);
const SLOW: Duration = Duration::from_secs(20);
/// Longer than every patience of the others.
const STOPPED: Duration = Duration::from_secs(15);
/// What is not started again by itself stays away for so long.
const AWAY: Duration = Duration::from_secs(3);
/// Wait on a node whose power fails.
const WAITING_READINGS: usize = 200;

/// A fault and its victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pair {
    /// What happens.
    pub fault: Fault,
    /// To whom.
    pub victim: Victim,
}

impl Pair {
    /// Every pair that means something, in the order of the table.
    pub fn all() -> Vec<Self> {
        let pairs =
            Fault::ALL.iter().flat_map(|fault| Victim::ALL.map(|victim| Self { fault: *fault, victim }));
        pairs.filter(|pair| pair.means_itself()).collect()
    }

    /// Is it a run of its own?
    fn means_itself(self) -> bool {
        match self.fault {
            Fault::PowerLoss => matches!(self.victim, Victim::HubServer | Victim::LeafServer),
            Fault::Stop | Fault::Kill => self.victim != Victim::Nobody,
            Fault::Cut(_) | Fault::Flap | Fault::Slow => true,
        }
    }

    /// Are the pods started again, because their machine was?
    pub fn loses_the_nodes_power(self) -> bool {
        self.fault == Fault::PowerLoss && !self.victim.is_of_the_hub()
    }

    /// Does the fault, and comes back when it is about to end.
    pub async fn inflict(self, cluster: &Cluster, edge: &Edge) -> anyhow::Result<()> {
        match self.fault {
            Fault::Cut(way) => {
                match way {
                    Way::Both => edge.cut()?,
                    Way::Up => edge.cut_up()?,
                    Way::Down => edge.cut_down()?,
                }
                self.kill_within(cluster, edge, CUT).await?;
                match self.victim {
                    // Was it a cut? Beside a hub that falls, the hub may know it later.
                    Victim::Nobody => cluster.ready(edge.name(), "Unknown").await,
                    _ => Ok(()),
                }
            }
            Fault::Flap => {
                let flapping = async {
                    for _ in 0..FLAPS {
                        edge.cut()?;
                        tokio::time::sleep(FLAP).await;
                        edge.heal()?;
                        tokio::time::sleep(FLAP).await;
                    }
                    edge.cut()
                };
                tokio::try_join!(flapping, self.kill_within(cluster, edge, FLAP * FLAPS)).map(drop)
            }
            Fault::Slow => {
                edge.slow(SLOW_KBIT_S, SLOW_DELAY).await?;
                self.kill_within(cluster, edge, SLOW).await?;
                anyhow::ensure!(edge.connections() >= 2, "the link does not go through the slow proxy");
                Ok(())
            }
            Fault::Stop => {
                let process = self.victim.process(cluster, edge).await?;
                process.stop();
                tokio::time::sleep(STOPPED).await;
                process.go_on();
                Ok(())
            }
            Fault::Kill => self.victim.kill(cluster, edge).await,
            Fault::PowerLoss => match self.victim.is_of_the_hub() {
                true => cluster.hub().power_cut().await,
                false => {
                    // Without the link, messages wait on the node: what its disk loses is nowhere else.
                    edge.cut()?;
                    acked_more(edge, WAITING_READINGS).await?;
                    edge.power_cut().await
                }
            },
        }
    }

    /// The victim falls and is there again, in the middle of a fault that lasts so long.
    async fn kill_within(self, cluster: &Cluster, edge: &Edge, lasts: Duration) -> anyhow::Result<()> {
        let killing = async {
            tokio::time::sleep(lasts / 3).await;
            self.victim.kill(cluster, edge).await?;
            tokio::time::sleep(AWAY).await;
            self.victim.start(cluster, edge).await
        };
        tokio::try_join!(killing, async {
            tokio::time::sleep(lasts).await;
            Ok(())
        })
        .map(drop)
    }

    /// Ends it: from now on everything is there that it takes.
    pub async fn end(self, cluster: &Cluster, edge: &Edge) -> anyhow::Result<()> {
        match self.fault {
            Fault::Cut(_) | Fault::Flap => edge.heal(),
            Fault::Slow => edge.throttle(0).await,
            Fault::Stop => Ok(()),
            Fault::Kill => {
                if self.victim.comes_back_by_itself() {
                    return Ok(());
                }
                tokio::time::sleep(AWAY).await;
                self.victim.start(cluster, edge).await
            }
            Fault::PowerLoss => match self.victim.is_of_the_hub() {
                true => cluster.hub().start().await,
                false => {
                    edge.start().await?;
                    edge.heal()
                }
            },
        }
    }
}

impl fmt::Display for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.fault.name(), self.victim.name())
    }
}

impl FromStr for Pair {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let all = Self::all();
        let found = all.iter().find(|pair| pair.to_string() == text).copied();
        found.with_context(|| {
            let names: Vec<_> = all.iter().map(ToString::to_string).collect();
            format!("there is no pair {text:?}; there are {}", names.join(" "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pair_is_known_by_its_name() {
        let all = Pair::all();
        assert_eq!(all.len(), 5 * 6 + 2 * 5 + 2);
        for pair in &all {
            assert_eq!(pair.to_string().parse::<Pair>().unwrap(), *pair);
        }
        assert!("kill/nobody".parse::<Pair>().is_err());
    }
}
