//! Names of the hub's audit.

use super::token;

/// Hub stream of what was done (`ew.audit.done.>`).
pub const STREAM_AUDIT: &str = "AUDIT";
/// Hub stream of what was refused (`ew.audit.refused.>`).
pub const STREAM_REFUSED: &str = "REFUSED";

/// Subject of an audit record at the hub: `ew.audit.<done|refused>.<node>.<verb>`.
pub fn audit(refused: bool, node: &str, verb: &str) -> String {
    let outcome = if refused { "refused" } else { "done" };
    format!("ew.audit.{outcome}.{}.{}", token(node), token(verb))
}

/// The type of event that is a record for the hub's audit.
pub const EVENT_AUDIT: &str = "Audit";

/// All audit records of what was done, or of what was refused.
pub fn audit_filter(refused: bool) -> String {
    format!("ew.audit.{}.>", if refused { "refused" } else { "done" })
}
