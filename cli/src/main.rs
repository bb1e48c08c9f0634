//! `edgewire`, the operator's tool: starts hubs and edges, makes join tokens, and shows what is going on.
//!
//! It holds no state and decides nothing: it asks the hub's API or a server's bus and shows the answer. One file a
//! command; [`place`] finds the server, [`decode`] makes payloads readable, [`failure`] is how anything goes wrong.
//! Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.

mod acked;
mod api;
mod ask;
mod audit;
mod bench;
mod ca;
mod check;
mod creds;
mod dead;
mod decode;
mod diverged;
mod duration;
mod explain;
mod expression;
mod failure;
mod kubeconfig;
mod launch;
mod loss;
mod modules;
mod node;
mod nodes;
mod notices;
mod place;
mod publish;
mod replay;
mod screen;
mod table;
mod tail;
mod token;
mod topics;
mod when;

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;
use tokio::signal::unix::{SignalKind, signal};

use failure::{Failure, Outcome};
use notices::Notices;
use screen::Screen;

/// Exit code after Ctrl-C, as shells have it: 128 + SIGINT.
const INTERRUPTED: u8 = 130;

const ABOUT: &str = "Containers, device twins and data flows on edge machines, over NATS";
const LONG_ABOUT: &str = "\
Containers, device twins and data flows on edge machines, over NATS.

A hub runs in the cloud (or on a laptop), nodes at the edge. kubectl talks to the hub; this tool starts both, lets nodes
join, and shows what is said on the bus.";
const FIRST_STEPS: &str = "\
First steps:
  edgewire hub                      start a hub; it writes a kubeconfig and says where
  export KUBECONFIG=...             so that kubectl and edgewire find it
  edgewire token create             make a token, then on the new node:
  edgewire check TOKEN              see what the machine lacks for it,
  edgewire join TOKEN               enrol the node, and
  edgewire edge                     run it
  edgewire nodes                    see it
  edgewire tail 'app.>'             see what workloads say
  edgewire tail 'from.>' --since 1h    and what they said in the last hour

On a node, also offline: edgewire tail '>' --edge DIR    (DIR: the node's --data-dir)";

#[derive(Debug, Parser)]
#[command(name = "edgewire", version, about = ABOUT, long_about = LONG_ABOUT, after_help = FIRST_STEPS)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a hub here, back it up, restore it (hands over to cloud-hub, with all arguments; try `edgewire hub --help`)
    #[command(disable_help_flag = true)]
    Hub(PassedOn),
    /// Run this machine as an edge node (hands over to edge-runtime, with all arguments; try `edgewire edge --help`)
    #[command(disable_help_flag = true)]
    Edge(PassedOn),
    /// Enrol this machine as an edge node, with a token that `edgewire token create` made
    Join(JoinArgs),
    /// Before joining: what this machine, or the way to the hub, lacks for a node, each with its cure
    Check(check::CheckArgs),
    /// Show what is said on the bus, and what was, decoded
    Tail(tail::TailArgs),
    /// Send a message, or several; what is to be stored is waited for
    Pub(publish::PubArgs),
    /// Send one message and show the answer
    Req(publish::ReqArgs),
    /// Show what flows now: subjects, rates, who listens, what waits
    Topics(topics::TopicsArgs),
    /// Say what becomes of a message on a subject: its class, who may, where it is stored, whether it crosses
    Explain(explain::ExplainArgs),
    /// Say stored messages again under other subjects
    Replay(replay::ReplayArgs),
    /// List what could not be decoded or applied; show one, say it again, remove it
    Dead(dead::DeadArgs),
    /// Measure the bus from here: messages a second and latencies
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// List the nodes
    Nodes(place::ListArgs),
    /// List the machines that have joined, have one change its keys, shut one out
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// List the hub's authorities, and have another take the present one's place
    #[command(subcommand)]
    Ca(ca::CaCommand),
    /// List and renew the certificate that the hub's servers show
    #[command(subcommand)]
    Certificate(ca::CertificateCommand),
    /// List the modules of the hub and of every node: state, restarts, flows
    Modules(modules::ModulesArgs),
    /// List what nodes have and the hub does not, after the hub came back older than they are
    Diverged(diverged::DivergedArgs),
    /// Have a node drop an object that the hub does not have: its pod is stopped
    Release(diverged::ReleaseArgs),
    /// Make, list and revoke the tokens with which nodes join
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Make, list and revoke logins on a node, for devices and programs outside pods
    #[command(subcommand)]
    Creds(creds::CredsCommand),
    /// Show who did what, and who was refused what, at the hub and on the nodes
    Audit(audit::AuditArgs),
    /// Show what nodes sent and the hub has: what is missing, what came twice, what was dropped and why
    Loss(loss::LossArgs),
    /// Print a shell's completion script: source <(edgewire completion bash)
    Completion {
        /// The shell
        #[arg(value_parser = clap::builder::PossibleValuesParser::new(["bash", "zsh", "fish"]))]
        shell: String,
    },
    /// Print the version
    Version,
}

#[derive(Debug, clap::Args)]
struct PassedOn {
    /// Arguments of the program
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    args: Vec<OsString>,
}

#[derive(Debug, clap::Args)]
struct JoinArgs {
    /// The token
    token: String,
    /// Where the node keeps what it has
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The node's name [default: the machine's]
    #[arg(long, value_name = "NODE")]
    name: Option<schemas::name::NodeName>,
    /// Join as another machine: make new keys, after the old ones were revoked
    #[arg(long)]
    new_keys: bool,
    /// HTTP proxy on the way to the hub, http://[USER:PASSWORD@]HOST:PORT, kept for the node; `none` for none. With a
    /// password, better set the variable: a command line is seen by everybody here [default: HTTPS_PROXY, as NO_PROXY allows]
    #[arg(long, env = "EDGEWIRE_PROXY", value_name = "URL", hide_env_values = true)]
    proxy: Option<String>,
}

impl JoinArgs {
    fn passed_on(self) -> Vec<OsString> {
        let mut args: Vec<OsString> = vec!["join".into(), self.token.into()];
        if let Some(dir) = self.data_dir {
            args.extend(["--data-dir".into(), dir.into()]);
        }
        if let Some(name) = self.name {
            args.extend(["--name".into(), name.as_str().into()]);
        }
        if self.new_keys {
            args.push("--new-keys".into());
        }
        args
    }
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print(); // nowhere left to say that it failed
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    match dispatch(cli.command) {
        Ok(code) => code,
        Err(failure) => {
            if let Some(line) = failure.line(screen::may_colour(std::io::stderr().is_terminal())) {
                eprintln!("{line}");
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
    }
}

fn dispatch(command: Command) -> Outcome<ExitCode> {
    match command {
        Command::Hub(passed) => launch::become_program(launch::HUB, &passed.args, &[])?,
        Command::Edge(passed) => launch::become_program(launch::EDGE, &passed.args, &[])?,
        Command::Join(args) => {
            let proxy = args.proxy.clone().map(|proxy| (check::PROXY_VARIABLE, proxy));
            launch::become_program(launch::EDGE, &args.passed_on(), proxy.as_slice())?;
        }
        command => return run(command),
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs what talks to others, until it is done, interrupted, or nobody reads it any more.
fn run(command: Command) -> Outcome<ExitCode> {
    let failed = |error| {
        Failure::new("EW-START-FAILED", format!("cannot start: {error}"), "is the machine out of memory?")
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
    let outcome = runtime.block_on(async {
        // Listening to the log before any connection is made.
        let notices = Notices::install();
        let mut screen = Screen::new();
        let mut interrupt = signal(SignalKind::interrupt()).map_err(failed)?;
        let mut terminate = signal(SignalKind::terminate()).map_err(failed)?;
        // Ending it is how one ends a tail.
        let stopped = if matches!(command, Command::Tail(_)) { 0 } else { INTERRUPTED };
        tokio::select! {
            outcome = perform(command, &mut screen, &notices) => outcome.map(|()| ExitCode::SUCCESS),
            _ = interrupt.recv() => Ok(ExitCode::from(stopped)),
            _ = terminate.recv() => Ok(ExitCode::from(stopped)),
            () = screen::reader_gone() => Err(Failure::PipeClosed),
        }
    });
    // A write that nobody reads must not hold us.
    runtime.shutdown_background();
    outcome
}

async fn perform(command: Command, screen: &mut Screen, notices: &Notices) -> Outcome<()> {
    match command {
        Command::Check(args) => check::run(args, screen).await,
        Command::Tail(args) => tail::run(args, screen, notices).await,
        Command::Pub(args) => publish::publish(args, screen, notices).await,
        Command::Req(args) => publish::request(args, screen, notices).await,
        Command::Topics(args) => topics::run(args, screen, notices).await,
        Command::Explain(args) => explain::run(args, screen).await,
        Command::Replay(args) => replay::run(args, screen, notices).await,
        Command::Dead(args) => dead::run(args, screen).await,
        Command::Bench(command) => bench::run(command, screen, notices).await,
        Command::Nodes(args) => nodes::run(args, screen).await,
        Command::Node(command) => node::run(command, screen).await,
        Command::Ca(command) => ca::ca(command, screen).await,
        Command::Certificate(command) => ca::certificate(command, screen).await,
        Command::Modules(args) => modules::run(args, screen, notices).await,
        Command::Audit(args) => audit::run(args, screen).await,
        Command::Loss(args) => loss::run(args, screen).await,
        Command::Diverged(args) => diverged::run(args, screen, notices).await,
        Command::Release(args) => diverged::release(args, screen).await,
        Command::Creds(command) => creds::run(command, screen).await,
        Command::Token(command) => token::run(command, screen).await,
        Command::Completion { shell } => screen.print(&completion(&shell)).await,
        Command::Version => screen.print(concat!("edgewire ", env!("CARGO_PKG_VERSION"), "\n")).await,
        Command::Hub(_) | Command::Edge(_) | Command::Join(_) => Ok(()), // handed over already
    }
}

fn completion(shell: &str) -> String {
    let shell = match shell {
        "zsh" => Shell::Zsh,
        "fish" => Shell::Fish,
        _ => Shell::Bash,
    };
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "edgewire", &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

/// What decoders are tried with: the file needs nothing but std, and stands with the tests of all crates.
#[cfg(test)]
#[path = "../../tests/src/fuzz.rs"]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn completion_knows_every_command() {
        for shell in ["bash", "zsh", "fish"] {
            let script = completion(shell);
            for command in Cli::command().get_subcommands() {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
            assert!(script.contains("--since") || script.contains("-l since"), "{shell}: flags too");
        }
    }

    #[test]
    fn a_program_gets_all_its_arguments() {
        let parse = |line: &[&str]| Cli::try_parse_from(line).unwrap().command;
        let Command::Edge(passed) = parse(&["edgewire", "edge", "--help", "-c", "x", "--", "y"]) else {
            panic!()
        };
        assert_eq!(passed.args, ["--help", "-c", "x", "--", "y"]);
        let Command::Hub(passed) = parse(&["edgewire", "hub"]) else { panic!() };
        assert!(passed.args.is_empty());
        let join = ["edgewire", "join", "ew1.x", "--name", "edge-a", "--proxy", "http://u:hush@p:1"];
        let Command::Join(join) = parse(&join) else { panic!() };
        assert_eq!(join.proxy.as_deref(), Some("http://u:hush@p:1"));
        // Its password is not for everybody's eyes.
        assert_eq!(join.passed_on(), ["join", "ew1.x", "--name", "edge-a"]);
    }
}
