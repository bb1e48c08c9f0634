//! Why a command stopped: a stable code, the cause, and what to try next, in one line on stderr.
//!
//! `EW-CONFIG-NOT-FOUND: no kubeconfig at /root/.kube/config; set KUBECONFIG or pass --kubeconfig`. The codes are listed
//! in docs/cli.md; scripts may match on them. What a remote side says ends up in `cause`, so everything is made safe for
//! a terminal before it is printed.

use std::fmt;

use crate::decode::safe;

/// Why a command stopped.
#[derive(Debug)]
pub enum Failure {
    /// Whoever read our output has gone (`edgewire tail … | head -1`): nothing is wrong.
    PipeClosed,
    /// Something to tell.
    Problem {
        /// Stable, `EW-…`.
        code: String,
        /// What happened, naming the file, subject or node.
        cause: String,
        /// The next command or step to try.
        next: String,
    },
}

/// What every command gives.
pub type Outcome<T> = Result<T, Failure>;

impl Failure {
    /// A problem with its code, its cause and what to try.
    pub fn new(code: &str, cause: impl fmt::Display, next: impl fmt::Display) -> Self {
        Self::Problem { code: code.to_owned(), cause: cause.to_string(), next: next.to_string() }
    }

    /// Writing our output failed.
    pub fn output(error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::PipeClosed;
        }
        Self::new("EW-OUTPUT-FAILED", format!("cannot write the output: {error}"), "is the disk full?")
    }

    /// The line for stderr; `None` when there is nothing to tell.
    pub fn line(&self, colour: bool) -> Option<String> {
        let Self::Problem { code, cause, next } = self else { return None };
        let (on, off) = if colour { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
        Some(format!("{on}{}{off}: {}; {}", safe(code), safe(cause), safe(next)))
    }
}

/// An error with all its causes, which libraries print only one at a time.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_safe_line() {
        let problem = Failure::new("EW-X", "bad \x1b[2Jname\nx", "try y");
        assert_eq!(problem.line(false).unwrap(), "EW-X: bad \\u{1b}[2Jname\\nx; try y");
        assert_eq!(problem.line(true).unwrap(), "\x1b[1;31mEW-X\x1b[0m: bad \\u{1b}[2Jname\\nx; try y");
        let pipe = Failure::output(&std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert!(pipe.line(true).is_none());
    }
}
