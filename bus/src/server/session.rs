//! Starting a child in a session of its own, so that neither our end nor a Ctrl-C at our terminal is its end.
//!
//! The one place here that needs `unsafe`: what runs between fork and exec may only make async-signal-safe calls, and
//! `setsid(2)` is one.
#![allow(unsafe_code)]

/// Makes `command` start in its own session.
pub fn detach(command: &mut tokio::process::Command) {
    // SAFETY: the closure only calls setsid(2), which is async-signal-safe, and allocates nothing.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(|_| ()).map_err(std::io::Error::from));
    }
}
