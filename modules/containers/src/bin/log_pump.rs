//! The log pump on its own: what `edge-runtime log-pump SPEC` does. See `containers::runtime::logs`.

fn main() -> std::process::ExitCode {
    containers::runtime::logs::log_pump_main()
}
