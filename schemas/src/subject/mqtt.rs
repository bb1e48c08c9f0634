//! Names of what `nats-server` keeps for MQTT clients, in streams of its own, in WORK on a node.

/// QoS 1 and 2 messages while a session waits for them.
pub const STREAM_MQTT_MESSAGES: &str = "$MQTT_msgs";
/// Retained messages.
pub const STREAM_MQTT_RETAINED: &str = "$MQTT_rmsgs";
/// Sessions.
pub const STREAM_MQTT_SESSIONS: &str = "$MQTT_sess";
/// QoS 2 messages whose sender has not released them yet.
pub const STREAM_MQTT_INCOMING: &str = "$MQTT_qos2in";
/// Releases of QoS 2 messages that a session has not confirmed yet.
pub const STREAM_MQTT_RELEASES: &str = "$MQTT_out";

/// Under which subject a QoS 1 or 2 message stands in [`STREAM_MQTT_MESSAGES`].
pub fn mqtt_stored(subject: &str) -> String {
    format!("$MQTT.msgs.{subject}")
}
