//! Durations as people write them: `500ms`, `5s`, `10m`, `1h30m`, `7d`.

use std::time::Duration;

/// The longest duration that is accepted: beyond it is a slip.
const DURATION_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Reads a duration. Every number needs its unit.
pub fn parse(text: &str) -> Result<Duration, String> {
    let wrong = || "write it as a number and a unit: 500ms, 5s, 10m, 1h30m, 7d".to_owned();
    let mut total_ms: u64 = 0;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(wrong()),
        };
        let number: u64 = number.parse().map_err(|_| wrong())?;
        total_ms = number.checked_mul(unit_ms).and_then(|ms| total_ms.checked_add(ms)).ok_or_else(wrong)?;
        rest = tail;
    }
    let total = Duration::from_millis(total_ms);
    if total.is_zero() || total > DURATION_MAX {
        return Err("it must be more than nothing and at most ten years".to_owned());
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_what_people_write() {
        for (text, ms) in [("500ms", 500), ("5s", 5_000), ("1h30m", 5_400_000), ("7d", 604_800_000)] {
            assert_eq!(parse(text).unwrap().as_millis(), ms, "{text}");
        }
        for bad in
            ["", "5", "s", "5 s", "1.5h", "-1s", "0s", "5x", "99999999999999999999s", "99999d", "1hour"]
        {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }
}
