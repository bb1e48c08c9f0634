//! Points in time as people write them: `2h` (that long ago), `2026-05-04T10:00:00Z`, or `2026-05-04 10:00` by the
//! clock of this machine.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

use crate::duration;

/// Reads a point in time.
pub fn parse(text: &str) -> Result<Timestamp, String> {
    at(text, Timestamp::now(), TimeZone::system())
}

fn at(text: &str, now: Timestamp, zone: TimeZone) -> Result<Timestamp, String> {
    let text = text.trim();
    if let Ok(ago) = duration::parse(text) {
        let ago = SignedDuration::try_from(ago).map_err(|error| error.to_string())?;
        return now.checked_sub(ago).map_err(|error| error.to_string());
    }
    if let Ok(at) = text.parse::<Timestamp>() {
        return Ok(at);
    }
    let wrong = "write how long ago (90s, 2h, 1h30m, 7d), or a time: 2026-05-04T10:00:00Z, 2026-05-04 10:00";
    let local: DateTime = text.parse().map_err(|_| wrong.to_owned())?;
    local.to_zoned(zone).map(|zoned| zoned.timestamp()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_an_age_or_a_date() {
        let now: Timestamp = "2026-05-04T12:00:00Z".parse().unwrap();
        let berlin = TimeZone::fixed(jiff::tz::offset(2));
        for (text, want) in [
            ("2h", "2026-05-04T10:00:00Z"),
            ("1h30m", "2026-05-04T10:30:00Z"),
            ("7d", "2026-04-27T12:00:00Z"),
            ("2026-05-04T10:00:00Z", "2026-05-04T10:00:00Z"),
            ("2026-05-04T10:00:00+02:00", "2026-05-04T08:00:00Z"),
            ("2026-05-04T10:00", "2026-05-04T08:00:00Z"),
            ("2026-05-04 10:00:30", "2026-05-04T08:00:30Z"),
            ("2026-05-04", "2026-05-03T22:00:00Z"),
        ] {
            assert_eq!(at(text, now, berlin.clone()).unwrap(), want.parse().unwrap(), "{text}");
        }
        for bad in ["", "yesterday", "5", "-2h", "2026-13-01", "25:00"] {
            assert!(at(bad, now, berlin.clone()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn whatever_is_typed_as_a_time_is_read() {
        let samples =
            [b"1h30m".to_vec(), b"2026-05-04T10:00:00+02:00".to_vec(), b"2026-05-04 10:00".to_vec()];
        crate::fuzz::try_bytes("a time", &samples, |bytes| drop(parse(&String::from_utf8_lossy(bytes))));
    }
}
