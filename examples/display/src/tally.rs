//! What came on each subject, judged by the counter that the values carry.

use std::{collections::BTreeMap, fmt};

/// Subjects that are counted; values on further ones are shown, and counted together.
const SUBJECTS_MAX: usize = 64;

/// The counts of one subject.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Values that came.
    pub received: u64,
    /// Counters that were jumped over and have not come.
    pub missing: u64,
    /// Values whose counter was not above the highest before it: late, twice, or of a sender that started again.
    pub disordered: u64,
    highest: Option<u64>,
}

impl Tally {
    fn count(&mut self, counter: Option<u64>) {
        self.received += 1;
        let Some(n) = counter else { return };
        match self.highest {
            // The first value says where the count begins: a live listener has no claim on what was before.
            None => self.highest = Some(n),
            Some(highest) if n > highest => {
                self.missing += n - highest - 1;
                self.highest = Some(n);
            }
            Some(_) => self.disordered += 1,
        }
    }
}

/// The counts of all subjects.
#[derive(Debug, Default)]
pub struct Tallies {
    subjects: BTreeMap<String, Tally>,
    received: u64,
}

impl Tallies {
    /// Counts one value.
    pub fn count(&mut self, subject: &str, counter: Option<u64>) {
        self.received += 1;
        if let Some(tally) = self.subjects.get_mut(subject) {
            tally.count(counter);
        } else if self.subjects.len() < SUBJECTS_MAX {
            self.subjects.entry(subject.to_owned()).or_default().count(counter);
        } else {
            self.subjects.entry("(others)".to_owned()).or_default().count(None);
        }
    }

    /// All values that came.
    pub fn received(&self) -> u64 {
        self.received
    }
}

impl fmt::Display for Tallies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (subject, tally) in &self.subjects {
            let Tally { received, missing, disordered, .. } = tally;
            writeln!(f, "total {subject} received {received} missing {missing} disordered {disordered}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_and_repeats_are_told() {
        for (counters, missing, disordered) in [
            (vec![5, 6, 7], 0, 0),
            (vec![5, 8, 9], 2, 0),
            (vec![5, 6, 6, 7], 0, 1),
            (vec![5, 9, 6, 10], 3, 1),
            (vec![], 0, 0),
        ] {
            let mut tally = Tally::default();
            counters.iter().for_each(|n| tally.count(Some(*n)));
            let told = (tally.received, tally.missing, tally.disordered);
            assert_eq!(told, (counters.len() as u64, missing, disordered), "{counters:?}");
        }
    }

    #[test]
    fn subjects_are_bounded() {
        let mut tallies = Tallies::default();
        for n in 0..SUBJECTS_MAX * 2 {
            tallies.count(&format!("app.demo.{n}"), None);
        }
        assert_eq!(tallies.subjects.len(), SUBJECTS_MAX + 1);
        assert_eq!(tallies.received(), SUBJECTS_MAX as u64 * 2);
        assert!(tallies.to_string().contains("total (others) received 64 missing 0 disordered 0\n"));
    }
}
