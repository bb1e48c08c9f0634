//! The faults, by name.

/// Which way of the link is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Neither end hears the other.
    Both,
    /// The hub does not hear the node.
    Up,
    /// The node does not hear the hub.
    Down,
}

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Packets between the servers are dropped, in silence.
    Cut(Way),
    /// They are dropped for a second, and for a second they are not.
    Flap,
    /// 64 kbit/s, and everything comes 300 ms late, each way.
    Slow,
    /// The process is stopped (SIGSTOP) for longer than anybody waits, and goes on.
    Stop,
    /// kill -9 of the process.
    Kill,
    /// The power of the whole machine fails: what had not reached the disk is gone.
    PowerLoss,
}

impl Fault {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 8] = [
        Self::Cut(Way::Both),
        Self::Cut(Way::Up),
        Self::Cut(Way::Down),
        Self::Flap,
        Self::Slow,
        Self::Stop,
        Self::Kill,
        Self::PowerLoss,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cut(Way::Both) => "cut",
            Self::Cut(Way::Up) => "cut-up",
            Self::Cut(Way::Down) => "cut-down",
            Self::Flap => "flap",
            Self::Slow => "slow",
            Self::Stop => "stop",
            Self::Kill => "kill",
            Self::PowerLoss => "power",
        }
    }
}
