//! containers.
