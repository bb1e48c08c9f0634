//! What the demo shows: lines of progress while it runs, the screen at its end, and what to try then.

use std::io::IsTerminal;
use std::path::Path;

use super::tally::Tally;

/// Of a container's ID, so much is shown.
const ID_CHARS: usize = 6;

/// Everything that was measured.
#[derive(Debug, Default, Clone)]
pub struct Figures {
    /// The sensor's container at the start.
    pub sensor_id: String,
    /// The display's container at the start.
    pub display_id: String,
    /// What the display showed last before the cut.
    pub live: String,
    /// What the hub said of the node that was cut off.
    pub cut_node: String,
    /// The sensor's container while the link was cut.
    pub cut_id: String,
    /// The sensor's container after the agent was killed and started again.
    pub kill_id: String,
    /// Was it the same process, never stopped?
    pub kill_same_process: bool,
    /// From the node's start to the sensor's process, with no hub.
    pub reboot_ms: u128,
    /// How long there was no link.
    pub outage_s: u64,
    /// Readings made in the outage.
    pub messages: u64,
    /// Events of the outage.
    pub events: usize,
    /// From the heal until the hub had all of them.
    pub heal_ms: i64,
    /// The sender's list against what came.
    pub tally: Tally,
    /// The sensor's restarts, as the hub tells: the reboot's.
    pub sensor_restarts: i64,
    /// The display's.
    pub display_restarts: i64,
    /// The display's container at the end.
    pub display_id_end: String,
}

fn short(id: &str) -> String {
    id.chars().take(ID_CHARS).collect()
}

fn seconds(ms: impl TryInto<i64>) -> String {
    let ms = ms.try_into().unwrap_or(i64::MAX);
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

impl Figures {
    /// The screen.
    pub fn show(&self) -> String {
        let Tally { acked, received, missing, twice, disordered } = &self.tally;
        let same = if self.kill_id == self.sensor_id && self.kill_same_process { "same" } else { "ANOTHER" };
        let cut = if self.cut_id == self.sensor_id { "sensor still Running" } else { "sensor NOT RUNNING" };
        [
            String::new(),
            format!(" edge-a  Ready  sensor   Running  {}", short(&self.sensor_id)),
            format!(" edge-b  Ready  display  Running  {}", short(&self.display_id)),
            format!(" {}    edge-a -> edge-b  {}", bold("live"), self.live),
            format!(" {}     link dropped        {cut}; hub: {}", bold("cut"), self.cut_node),
            format!(" {}    agent kill -9       {same} container {}", bold("kill"), short(&self.kill_id)),
            format!(" {}  everything killed   sensor back in {}, no hub", bold("reboot"), seconds(self.reboot_ms as i64)),
            format!(
                " {}    after {} s          {} messages, {} events in {}",
                bold("heal"),
                self.outage_s,
                self.messages,
                self.events,
                seconds(self.heal_ms)
            ),
            format!(
                " acked {acked}  received {received}  missing {missing}  twice {twice}  disordered {disordered}   edge-b restarts {}",
                self.display_restarts
            ),
        ]
        .join("\n")
    }

    /// Is it what was promised? Names everything that is not.
    pub fn check(&self) -> anyhow::Result<()> {
        let Tally { acked, received, missing, twice, disordered } = self.tally;
        let promises = [
            (self.live.contains("\"n\":"), "the display showed no live reading"),
            (self.cut_node == "Unknown", "the hub did not say Unknown of the node that was cut off"),
            (self.cut_id == self.sensor_id, "the sensor did not run on when the link was cut"),
            (self.kill_id == self.sensor_id, "the sensor's container is another after the agent was killed"),
            (self.kill_same_process, "the sensor's process is another after the agent was killed"),
            (self.messages > 0, "no reading was made in the outage"),
            (self.events > 0, "no event of the outage came to the hub"),
            (acked > 0 && received == acked, "what was received is not what was acknowledged"),
            (missing == 0, "readings are missing"),
            (twice == 0, "readings came twice"),
            (disordered == 0, "readings came out of order"),
            (self.sensor_restarts == 1, "the sensor was not restarted exactly once, by the reboot"),
            (self.display_restarts == 0, "the display was restarted"),
            (self.display_id_end == self.display_id, "the display's container is another"),
        ];
        let broken: Vec<&str> = promises.iter().filter(|(kept, _)| !kept).map(|(_, text)| *text).collect();
        anyhow::ensure!(broken.is_empty(), "EW-DEMO-FAILED: {}", broken.join("; "));
        Ok(())
    }
}

/// What to try while it stays up.
pub fn invitation(home: &Path) -> String {
    let here = std::env::current_dir().unwrap_or_default();
    let shown = |path: &Path| match path.strip_prefix(&here) {
        Ok(rest) => format!("$PWD/{}", rest.display()),
        Err(_) => path.display().to_string(),
    };
    let mut lines = vec![format!("{}  export KUBECONFIG={}", bold("Try:"), shown(&home.join("kubeconfig")))];
    let root = crate::cluster::programs::root();
    let missing = ["kubectl", "edgewire"].iter().any(|name| !in_path(name));
    if missing {
        let (tools, built) = (root.join(".tools/bin"), crate::cluster::programs::ours("edgewire"));
        let built = built.parent().unwrap_or(&built);
        lines.push(format!("      export PATH={}:{}:$PATH", shown(&tools), shown(built)));
    }
    lines.push(
        "      kubectl get pods -w      edgewire tail 'app.>'      make demo-cut NODE=edge-a".to_owned(),
    );
    lines.push("Ctrl-C removes everything.".to_owned());
    lines.join("\n")
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // What `make` puts in front for itself is not in the user's PATH.
    let root = crate::cluster::programs::root();
    std::env::split_paths(&path).filter(|dir| !dir.starts_with(&root)).any(|dir| dir.join(program).is_file())
}

/// One line of progress.
pub fn progress(what: &str, text: &str) {
    let line = format!("demo       {what:<12} {text}");
    println!("{}", if std::io::stdout().is_terminal() { format!("\x1b[2m{line}\x1b[0m") } else { line });
}

fn bold(text: &str) -> String {
    if std::io::stdout().is_terminal() { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Figures {
        Figures {
            sensor_id: "3f9a1c77".into(),
            display_id: "77c1e0aa".into(),
            live: "app.demo.temp {\"n\":118,\"c\":21.4}".into(),
            cut_node: "Unknown".into(),
            cut_id: "3f9a1c77".into(),
            kill_id: "3f9a1c77".into(),
            kill_same_process: true,
            reboot_ms: 649,
            outage_s: 45,
            messages: 450,
            events: 9,
            heal_ms: 1_120,
            tally: Tally { acked: 1240, received: 1240, ..Tally::default() },
            sensor_restarts: 1,
            display_restarts: 0,
            display_id_end: "77c1e0aa".into(),
        }
    }

    #[test]
    fn the_screen_is_the_promised_one() {
        let screen = good().show();
        for line in [
            " edge-a  Ready  sensor   Running  3f9a1c\n",
            " kill    agent kill -9       same container 3f9a1c\n",
            " reboot  everything killed   sensor back in 0.6 s, no hub\n",
            " heal    after 45 s          450 messages, 9 events in 1.1 s\n",
            " acked 1240  received 1240  missing 0  twice 0  disordered 0   edge-b restarts 0",
        ] {
            assert!(screen.contains(line), "{line:?} is not in:\n{screen}");
        }
        good().check().unwrap();
    }

    #[test]
    fn every_broken_promise_is_named() {
        let mut bad = good();
        bad.tally.missing = 1;
        bad.display_restarts = 2;
        let error = bad.check().unwrap_err().to_string();
        assert!(error.contains("missing") && error.contains("the display was restarted"), "{error}");
    }
}
