//! Why a step across the link failed, and whether the same would be taken later.

/// `err_code`s that speak of the stream or the server, not of the message: worth trying again as it is. Full account or
/// server (10002, 10023, 10028, 10047), store failed or full (10077), batch incomplete or too many (10176, 10210, 10211).
const OVERLOAD: [u64; 8] = [10_002, 10_023, 10_028, 10_047, 10_077, 10_176, 10_210, 10_211];

/// Why a step across the link failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The cursor is not where it was expected: read it again.
    #[error("the cursor moved")]
    CursorMoved,
    /// The server refused it.
    #[error("refused by the hub: {cause}")]
    Refused {
        /// NATS' `err_code`; 0 when it gave none.
        code: u64,
        /// Its words.
        cause: String,
    },
    /// No answer in time, or no connection. Whether it was done is unknown.
    #[error("no answer from the hub: {0}")]
    Lost(String),
}

impl LinkError {
    /// Would the same be taken later?
    pub fn is_passing(&self) -> bool {
        match self {
            LinkError::Refused { code, .. } => OVERLOAD.contains(code),
            LinkError::CursorMoved | LinkError::Lost(_) => true,
        }
    }
}
