//! What is listened to: one subscription for each user and subject filter, shared by all readers of it, and kept for a while
//! when the last one went, so that who comes back finds what was said meanwhile in its [`Ring`].

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bus::guest::{Ear, EnterError, Guest, GuestError, Guests, Heard, Pass};
use bus::link::LinkError;
use bytes::Bytes;
use schemas::Timestamp;
use schemas::command::Refusal;
use schemas::object::new_uid;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::captures::Captures;
use crate::frame;
use crate::held::Held;
use crate::refusal;
use crate::ring::{Next, RING_MAX_AGE_MS, Ring, Start};

/// Subject filters that are listened to at once; each may hold a ring.
pub const FILTERS_MAX: usize = 64;
/// Of those, one user's.
pub const FILTERS_PER_USER_MAX: usize = 8;
/// Rings are looked at so often, whether something in them is too old.
const AGE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two tries to listen again; longer each time, up to the last.
const AGAIN_PAUSE: Duration = Duration::from_millis(50);
const AGAIN_PAUSE_MAX: Duration = Duration::from_secs(1);
/// Between looks for what was heard and is not stored yet; twice as long each time, up to the last.
const HELD_PAUSE: Duration = Duration::from_millis(5);
const HELD_PAUSE_MAX: Duration = Duration::from_secs(2);
const AWAY: &str = "the connection to the node's server was lost; what was said meanwhile is not known";
const FAST: &str = "messages came faster than they could be taken; some are missing";

type Key = (String, String);

/// All that is listened to.
pub struct Listening {
    guests: Arc<Guests>,
    captures: Arc<Captures>,
    heard: Mutex<HashMap<Key, Arc<Channel>>>,
    /// One is opened after the other: two readers of a filter make one subscription.
    opening: tokio::sync::Mutex<()>,
    pumps: TaskTracker,
    stop: CancellationToken,
}

/// One filter of one user.
struct Channel {
    ring: Mutex<Ring>,
    /// The stream that has it; then the ring stays empty, and what is heard only wakes the readers.
    held: Option<Held>,
    /// Changes with each message.
    head: watch::Sender<u64>,
    readers: AtomicUsize,
    /// When the last reader went.
    quiet: Mutex<Instant>,
    ended: CancellationToken,
    refused: Mutex<Option<Refusal>>,
}

/// One who reads. Dropped, the channel knows that it went.
pub struct Reader {
    channel: Arc<Channel>,
    head: watch::Receiver<u64>,
    number: u64,
    gap: bool,
}

/// What a reader is to be told.
pub enum Tell {
    /// This.
    Frames(Vec<Bytes>),
    /// That it is too slow, and then no more.
    Slow,
    /// That it ends; and why, if coming back does not help.
    End(Option<Refusal>),
}

impl Listening {
    /// Nothing yet. All of it ends with `stop`.
    pub fn new(guests: Arc<Guests>, captures: Arc<Captures>, stop: CancellationToken) -> Arc<Self> {
        let (heard, opening, pumps) = Default::default();
        Arc::new(Self { guests, captures, heard, opening, pumps, stop })
    }

    /// Reads what is said on `filter`, from where `last` says, as that guest may.
    pub async fn read(
        self: &Arc<Self>,
        guest: &Arc<Guest>,
        filter: &str,
        last: Option<&str>,
        from: IpAddr,
    ) -> Result<Reader, Refusal> {
        let key = (guest.pass().user.clone(), filter.to_owned());
        if let Some(reader) = self.join(&key, last) {
            return reader.placed(last).await;
        }
        let _opening = self.opening.lock().await;
        if let Some(reader) = self.join(&key, last) {
            return reader.placed(last).await;
        }
        self.make_room(&key.0)?;
        // What one may hear one may read where it is held: the server has said that it may.
        let ear = guest.listen(filter).await.map_err(|error| refusal::of_guest(&error))?;
        let held = match self.captures.holding(filter).await {
            Some((bus, stream)) => Held::find(bus, stream, filter).await,
            None => None,
        };
        let channel = Arc::new(Channel::new(held));
        self.heard().insert(key.clone(), channel.clone());
        let reader = self.join(&key, last);
        let pump = Pump { listening: self.clone(), key, channel, pass: guest.pass().clone(), from };
        self.pumps.spawn(pump.run(ear));
        reader.ok_or_else(|| refusal::of_guest(&GuestError::Lost))?.placed(last).await
    }

    /// How many filters are listened to.
    pub fn filters(&self) -> usize {
        self.heard().len()
    }

    fn heard(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Arc<Channel>>> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(&self, key: &Key, last: Option<&str>) -> Option<Reader> {
        let heard = self.heard();
        let channel = heard.get(key).filter(|channel| !channel.ended.is_cancelled())?;
        channel.readers.fetch_add(1, Ordering::SeqCst);
        let (number, gap) = match channel.ring().start(last) {
            Start::At(number) => (number, false),
            Start::AfterGap(number) => (number, true),
        };
        Some(Reader { channel: channel.clone(), head: channel.head.subscribe(), number, gap })
    }

    /// The filter that nobody has read for longest has to go: of this user, or of anybody.
    fn make_room(&self, user: &str) -> Result<(), Refusal> {
        let mut heard = self.heard();
        let own = heard.keys().filter(|(owner, _)| owner == user).count();
        let of_user = own >= FILTERS_PER_USER_MAX;
        if !of_user && heard.len() < FILTERS_MAX {
            return Ok(());
        }
        let unread = heard.iter().filter(|((owner, _), channel)| {
            (!of_user || owner == user) && channel.readers.load(Ordering::SeqCst) == 0
        });
        let oldest = unread.min_by_key(|(_, channel)| channel.quiet_since()).map(|(key, _)| key.clone());
        let oldest = oldest.ok_or_else(|| {
            let bound = if of_user {
                format!("{FILTERS_PER_USER_MAX} subjects are listened to by this login")
            } else {
                format!("{FILTERS_MAX} subjects are listened to")
            };
            refusal::busy(&format!("{bound}; end one, or use a wildcard"))
        })?;
        if let Some(channel) = heard.remove(&oldest) {
            channel.ended.cancel();
        }
        Ok(())
    }
}

impl Channel {
    fn new(held: Option<Held>) -> Self {
        let name: String = new_uid().chars().filter(char::is_ascii_hexdigit).take(12).collect();
        Self {
            ring: Mutex::new(Ring::new(name)),
            held,
            head: watch::Sender::new(0),
            readers: AtomicUsize::new(0),
            quiet: Mutex::new(Instant::now()),
            ended: CancellationToken::new(),
            refused: Mutex::default(),
        }
    }

    fn ring(&self) -> std::sync::MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn quiet_since(&self) -> Instant {
        *self.quiet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, frame: impl FnOnce(&str) -> Bytes) {
        if self.held.is_none() {
            self.ring().push(Timestamp::now(), frame);
        }
        self.head.send_modify(|head| *head += 1);
    }

    /// Has nobody read it for as long as a ring keeps anything?
    fn is_forgotten(&self) -> bool {
        self.readers.load(Ordering::SeqCst) == 0
            && self.quiet_since().elapsed() >= Duration::from_millis(RING_MAX_AGE_MS)
    }

    fn end(&self, refusal: Option<Refusal>) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
        self.ended.cancel();
    }
}

/// Fills one ring.
struct Pump {
    listening: Arc<Listening>,
    key: Key,
    channel: Arc<Channel>,
    pass: Pass,
    from: IpAddr,
}

impl Pump {
    async fn run(self, mut ear: Ear) {
        let refused = loop {
            let heard = tokio::select! {
                heard = ear.next() => heard,
                () = tokio::time::sleep(AGE_INTERVAL) => {
                    self.channel.ring().age(Timestamp::now());
                    if self.forget() {
                        break None;
                    }
                    continue;
                }
                () = self.channel.ended.cancelled() => break None,
                () = self.listening.stop.cancelled() => break None,
            };
            match heard {
                Some(Heard::Message(message)) => self
                    .channel
                    .push(|id| frame::message(id, &message.subject, &message.headers, &message.payload)),
                Some(Heard::Dropped) => self.channel.push(|id| frame::gap(id, FAST)),
                None => match self.again().await {
                    Ok(fresh) => {
                        ear = fresh;
                        self.channel.push(|id| frame::gap(id, AWAY));
                    }
                    Err(refused) => break refused,
                },
            }
        };
        self.channel.end(refused);
        let mut heard = self.listening.heard();
        if heard.get(&self.key).is_some_and(|standing| Arc::ptr_eq(standing, &self.channel)) {
            heard.remove(&self.key);
        }
    }

    /// Gives it up if nobody reads it. Under the lock under which readers come.
    fn forget(&self) -> bool {
        let _heard = self.listening.heard();
        let forgotten = self.channel.is_forgotten();
        if forgotten {
            self.channel.ended.cancel();
        }
        forgotten
    }

    /// Listens again, when the server is back; the error is what is to be told to those who read.
    async fn again(&self) -> Result<Ear, Option<Refusal>> {
        let mut pause = AGAIN_PAUSE;
        loop {
            match self.listening.guests.enter(&self.pass, self.from).await {
                Ok(guest) => match guest.listen(&self.key.1).await {
                    Ok(ear) => return Ok(ear),
                    Err(error @ GuestError::Forbidden(_)) => return Err(Some(refusal::of_guest(&error))),
                    Err(_) => {}
                },
                Err(error @ (EnterError::Refused | EnterError::Unfit)) => {
                    return Err(Some(refusal::of_enter(&error)));
                }
                Err(_) => {}
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(AGAIN_PAUSE_MAX),
                () = self.channel.ended.cancelled() => return Err(None),
                () = self.listening.stop.cancelled() => return Err(None),
            }
            if self.forget() {
                return Err(None);
            }
        }
    }
}

impl Reader {
    /// At its place in the stream, where one has it.
    async fn placed(mut self, last: Option<&str>) -> Result<Self, Refusal> {
        if let Some(held) = &self.channel.held {
            let start = held.start(last).await.inspect_err(|error| self.lost(error));
            let away = |error: LinkError| refusal::away(&format!("{error}; try again"));
            (self.number, self.gap) = match start.map_err(away)? {
                Start::At(number) => (number, false),
                Start::AfterGap(number) => (number, true),
            };
        }
        Ok(self)
    }

    /// The ID before the first message that is told.
    pub fn id(&self) -> String {
        let before = self.number.saturating_sub(1);
        self.channel.held.as_ref().map_or_else(|| self.channel.ring().id(before), |held| held.id(before))
    }

    /// Is something missing before it?
    pub fn has_gap(&self) -> bool {
        self.gap
    }

    /// What comes next; waits for it.
    pub async fn next(&mut self) -> Tell {
        let channel = self.channel.clone();
        if let Some(held) = &channel.held {
            return self.next_held(held).await;
        }
        loop {
            self.head.borrow_and_update();
            match self.channel.ring().read(self.number) {
                Next::Frames(frames, number) => {
                    self.number = number;
                    return Tell::Frames(frames);
                }
                Next::Behind => return Tell::Slow,
                Next::Nothing => {}
            }
            tokio::select! {
                // What was heard before the end is told.
                biased;
                _ = self.head.changed() => {}
                () = self.channel.ended.cancelled() => {
                    let refused = self.channel.refused.lock().unwrap_or_else(PoisonError::into_inner);
                    return Tell::End(refused.clone());
                }
            }
        }
    }
}

impl Reader {
    async fn next_held(&mut self, held: &Held) -> Tell {
        let mut pause = HELD_PAUSE;
        loop {
            match held.read(self.number).await {
                Ok(Some((frames, number))) => {
                    self.number = number;
                    return Tell::Frames(frames);
                }
                Ok(None) => {}
                Err(error) => {
                    self.lost(&error);
                    return Tell::End(None);
                }
            }
            tokio::select! {
                biased;
                () = self.channel.ended.cancelled() => {
                    let refused = self.channel.refused.lock().unwrap_or_else(PoisonError::into_inner);
                    return Tell::End(refused.clone());
                }
                _ = self.head.changed() => pause = HELD_PAUSE,
                // It may be heard before it is stored: what was said is looked for a few times more.
                () = tokio::time::sleep(pause), if pause <= HELD_PAUSE_MAX => pause *= 2,
            }
        }
    }

    /// The stream cannot be read. Who comes back finds out what there is then.
    fn lost(&self, error: &LinkError) {
        tracing::debug!(%error, "what is held cannot be read");
        self.channel.end(None);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        *self.channel.quiet.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.channel.readers.fetch_sub(1, Ordering::SeqCst);
    }
}
