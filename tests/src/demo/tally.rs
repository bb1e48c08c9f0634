//! What the hub received, judged by the sender's own list of what was acknowledged to it.

use std::collections::BTreeSet;

/// The counts.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Readings on the sender's list.
    pub acked: u64,
    /// Messages that came, of readings on the list.
    pub received: u64,
    /// Readings on the list that did not come.
    pub missing: u64,
    /// Messages whose reading had come already.
    pub twice: u64,
    /// Messages that came behind a later reading.
    pub disordered: u64,
}

/// Counts: `acked` is the sender's list, `received` what came, in the order in which it came. What came beyond the list
/// (stored, but its acknowledgement never reached the sender's disk) is no concern of the list.
pub fn tally(acked: &[u64], received: &[u64]) -> Tally {
    let list: BTreeSet<u64> = acked.iter().copied().collect();
    let mut came = BTreeSet::new();
    let mut highest = 0;
    let mut out = Tally { acked: acked.len() as u64, ..Tally::default() };
    for n in received.iter().copied().filter(|n| list.contains(n)) {
        out.received += 1;
        if !came.insert(n) {
            out.twice += 1;
        } else if n < highest {
            out.disordered += 1;
        }
        highest = highest.max(n);
    }
    out.missing = list.difference(&came).count() as u64;
    out
}

/// The sender's list: one number a line; a last line without its end is not on it yet.
pub fn acked(log: &str) -> Vec<u64> {
    let complete = log.rsplit_once('\n').map_or("", |(complete, _)| complete);
    complete.lines().filter_map(|line| line.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_fault_is_counted_as_itself() {
        let count = |received: &[u64]| {
            let Tally { received, missing, twice, disordered, .. } = tally(&[1, 2, 3, 4], received);
            (received, missing, twice, disordered)
        };
        assert_eq!(count(&[1, 2, 3, 4]), (4, 0, 0, 0));
        assert_eq!(count(&[1, 2, 3, 4, 5]), (4, 0, 0, 0), "beyond the list");
        assert_eq!(count(&[1, 2, 4]), (3, 1, 0, 0));
        assert_eq!(count(&[1, 2, 2, 3, 4]), (5, 0, 1, 0));
        assert_eq!(count(&[1, 3, 2, 4]), (4, 0, 0, 1));
        assert_eq!(count(&[]), (0, 4, 0, 0));
    }

    #[test]
    fn a_torn_line_is_not_on_the_list() {
        assert_eq!(acked("1\n2\n3"), [1, 2]);
        assert_eq!(acked("1\n2\n"), [1, 2]);
        assert!(acked("").is_empty());
    }
}
