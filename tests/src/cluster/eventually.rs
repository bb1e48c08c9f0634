//! Waiting for facts: ask again and again until it is so, with a deadline that says what was waited for.

use std::time::{Duration, Instant};

/// Between two looks.
const POLL: Duration = Duration::from_millis(50);

/// What a look at the world gives: not yet, or it is so.
pub trait Fact {
    /// What is known when it is so.
    type Value;
    /// It, if it is so.
    fn settled(self) -> Option<Self::Value>;
}

impl Fact for bool {
    type Value = ();
    fn settled(self) -> Option<()> {
        self.then_some(())
    }
}

impl<T> Fact for Option<T> {
    type Value = T;
    fn settled(self) -> Option<T> {
        self
    }
}

/// Waits until `look` says `true` or `Some(value)`. An error of `look` means "not yet", and the last one stands in ours.
pub async fn eventually<F: Fact>(
    what: &str,
    timeout_seconds: u64,
    mut look: impl AsyncFnMut() -> anyhow::Result<F>,
) -> anyhow::Result<F::Value> {
    let deadline = Instant::now() + Duration::from_secs(timeout_seconds);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let found = tokio::time::timeout(left + POLL, look()).await;
        let error = match found {
            Ok(Ok(fact)) => match fact.settled() {
                Some(value) => return Ok(value),
                None => String::new(),
            },
            Ok(Err(error)) => format!("; last: {error:#}"),
            Err(_) => "; the last look did not end".to_owned(),
        };
        if Instant::now() >= deadline {
            anyhow::bail!("not within {timeout_seconds} s: {what}{error}");
        }
        tokio::time::sleep(POLL).await;
    }
}
