//! How much of something is in use, in all and by each: requests, readers, connections, bytes of bodies.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

/// A bound on what all have together, and one on what each has.
pub struct Tally {
    all_max: usize,
    each_max: usize,
    used: Mutex<Used>,
}

#[derive(Default)]
struct Used {
    all: usize,
    each: HashMap<String, usize>,
}

/// A share that was taken; given back when dropped.
pub struct Taken {
    tally: Arc<Tally>,
    who: String,
    count: usize,
}

impl Tally {
    /// Of which all have `all_max`, and each has `each_max`.
    pub fn new(all_max: usize, each_max: usize) -> Arc<Self> {
        Arc::new(Self { all_max, each_max, used: Mutex::default() })
    }

    /// Takes so many; `None` when there are not so many left.
    pub fn take(self: &Arc<Self>, who: &str, count: usize) -> Option<Taken> {
        let mut taken = Taken { tally: self.clone(), who: who.to_owned(), count: 0 };
        taken.more(count).then_some(taken)
    }

    fn used(&self) -> std::sync::MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    /// Takes so many besides; says whether there were so many left.
    pub fn more(&mut self, count: usize) -> bool {
        let mut used = self.tally.used();
        let own = used.each.get(&self.who).copied().unwrap_or(0);
        if used.all + count > self.tally.all_max || own + count > self.tally.each_max {
            return false;
        }
        used.all += count;
        used.each.insert(self.who.clone(), own + count);
        self.count += count;
        true
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut used = self.tally.used();
        used.all -= self.count;
        let own = used.each.get(&self.who).copied().unwrap_or(0).saturating_sub(self.count);
        if own == 0 {
            used.each.remove(&self.who);
        } else {
            used.each.insert(self.who.clone(), own);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_a_share_and_all_have_a_bound() {
        let tally = Tally::new(5, 3);
        let mut first = tally.take("a", 2).unwrap();
        assert!(tally.take("a", 2).is_none() && first.more(1) && !first.more(1));
        let second = tally.take("b", 2).unwrap();
        assert!(tally.take("c", 1).is_none(), "all have five");
        drop(first);
        let third = tally.take("c", 3).unwrap();
        drop((second, third));
        let used = tally.used();
        assert!(used.all == 0 && used.each.is_empty());
    }
}
