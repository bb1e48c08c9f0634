//! The sensor's settings, from its environment. What is wrong is named together with what to write instead.

use std::{path::PathBuf, time::Duration};

/// More would only hide an outage in memory.
const IN_FLIGHT_MAX: u64 = 256;

/// What the sensor is told.
#[derive(Debug, PartialEq)]
pub struct Config {
    /// The node's server, with this container's own credential.
    pub url: String,
    /// Where replies may come in, when the credential says where.
    pub inbox_prefix: Option<String>,
    /// The pod's namespace: a token of each subject.
    pub namespace: String,
    /// Directory of the files that outlive the container.
    pub data: PathBuf,
    /// Between two readings.
    pub interval: Duration,
    /// Durable readings sent before the first is acknowledged.
    pub in_flight: u64,
}

impl Config {
    /// Reads the settings through `get`, which is the environment in a container and a table in a test.
    pub fn from_env(get: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let text =
            |name: &str, default: &str| get(name).filter(|v| !v.is_empty()).unwrap_or(default.to_owned());
        let number = |name: &str, default: u64, max: u64| {
            let value = text(name, &default.to_string());
            match value.parse::<u64>() {
                Ok(number) if (1..=max).contains(&number) => Ok(number),
                _ => Err(format!("{name} is {value:?}; set it to a number from 1 to {max}")),
            }
        };
        let url = text("NATS_URL", "");
        if url.is_empty() {
            return Err("NATS_URL is not set; Edgewire sets it in every container, and by hand it is \
                        nats://user:password@address:port"
                .to_owned());
        }
        let namespace = text("EDGEWIRE_NAMESPACE", "default");
        if !namespace.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-') {
            return Err(format!("EDGEWIRE_NAMESPACE is {namespace:?}; set it to the name of a namespace"));
        }
        Ok(Self {
            url,
            inbox_prefix: get("NATS_INBOX_PREFIX").filter(|v| !v.is_empty()),
            namespace,
            data: PathBuf::from(text("SENSOR_DATA", "/data")),
            interval: Duration::from_millis(number("SENSOR_INTERVAL_MS", 100, 3_600_000)?),
            in_flight: number("SENSOR_IN_FLIGHT", 1, IN_FLIGHT_MAX)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Config, String> {
        Config::from_env(|name| pairs.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn only_the_url_is_needed() {
        let config = read(&[("NATS_URL", "nats://u:p@10.0.0.1:4222")]).unwrap();
        assert_eq!((config.namespace.as_str(), config.in_flight), ("default", 1));
        assert_eq!((config.interval, config.inbox_prefix), (Duration::from_millis(100), None));
        assert_eq!(config.data, PathBuf::from("/data"));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let url = ("NATS_URL", "nats://10.0.0.1:4222");
        for (name, value) in [
            ("SENSOR_INTERVAL_MS", "0"),
            ("SENSOR_INTERVAL_MS", "fast"),
            ("SENSOR_IN_FLIGHT", "257"),
            ("EDGEWIRE_NAMESPACE", "a.>"),
        ] {
            let error = read(&[url, (name, value)]).unwrap_err();
            assert!(error.starts_with(name) && error.contains(value), "{error}");
        }
        assert!(read(&[]).unwrap_err().starts_with("NATS_URL"));
    }
}
