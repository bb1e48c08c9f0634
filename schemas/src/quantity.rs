//! Kubernetes quantities as numbers, for comparing requests with what a node can allocate.
//!
//! Source: Kubernetes `apimachinery/pkg/api/resource` (suffixes `n u m k M G T P E` and `Ki Mi Gi Ti Pi Ei`,
//! decimal exponents `e3`/`E3`).

/// Reads a quantity as thousandths (`100m` is 100, `2` is 2000, `64Mi` is 64 * 1024 * 1024 * 1000).
/// Rounds up, as Kubernetes does. `None` when it is not a quantity or is negative.
pub fn milli(text: &str) -> Option<u128> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '+').unwrap_or(text.len());
    let (number, suffix) = (text.get(..split)?, text.get(split..)?);
    let (whole, fraction) = number.trim_start_matches('+').split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') || whole.len() > 20 {
        return None;
    }
    let fraction = fraction.get(..fraction.len().min(9)).unwrap_or("");
    let digits: u128 = format!("{whole}{fraction}").trim_start_matches('+').parse().ok()?;
    let (numerator, denominator): (u128, u128) = match suffix {
        "n" => (1, 1_000_000),
        "u" => (1, 1_000),
        "m" => (1, 1),
        "" => (1_000, 1),
        "k" => (1_000_000, 1),
        "M" => (1_000_000_000, 1),
        "G" => (1_000_000_000_000, 1),
        "T" => (1_000_000_000_000_000, 1),
        "P" => (1_000_000_000_000_000_000, 1),
        "E" => (1_000_000_000_000_000_000_000, 1),
        "Ki" => (1_000 << 10, 1),
        "Mi" => (1_000 << 20, 1),
        "Gi" => (1_000 << 30, 1),
        "Ti" => (1_000 << 40, 1),
        "Pi" => (1_000 << 50, 1),
        "Ei" => (1_000 << 60, 1),
        _ => {
            let exponent: u32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            (1_000 * 10u128.checked_pow(exponent.min(18))?, 1)
        }
    };
    let scale = 10u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
    Some(digits.checked_mul(numerator)?.div_ceil(denominator * scale))
}

/// Reads a quantity as whole units, rounded up (bytes for memory).
pub fn units(text: &str) -> Option<u64> {
    u64::try_from(milli(text)?.div_ceil(1000)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_kubernetes_reads_them() {
        for (text, want) in [
            ("100m", 100),
            ("2", 2_000),
            ("0.5", 500),
            (".5", 500),
            ("1.5k", 1_500_000),
            ("64Mi", 64 * 1024 * 1024 * 1000),
            ("1e3", 1_000_000),
            ("1n", 1),
            ("0", 0),
        ] {
            assert_eq!(milli(text), Some(want), "{text}");
        }
        for bad in ["", "m", "1.2.3", "-1", "1Qi", "abc", "1e", "999999999999999999999999"] {
            assert_eq!(milli(bad), None, "{bad}");
        }
        assert_eq!(units("64Mi"), Some(67_108_864));
        assert_eq!(units("1500m"), Some(2));
    }
}
