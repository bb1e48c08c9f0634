//! The guests' connections: one for each user, shared, bounded in number, ended when idle; and how often a wrong password is
//! put to the server.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::Pass;
use super::connection::{DialError, Guest};

/// Users that are connected at once (each with one connection, and a second one while it listens).
pub const GUESTS_MAX: usize = 256;
/// Who asks nothing for so long is disconnected.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// A login that the server refused is not put to it again for so long.
pub const REFUSED_KEPT: Duration = Duration::from_secs(2);
/// Wrong logins that one address may try in [`KNOCKS_WINDOW`].
pub const KNOCKS_MAX: u32 = 10;
/// See [`KNOCKS_MAX`].
pub const KNOCKS_WINDOW: Duration = Duration::from_secs(10);
/// Refused logins and knocking addresses that are remembered, each.
const REMEMBERED_MAX: usize = 1_024;
/// Logins that are put to the server at once; those of one user one after the other.
const DIALS_MAX: usize = 8;
/// Measured: a handshake that meets a reload of the server's users is refused once, whoever it is.
const TRIES: u32 = 2;
const TRY_PAUSE: Duration = Duration::from_millis(50);
/// The longest name or password.
const WORD_MAX_BYTES: usize = 300;

/// Why somebody does not get in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnterError {
    /// Unknown user or wrong password.
    #[error("the node's server refuses this login")]
    Refused,
    /// Too many wrong logins from there.
    #[error("too many wrong logins from this address")]
    Knocking,
    /// [`GUESTS_MAX`] are connected, all of them busy.
    #[error("{GUESTS_MAX} users are connected already")]
    Full,
    /// The login may not hear its own inbox, without which no answer reaches it.
    #[error("this login is from before there was a door for HTTP")]
    Unfit,
    /// The server does not answer.
    #[error("the node's server does not answer: {0}")]
    Away(String),
}

type Secret = [u8; 32];

/// The door's guests.
pub struct Guests {
    url: String,
    state: Mutex<State>,
    /// By the user's name, so that many requests of one user make one connection.
    dials: [tokio::sync::Mutex<()>; DIALS_MAX],
}

#[derive(Default)]
struct State {
    guests: HashMap<String, Standing>,
    refused: HashMap<Secret, Instant>,
    knocks: HashMap<IpAddr, (Instant, u32)>,
}

struct Standing {
    secret: Secret,
    guest: Arc<Guest>,
    used: Instant,
}

fn secret(pass: &Pass) -> Secret {
    let mut hash = Sha256::new();
    hash.update(pass.user.as_bytes());
    hash.update([0]);
    hash.update(pass.password.as_bytes());
    hash.finalize().into()
}

/// A name becomes part of a subject (the inbox), so it is one token; those that `credentials` makes are.
fn plausible(pass: &Pass) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"-_=".contains(&byte);
    let (user, password) = (&pass.user, &pass.password);
    !user.is_empty()
        && user.bytes().all(token)
        && user.len() <= WORD_MAX_BYTES
        && !password.is_empty()
        && password.len() <= WORD_MAX_BYTES
}

impl Guests {
    /// The guests of the server at `url` (`nats://address:port`).
    pub fn new(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            state: Mutex::default(),
            dials: std::array::from_fn(|_| tokio::sync::Mutex::default()),
        }
    }

    /// The connection as that user, made if there is none. `from` is who asks: wrong logins are counted by it.
    pub async fn enter(&self, pass: &Pass, from: IpAddr) -> Result<Arc<Guest>, EnterError> {
        if !plausible(pass) {
            return Err(EnterError::Refused);
        }
        let secret = secret(pass);
        if let Some(guest) = self.known(pass, &secret, from)? {
            return Ok(guest);
        }
        let shard = usize::from(secret.first().copied().unwrap_or_default()) % DIALS_MAX;
        let Some(dialling) = self.dials.get(shard) else { return Err(EnterError::Full) };
        let _dialling = dialling.lock().await;
        if let Some(guest) = self.known(pass, &secret, from)? {
            return Ok(guest);
        }
        self.make_room(pass)?;
        let guest = match self.dial(pass).await {
            Ok(guest) => Arc::new(guest),
            Err(error) => {
                if error == EnterError::Refused {
                    self.state().remember(secret, from, Instant::now());
                }
                return Err(error);
            }
        };
        let standing = Standing { secret, guest: guest.clone(), used: Instant::now() };
        self.state().guests.insert(pass.user.clone(), standing);
        Ok(guest)
    }

    /// Ends the connections that are lost or idle, and forgets what is old. To be called every few seconds.
    pub fn sweep(&self) {
        let now = Instant::now();
        let mut state = self.state();
        state.guests.retain(|_, standing| {
            let idle = Arc::strong_count(&standing.guest) == 1 && now - standing.used >= IDLE_TIMEOUT;
            !idle && !standing.guest.is_over()
        });
        state.refused.retain(|_, at| now - *at < REFUSED_KEPT);
        state.knocks.retain(|_, (since, _)| now - *since < KNOCKS_WINDOW);
    }

    /// How many users are connected.
    pub fn connected(&self) -> usize {
        self.state().guests.len()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, pass: &Pass, secret: &Secret, from: IpAddr) -> Result<Option<Arc<Guest>>, EnterError> {
        let now = Instant::now();
        let mut state = self.state();
        if let Some(standing) = state.guests.get_mut(&pass.user) {
            if standing.guest.is_over() {
                state.guests.remove(&pass.user);
            } else if standing.secret == *secret {
                standing.used = now;
                return Ok(Some(standing.guest.clone()));
            }
        }
        if state.is_refused(secret, now) {
            return Err(EnterError::Refused);
        }
        if state.knocks(from, now) >= KNOCKS_MAX {
            return Err(EnterError::Knocking);
        }
        Ok(None)
    }

    /// The one that was not used for longest has to go, if nobody uses it now.
    fn make_room(&self, pass: &Pass) -> Result<(), EnterError> {
        let mut state = self.state();
        if state.guests.len() < GUESTS_MAX || state.guests.contains_key(&pass.user) {
            return Ok(());
        }
        let unused = state.guests.iter().filter(|(_, standing)| Arc::strong_count(&standing.guest) == 1);
        let oldest = unused.min_by_key(|(_, standing)| standing.used).map(|(user, _)| user.clone());
        state.guests.remove(&oldest.ok_or(EnterError::Full)?);
        Ok(())
    }

    async fn dial(&self, pass: &Pass) -> Result<Guest, EnterError> {
        let mut attempt = 1;
        loop {
            match Guest::dial(&self.url, pass).await {
                Ok(guest) => return Ok(guest),
                Err(DialError::Refused) if attempt < TRIES => {
                    attempt += 1;
                    tokio::time::sleep(TRY_PAUSE).await;
                }
                Err(DialError::Refused) => return Err(EnterError::Refused),
                Err(DialError::Unfit) => return Err(EnterError::Unfit),
                Err(DialError::Away(cause)) => return Err(EnterError::Away(cause)),
            }
        }
    }
}

impl State {
    fn is_refused(&self, secret: &Secret, now: Instant) -> bool {
        self.refused.get(secret).is_some_and(|at| now - *at < REFUSED_KEPT)
    }

    fn knocks(&self, from: IpAddr, now: Instant) -> u32 {
        let known = self.knocks.get(&from).filter(|(since, _)| now - *since < KNOCKS_WINDOW);
        known.map_or(0, |(_, count)| *count)
    }

    fn remember(&mut self, secret: Secret, from: IpAddr, now: Instant) {
        // Full of those who knock now: forgetting them costs the server some questions, and no memory here.
        if self.refused.len() >= REMEMBERED_MAX {
            self.refused.clear();
        }
        if self.knocks.len() >= REMEMBERED_MAX && !self.knocks.contains_key(&from) {
            self.knocks.clear();
        }
        self.refused.insert(secret, now);
        let knock = self.knocks.entry(from).or_insert((now, 0));
        if now - knock.0 >= KNOCKS_WINDOW {
            *knock = (now, 0);
        }
        knock.1 += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(user: &str, password: &str) -> Pass {
        Pass { user: user.to_owned(), password: password.to_owned() }
    }

    #[test]
    fn a_name_that_would_mean_something_else_in_a_subject_is_none() {
        for (user, password, want) in [
            ("pod-1", "x", true),
            ("mod-operator-work", "x", true),
            ("pod-a=2Eb", "x", true),
            (">", "x", false),
            ("*", "x", false),
            ("pod.1", "x", false),
            ("pod 1", "x", false),
            ("", "x", false),
            ("pod-1", "", false),
        ] {
            assert_eq!(plausible(&pass(user, password)), want, "{user:?} {password:?}");
        }
        assert!(!plausible(&pass(&"a".repeat(301), "x")) && !plausible(&pass("a", &"x".repeat(301))));
    }

    #[test]
    fn who_knocks_is_remembered_for_a_while() {
        let (mut state, began) = (State::default(), Instant::now());
        let (wrong, from) = (secret(&pass("pod-1", "wrong")), IpAddr::from([10, 85, 0, 9]));
        for _ in 0..KNOCKS_MAX {
            state.remember(wrong, from, began);
        }
        assert!(state.is_refused(&wrong, began));
        assert!(!state.is_refused(&secret(&pass("pod-1", "right")), began));
        assert_eq!(state.knocks(from, began), KNOCKS_MAX);
        assert_eq!(state.knocks(IpAddr::from([10, 85, 0, 8]), began), 0);
        assert!(!state.is_refused(&wrong, began + REFUSED_KEPT));
        assert_eq!(state.knocks(from, began + KNOCKS_WINDOW), 0);
        for n in 0..u32::try_from(3 * REMEMBERED_MAX).unwrap() {
            let secret = secret(&pass("pod-1", &n.to_string()));
            state.remember(secret, IpAddr::from(n.to_be_bytes()), began);
        }
        assert!(state.refused.len() <= REMEMBERED_MAX && state.knocks.len() <= REMEMBERED_MAX);
    }
}
