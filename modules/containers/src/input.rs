//! Everything that can happen to this module, decoded: one closed enum.

use bus::module::{EntryValue, Input, Message};
use schemas::command::{OpenExec, OpenLogs};
use schemas::desired::{Lineage, Local};
use schemas::name::NodeName;
use schemas::subject::{self, DesiredKey, KEY_LINEAGE};

use crate::MODULE;
use crate::effects::Done;

/// One thing that happened.
#[derive(Debug)]
pub enum Event {
    /// The local bucket has this entry.
    Desired(DesiredKey, Box<Local>),
    /// All that stood in the local bucket has been told.
    Current,
    /// The hub has lost reports that it had confirmed; this is its history now.
    Rewound(Lineage),
    /// Somebody wants to read a log.
    Logs(OpenLogs, Message),
    /// Somebody wants to run a program.
    Exec(OpenExec, Message),
    /// From the rim.
    Done(Done),
    /// Time passed.
    Tick,
    /// Of no interest: an entry that was removed says nothing (absence is never deletion).
    Nothing,
}

/// What could not be decoded.
#[derive(Debug)]
pub struct Undecodable {
    /// The subject or key it came on.
    pub subject: String,
    /// Its body.
    pub payload: Vec<u8>,
    /// Why.
    pub reason: String,
}

/// Decodes.
pub fn decode(node: &NodeName, input: Input<Done>) -> Result<Event, Undecodable> {
    match input {
        Input::Tick => Ok(Event::Tick),
        Input::Done(done) => Ok(Event::Done(done)),
        Input::Current { .. } => Ok(Event::Current),
        Input::Entry(entry) => match entry.value {
            EntryValue::Removed(_) => Ok(Event::Nothing),
            EntryValue::Put(payload) => {
                if entry.key == KEY_LINEAGE {
                    return match schemas::decode(&payload) {
                        Ok(lineage) => Ok(Event::Rewound(lineage)),
                        Err(error) => Err(Undecodable {
                            subject: subject::kv(&entry.bucket, &entry.key),
                            reason: error.to_string(),
                            payload,
                        }),
                    };
                }
                let Some(key) = DesiredKey::parse_local(&entry.key) else { return Ok(Event::Nothing) };
                match schemas::decode::<Local>(&payload) {
                    Ok(local) => Ok(Event::Desired(key, Box::new(local))),
                    Err(error) => Err(Undecodable {
                        subject: subject::kv(&entry.bucket, &entry.key),
                        reason: error.to_string(),
                        payload,
                    }),
                }
            }
        },
        Input::Message(message) => {
            let bad = |message: Message, error: schemas::DecodeError| Undecodable {
                subject: message.subject,
                payload: message.payload,
                reason: error.to_string(),
            };
            if message.subject == subject::command(node, MODULE, "logs") {
                match schemas::decode(&message.payload) {
                    Ok(open) => Ok(Event::Logs(open, message)),
                    Err(error) => Err(bad(message, error)),
                }
            } else if message.subject == subject::command(node, MODULE, "exec") {
                match schemas::decode(&message.payload) {
                    Ok(open) => Ok(Event::Exec(open, message)),
                    Err(error) => Err(bad(message, error)),
                }
            } else {
                Ok(Event::Nothing)
            }
        }
        Input::Delivery(_) | Input::Wrote { .. } | Input::Answered { .. } => Ok(Event::Nothing),
    }
}
