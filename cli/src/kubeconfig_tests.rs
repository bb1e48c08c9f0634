//! Kubeconfigs as they are found in the field, and what is wrong with some of them.

use super::*;

const TWO_CONTEXTS: &str = r#"
apiVersion: v1
kind: Config
preferences: {}
current-context: "lab"
contexts:
- context:
    cluster: lab
    namespace: default
    user: admin
  name: lab
- name: field
  context: {cluster: field, user: operator}
clusters:
- cluster:
    certificate-authority-data: Q0E=
    server: https://10.0.0.1:6443
  name: lab
- cluster:
    certificate-authority: ca.pem
    server: https://hub.example:443/edge
    tls-server-name: hub
  name: field
users:
- name: admin
  user:
    token: secret # comment
- name: operator
  user: {tokenFile: token}
"#;

fn problem(outcome: Outcome<Hub>) -> (String, String) {
    match outcome {
        Err(failure @ Failure::Problem { .. }) => {
            let line = failure.line(false).unwrap();
            (line.split(':').next().unwrap().to_owned(), line)
        }
        other => panic!("not a problem: {other:?}"),
    }
}

fn file(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

#[test]
fn the_current_context_and_others() {
    let dir = tempfile::tempdir().unwrap();
    let config = file(dir.path(), "config", TWO_CONTEXTS);
    let lab = load(Some(&config), None).unwrap();
    let want = Hub {
        server: "https://10.0.0.1:6443".into(),
        ca_pem: b"CA".to_vec(),
        tls_server_name: None,
        token: "secret".into(),
    };
    assert_eq!(lab, want);

    file(dir.path(), "ca.pem", "PEM");
    file(dir.path(), "token", "from-file\n");
    let field = load(Some(&config), Some("field")).unwrap();
    assert_eq!(field.server, "https://hub.example:443/edge");
    assert_eq!((field.ca_pem.as_slice(), field.tls_server_name.as_deref()), (&b"PEM"[..], Some("hub")));
    assert_eq!(field.token, "from-file");

    let (code, line) = problem(load(Some(&config), Some("moon")));
    assert_eq!(code, "EW-CONFIG-INVALID");
    assert!(line.contains("no context \"moon\" (it has: lab, field)"), "{line}");
}

#[test]
fn json_is_yaml_too() {
    let dir = tempfile::tempdir().unwrap();
    let json = serde_json::json!({
        "current-context": "c", "contexts": [{"name": "c", "context": {"cluster": "k", "user": "u"}}],
        "clusters": [{"name": "k", "cluster": {"server": "https://h:1", "certificate-authority-data": "Q0E="}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    });
    let config = file(dir.path(), "config", &serde_json::to_string_pretty(&json).unwrap());
    assert_eq!(load(Some(&config), None).unwrap().token, "t");
}

#[test]
fn the_first_of_several_files_wins() {
    let dir = tempfile::tempdir().unwrap();
    let first =
        file(dir.path(), "first", "users: [{name: admin, user: {token: mine}}]\ncurrent-context: lab\n");
    let second = file(dir.path(), "second", TWO_CONTEXTS);
    let absent = dir.path().join("absent");
    let empty = file(dir.path(), "empty", "");
    let hub = load_from(&[absent, empty, first, second], false, None).unwrap();
    assert_eq!((hub.token.as_str(), hub.server.as_str()), ("mine", "https://10.0.0.1:6443"));
}

#[test]
fn where_it_is_looked_for() {
    let home = Path::new("/h");
    let own = Path::new("/own");
    assert_eq!(paths(Some(own), Some("/a:/b"), Some(home)), [own]);
    assert_eq!(paths(None, Some("/a::/b"), Some(home)), [Path::new("/a"), Path::new("/b")]);
    assert_eq!(paths(None, None, Some(home)), [Path::new("/h/.kube/config")]);
    let (code, line) = problem(load_from(&[PathBuf::from("/nowhere/config")], false, None));
    assert_eq!(code, "EW-CONFIG-NOT-FOUND");
    assert!(line.contains("no kubeconfig at /nowhere/config; set KUBECONFIG or pass --kubeconfig"), "{line}");
}

#[test]
fn what_is_wrong_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let base = TWO_CONTEXTS;
    for (name, text, code, says) in [
        ("not yaml", "a: [".to_owned(), "EW-CONFIG-INVALID", "not yaml"),
        ("wrong shape", "clusters: 5".to_owned(), "EW-CONFIG-INVALID", "invalid type"),
        ("no current", base.replace("current-context", "x"), "EW-CONFIG-INVALID", "no current context"),
        (
            "insecure",
            base.replace("certificate-authority-data: Q0E=", "insecure-skip-tls-verify: true"),
            "EW-CONFIG-INSECURE",
            "insecure-skip-tls-verify",
        ),
        (
            "http",
            base.replace("https://10", "http://10"),
            "EW-CONFIG-INVALID",
            "does not begin with https://",
        ),
        ("bad ca", base.replace("Q0E=", "not-base64!"), "EW-CONFIG-INVALID", "not base64"),
        (
            "no ca",
            base.replace("certificate-authority-data", "y"),
            "EW-CONFIG-INVALID",
            "names no certificate",
        ),
        ("no token", base.replace("token: secret", "z: 1"), "EW-CONFIG-INVALID", "no token and no tokenFile"),
        ("exec", base.replace("token: secret", "exec: {command: x}"), "EW-CONFIG-INVALID", "not supported"),
        (
            "split token",
            base.replace("token: secret", "token: \"a\\r\\nb\""),
            "EW-CONFIG-INVALID",
            "no HTTP header",
        ),
        ("no user", base.replace("user: admin", "user: nobody"), "EW-CONFIG-INVALID", "no user \"nobody\""),
    ] {
        let config = file(dir.path(), name, &text);
        let (got, line) = problem(load(Some(&config), None));
        assert_eq!(got, code, "{name}: {line}");
        assert!(line.contains(says), "{name}: {line}");
        assert!(!line.contains("secret"), "{name} tells the token: {line}");
    }
}

#[test]
fn a_kubeconfig_is_read_whatever_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config");
    let sample = "apiVersion: v1\ncurrent-context: a\ncontexts:\n- name: a\n  context: {cluster: c, user: u}\nclusters:\n- name: c\n  cluster: {server: 'https://h:1'}\nusers:\n- name: u\n  user: {token: t}\nx: &a [1]\ny: *a\n";
    crate::fuzz::try_bytes("a kubeconfig", &[sample.as_bytes().to_vec()], |bytes| {
        std::fs::write(&path, bytes).unwrap();
        let _ = read(&path);
    });
}
