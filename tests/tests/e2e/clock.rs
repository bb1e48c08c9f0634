//! A node whose clock is wrong: it joins, is linked, runs what it must, and says what it sees; also while the clock jumps.
//!
//! Its programs are given another time by a small library of ours under libc (`LD_PRELOAD`), which the test builds and steps.
//! What does not go through libc keeps the machine's time: `nats-server`, containerd. Of the server it is the certificates'
//! validity that matters (`no_clock_finds_a_certificate_too_new_or_too_old`).

use std::path::{Path, PathBuf};

use anyhow::Context;
use schemas::Timestamp;
use tests::cluster::{Cluster, command, eventually};

use crate::support::{IDLE, acked_more, all_arrived, events, modules, pod, runs, sensor, the_same};

const TIMEOUT_S: u64 = 60;

/// Adds the seconds in the file EW_TEST_CLOCK to the time of day. The file is mapped: what is written there counts at once.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static volatile long *offset_s;
__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("EW_TEST_CLOCK");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *mapped = mmap(0, sizeof(long), PROT_READ, MAP_SHARED, fd, 0);
    if (mapped != MAP_FAILED) offset_s = mapped;
    close(fd);
}
int clock_gettime(clockid_t id, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, id, at);
    if (!failed && offset_s && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) at->tv_sec += *offset_s;
    return failed;
}
int gettimeofday(struct timeval *restrict at, void *restrict zone) {
    (void)zone;
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    at->tv_sec = now.tv_sec;
    at->tv_usec = now.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *at) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"#;

const YEARS_S: i64 = 5 * 365 * 86_400;

struct Clock(PathBuf);

impl Clock {
    fn make(dir: &Path) -> anyhow::Result<(Self, PathBuf)> {
        let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
        std::fs::write(&source, SHIM)?;
        let text = |path: &Path| path.to_str().map(str::to_owned).context("a path is text");
        command("cc", &["-shared", "-fPIC", "-O1", "-o", &text(&library)?, &text(&source)?])?;
        Ok((Self(dir.join("clock.offset")), library))
    }

    /// In place: programs have it mapped.
    fn step(&self, offset_s: i64) -> anyhow::Result<()> {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().write(true).create(true).truncate(false).open(&self.0)?;
        Ok(file.write_all_at(&offset_s.to_ne_bytes(), 0)?)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_in_1970_or_five_years_ahead_joins_stays_and_says_so() -> anyhow::Result<()> {
    let cluster = Cluster::new("clock").await?;
    let (clock, library) = Clock::make(&cluster.site().dir)?;
    cluster.hub().start().await?;
    let edge = cluster.edge("edge-a")?;
    edge.set_env("LD_PRELOAD", library.to_str().context("a path is text")?);
    edge.set_env("EW_TEST_CLOCK", clock.0.to_str().context("a path is text")?);
    let to_1970 = 60 - Timestamp::now().0 / 1000;
    clock.step(to_1970)?;
    let said = edge.exec(&[
        "env",
        &format!("LD_PRELOAD={}", library.display()),
        &format!("EW_TEST_CLOCK={}", clock.0.display()),
        "date",
        "+%Y",
    ])?;
    anyhow::ensure!(said.trim() == "1970", "the clock is not moved: {said}");

    edge.join(cluster.hub()).await.context("in 1970")?;
    edge.start().await?;
    cluster.ready("edge-a", "True").await?;
    differs(&cluster, "says 1970-01-01T").await?;
    // Images are taken in with the right time: the lease for it is ours by our clock and containerd's by its own.
    clock.step(0)?;
    cluster.heartbeats("edge-a", 4).await?;
    cluster.apply(&sensor(&edge, 50).to_string()).await?;
    cluster.apply(&pod("steady", "edge-a", IDLE).to_string()).await?;
    let sensing = runs(&cluster, &edge, "demo", "sensor").await?;
    let steady = runs(&cluster, &edge, "default", "steady").await?;
    eventually("it says that they agree", TIMEOUT_S, async || {
        Ok(events(&cluster, "ClockAgrees", "edge-a").await?.pop())
    })
    .await?;

    for (name, offset_s) in [("ahead", YEARS_S), ("right", 0), ("1970", to_1970), ("right-again", 0)] {
        clock.step(offset_s)?;
        cluster.heartbeats("edge-a", 4).await.with_context(|| format!("stepped: {name}"))?;
        cluster.ready("edge-a", "True").await?;
        if name == "ahead" {
            differs(&cluster, "says 203").await?;
        }
        cluster.apply(&pod(&format!("new-{name}"), "edge-a", IDLE).to_string()).await?;
        runs(&cluster, &edge, "default", &format!("new-{name}")).await.context("a pod after the step")?;
        acked_more(&edge, 10).await?;
        the_same(&edge, &[&sensing, &steady], &format!("after the clock was stepped: {name}"))?;
    }
    all_arrived(&cluster, &edge, TIMEOUT_S).await?;
    let fell = modules(&cluster).await?;
    let why: Vec<_> = fell.iter().filter(|(name, ..)| name == "edge-a/sync").collect();
    anyhow::ensure!(why.iter().any(|(.., error)| error.contains("EW-CLOCK-BACK")), "{fell:#?}");

    // A start with a wrong clock stops nothing either.
    for offset_s in [to_1970, YEARS_S] {
        edge.kill9_all().await?;
        clock.step(offset_s)?;
        edge.start().await?;
        cluster.heartbeats("edge-a", 2).await?;
        the_same(&edge, &[&sensing, &steady], "after a start with a wrong clock")?;
    }
    cluster.done().await
}

async fn differs(cluster: &Cluster, words: &str) -> anyhow::Result<()> {
    eventually(&format!("the node tells that its clock {words}"), TIMEOUT_S, async || {
        let told = events(cluster, "ClockDiffers", "edge-a").await?;
        Ok(told.iter().any(|text| text.contains("EW-CLOCK-DIFFERS") && text.contains(words)))
    })
    .await
}
