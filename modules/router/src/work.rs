//! What a rule makes of a message: is it wanted, and what becomes of it. Pure.

use bytes::Bytes;
use schemas::envelope::Headers;
use schemas::expression::Facts;

use crate::table::Route;

/// What becomes of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Made {
    /// It goes on as this.
    Message(Bytes),
    /// The rule does not want it.
    Unwanted,
}

impl Route {
    /// The rule's filter and map, on one message. An error when an expression cannot be evaluated on it.
    pub fn make(&self, payload: &Bytes, subject: &str, headers: &Headers) -> Result<Made, String> {
        let facts = Facts { payload, subject, headers };
        if let Some(filter) = &self.filter
            && !filter.holds(&facts).map_err(|why| format!("filter: {why}"))?
        {
            return Ok(Made::Unwanted);
        }
        match &self.map {
            None => Ok(Made::Message(payload.clone())),
            Some(map) => {
                let made = map.make(&facts).map_err(|why| format!("map: {why}"))?;
                Ok(Made::Message(made.into()))
            }
        }
    }

    /// As people name it.
    pub fn display(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}
