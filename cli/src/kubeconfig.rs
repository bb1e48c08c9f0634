//! The hub's address and our credential, out of the same kubeconfig that kubectl uses.
//!
//! Read as kubectl reads it: `--kubeconfig`, else every file in `KUBECONFIG`, else `~/.kube/config`; of several files
//! the first that names something wins; relative paths are relative to their file. Understood are a server with its CA
//! and a bearer token, which is what the hub writes. What would make the connection unsafe is refused, and says so.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use saphyr::{LoadableYamlNode, ScalarOwned, YamlOwned};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::failure::{Failure, Outcome};

/// The largest kubeconfig that is read.
const FILE_MAX_BYTES: u64 = 1024 * 1024;
/// Levels that a kubeconfig may have.
const DEPTH_MAX: usize = 128;

/// What a kubeconfig says of one hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hub {
    /// `https://host:port`, perhaps with a path.
    pub server: String,
    /// The CA to trust (PEM).
    pub ca_pem: Vec<u8>,
    /// The name in the server's certificate, where it is not the one in `server`.
    pub tls_server_name: Option<String>,
    /// Bearer token.
    pub token: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct File {
    current_context: Option<String>,
    contexts: Option<Vec<Named>>,
    clusters: Option<Vec<Named>>,
    users: Option<Vec<Named>>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
    context: Option<Context>,
    cluster: Option<Cluster>,
    user: Option<User>,
    /// The file's directory: what relative paths stand on.
    #[serde(skip)]
    dir: PathBuf,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
struct Context {
    cluster: String,
    user: String,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
struct Cluster {
    server: String,
    certificate_authority: Option<PathBuf>,
    certificate_authority_data: Option<String>,
    tls_server_name: Option<String>,
    insecure_skip_tls_verify: bool,
    proxy_url: Option<String>,
}

#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct User {
    token: Option<String>,
    token_file: Option<PathBuf>,
    exec: Option<Value>,
}

/// Finds and reads the kubeconfig. `context`: another than the file's current one.
pub fn load(file: Option<&Path>, context: Option<&str>) -> Outcome<Hub> {
    let env = std::env::var("KUBECONFIG").ok().filter(|paths| !paths.is_empty());
    let home = std::env::var_os("HOME").map(PathBuf::from);
    load_from(&paths(file, env.as_deref(), home.as_deref()), file.is_some(), context)
}

/// Where to look.
fn paths(file: Option<&Path>, env: Option<&str>, home: Option<&Path>) -> Vec<PathBuf> {
    match (file, env) {
        (Some(file), _) => vec![file.to_owned()],
        (None, Some(list)) => list.split(':').filter(|path| !path.is_empty()).map(PathBuf::from).collect(),
        (None, None) => home.map(|home| home.join(".kube/config")).into_iter().collect(),
    }
}

fn load_from(paths: &[PathBuf], explicit: bool, context: Option<&str>) -> Outcome<Hub> {
    let mut merged = File::default();
    let mut found = Vec::new();
    for path in paths.iter().filter(|path| path.exists()) {
        merge(&mut merged, read(path)?, path.parent().unwrap_or(Path::new(".")));
        found.push(path.display().to_string());
    }
    if found.is_empty() {
        let places: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        let place = if places.is_empty() { "~/.kube/config".to_owned() } else { places.join(", ") };
        let next = if explicit {
            "the hub writes it: see the line it prints at its start, `edgewire hub`"
        } else {
            "set KUBECONFIG or pass --kubeconfig (a hub writes one into its --data-dir), or on an edge node pass --edge DIR"
        };
        return Err(Failure::new("EW-CONFIG-NOT-FOUND", format!("no kubeconfig at {place}"), next));
    }
    choose(&merged, context, &found.join(", "))
}

fn invalid(what: &str, cause: impl std::fmt::Display) -> Failure {
    let next = "mend the file, or take the hub's: see the line it prints at its start, `edgewire hub`";
    Failure::new("EW-CONFIG-INVALID", format!("{what}: {cause}"), next)
}

fn read(path: &Path) -> Outcome<File> {
    let shown = format!("kubeconfig {}", path.display());
    let text = read_file(path, &shown)?;
    let text = String::from_utf8(text).map_err(|_| invalid(&shown, "it is not UTF-8 text"))?;
    if is_too_deep(&text) {
        return Err(invalid(&shown, format!("it is nested deeper than {DEPTH_MAX} levels")));
    }
    let document = YamlOwned::load_from_str(&text).map_err(|error| invalid(&shown, error))?;
    let document = document.into_iter().next().map_or(Value::Null, to_json);
    if document.is_null() {
        return Ok(File::default());
    }
    File::deserialize(document).map_err(|error| invalid(&shown, error))
}

/// The reader of YAML follows any depth until its stack is gone. So what can nest is counted first, roughly: brackets that
/// are open, and what stands before a line's first word.
fn is_too_deep(text: &str) -> bool {
    let mut open = 0usize;
    let deep_brackets = text.chars().any(|c| {
        match c {
            '[' | '{' => open += 1,
            ']' | '}' => open = open.saturating_sub(1),
            _ => {}
        }
        open > DEPTH_MAX
    });
    // An indent of one and a mark of two (`- `, `? `) each make a level.
    let before = |line: &str| line.chars().take_while(|c| " -?\t".contains(*c)).count();
    deep_brackets || text.lines().any(|line| before(line) > 2 * DEPTH_MAX)
}

fn read_file(path: &Path, shown: &str) -> Outcome<Vec<u8>> {
    let size_bytes = std::fs::metadata(path).map_err(|error| invalid(shown, error))?.len();
    if size_bytes > FILE_MAX_BYTES {
        return Err(invalid(shown, format!("it has {size_bytes} bytes, over the bound of {FILE_MAX_BYTES}")));
    }
    std::fs::read(path).map_err(|error| invalid(shown, error))
}

/// YAML as JSON, which is all that a kubeconfig uses of it.
fn to_json(node: YamlOwned) -> Value {
    match node {
        YamlOwned::Value(ScalarOwned::Boolean(yes)) => Value::Bool(yes),
        YamlOwned::Value(ScalarOwned::Integer(number)) => number.into(),
        YamlOwned::Value(ScalarOwned::FloatingPoint(number)) => number.into_inner().into(),
        YamlOwned::Value(ScalarOwned::String(text)) | YamlOwned::Representation(text, ..) => text.into(),
        YamlOwned::Sequence(items) => items.into_iter().map(to_json).collect(),
        YamlOwned::Tagged(_, inner) => to_json(*inner),
        YamlOwned::Mapping(pairs) => {
            let mut map = Map::new();
            for (key, value) in pairs {
                if let Value::String(key) = to_json(key) {
                    map.insert(key, to_json(value));
                }
            }
            Value::Object(map)
        }
        _ => Value::Null,
    }
}

fn merge(into: &mut File, from: File, dir: &Path) {
    into.current_context =
        into.current_context.take().or(from.current_context).filter(|name| !name.is_empty());
    for (into, from) in [
        (&mut into.contexts, from.contexts),
        (&mut into.clusters, from.clusters),
        (&mut into.users, from.users),
    ] {
        let into = into.get_or_insert_default();
        for mut named in from.into_iter().flatten() {
            if !into.iter().any(|known| known.name == named.name) {
                dir.clone_into(&mut named.dir);
                into.push(named);
            }
        }
    }
}

fn named<'a>(list: &'a Option<Vec<Named>>, kind: &str, name: &str, shown: &str) -> Outcome<&'a Named> {
    let list = list.as_deref().unwrap_or_default();
    list.iter().find(|named| named.name == name).ok_or_else(|| {
        let names: Vec<&str> = list.iter().map(|named| named.name.as_str()).collect();
        let known = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        Failure::new(
            "EW-CONFIG-INVALID",
            format!("kubeconfig {shown} has no {kind} {name:?} (it has: {known})"),
            "choose another with --context",
        )
    })
}

fn choose(file: &File, context: Option<&str>, shown: &str) -> Outcome<Hub> {
    let Some(name) = context.or(file.current_context.as_deref()) else {
        return Err(Failure::new(
            "EW-CONFIG-INVALID",
            format!("kubeconfig {shown} has no current context"),
            "choose one with --context, or run `kubectl config use-context NAME`",
        ));
    };
    let empty = Context::default();
    let context = named(&file.contexts, "context", name, shown)?.context.as_ref().unwrap_or(&empty);
    let cluster = named(&file.clusters, "cluster", &context.cluster, shown)?;
    let user = named(&file.users, "user", &context.user, shown)?;
    let what = format!("cluster {:?} in kubeconfig {shown}", cluster.name);
    let (server, ca_pem, tls_server_name) = read_cluster(cluster, &what)?;
    let token = read_token(user, &format!("user {:?} in kubeconfig {shown}", user.name))?;
    Ok(Hub { server, ca_pem, tls_server_name, token })
}

fn read_cluster(named: &Named, what: &str) -> Outcome<(String, Vec<u8>, Option<String>)> {
    let cluster = named.cluster.clone().unwrap_or_default();
    if cluster.insecure_skip_tls_verify {
        return Err(Failure::new(
            "EW-CONFIG-INSECURE",
            format!("{what} has insecure-skip-tls-verify, and our token would go to whoever answers"),
            "replace it by certificate-authority-data: the hub's own kubeconfig has it",
        ));
    }
    if !cluster.server.starts_with("https://") {
        return Err(invalid(what, format!("server {:?} does not begin with https://", cluster.server)));
    }
    if let Some(proxy) = cluster.proxy_url.filter(|url| !url.is_empty()) {
        return Err(invalid(what, format!("proxy-url {proxy:?} is not supported")));
    }
    let ca_pem = match (cluster.certificate_authority_data, cluster.certificate_authority) {
        (Some(data), _) if !data.is_empty() => BASE64_STANDARD
            .decode(data.trim())
            .map_err(|error| invalid(what, format!("certificate-authority-data is not base64: {error}")))?,
        (_, Some(path)) => {
            let path = named.dir.join(path);
            read_file(&path, &format!("certificate-authority {} of {what}", path.display()))?
        }
        _ => {
            return Err(invalid(what, "it names no certificate-authority-data and no certificate-authority"));
        }
    };
    Ok((cluster.server, ca_pem, cluster.tls_server_name.filter(|name| !name.is_empty())))
}

fn read_token(named: &Named, what: &str) -> Outcome<String> {
    let user = named.user.clone().unwrap_or_default();
    let token = match (user.token_file, user.token) {
        // As client-go has it: the file, which may be renewed, before the token.
        (Some(path), _) => {
            let path = named.dir.join(path);
            let bytes = read_file(&path, &format!("tokenFile {} of {what}", path.display()))?;
            String::from_utf8_lossy(&bytes).trim().to_owned()
        }
        (None, Some(token)) => token.trim().to_owned(),
        (None, None) => String::new(),
    };
    let printable = token.bytes().all(|byte| byte.is_ascii_graphic());
    match (token.is_empty(), printable, user.exec.is_some()) {
        (false, true, _) => Ok(token),
        (false, false, _) => Err(invalid(what, "its token holds characters that no HTTP header may")),
        (true, _, true) => {
            Err(invalid(what, "it gets its credential from a program (exec), which is not supported"))
        }
        (true, _, false) => Err(invalid(what, "it has no token and no tokenFile")),
    }
}

#[cfg(test)]
#[path = "kubeconfig_tests.rs"]
mod tests;
