//! Pure: a container's environment, from `env`, `valueFrom` and `envFrom`, and `$(NAME)` in command and args.
//!
//! Rules are Kubernetes' own: `envFrom` first, `env` over it; a later name wins; `$(NAME)` is replaced when NAME was
//! defined before, `$$(NAME)` stands for the text `$(NAME)`; an undefined one stays as it is.

use k8s_openapi::api::core::v1::{Container, EnvVar, Pod};

use crate::referenced::{Data, Referenced};

/// What is known of a pod only where it runs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// `spec.nodeName`.
    pub node_name: String,
    /// `status.hostIP`.
    pub host_ip: String,
    /// `status.podIP`.
    pub pod_ip: String,
}

/// The environment, in order. Fails, naming the object and key, when something that is not optional is missing.
pub fn resolve(
    pod: &Pod,
    container: &Container,
    referenced: &Referenced,
    facts: &Facts,
) -> Result<Vec<(String, String)>, String> {
    let mut out: Vec<(String, String)> = Vec::new();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.clone().unwrap_or_default();
        let data = if let Some(from) = &source.config_map_ref {
            find(&referenced.config_maps, "configmap", &from.name, from.optional)?
        } else if let Some(from) = &source.secret_ref {
            find(&referenced.secrets, "secret", &from.name, from.optional)?
        } else {
            None
        };
        for (key, value) in data.into_iter().flatten() {
            let name = format!("{prefix}{key}");
            // Kubernetes leaves out what cannot be a variable's name.
            if !name.is_empty() && !name.contains(['=', '\0']) {
                put(&mut out, &name, String::from_utf8_lossy(value).into_owned());
            }
        }
    }
    for var in container.env.iter().flatten() {
        if let Some(value) = value_of(var, pod, container, referenced, facts, &out)? {
            put(&mut out, &var.name, value);
        }
    }
    Ok(out)
}

fn put(env: &mut Vec<(String, String)>, name: &str, value: String) {
    match env.iter_mut().find(|(have, _)| have == name) {
        Some((_, old)) => *old = value,
        None => env.push((name.to_owned(), value)),
    }
}

fn find<'a>(
    all: &'a std::collections::BTreeMap<String, Data>,
    kind: &str,
    name: &str,
    optional: Option<bool>,
) -> Result<Option<&'a Data>, String> {
    match all.get(name) {
        Some(data) => Ok(Some(data)),
        None if optional.unwrap_or(false) => Ok(None),
        None => Err(format!("{kind} \"{name}\" not found")),
    }
}

fn key_of(
    data: Option<&Data>,
    kind: &str,
    name: &str,
    key: &str,
    optional: Option<bool>,
) -> Result<Option<String>, String> {
    match data.and_then(|data| data.get(key)) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional.unwrap_or(false) => Ok(None),
        None => Err(format!("couldn't find key {key} in {kind} \"{name}\"")),
    }
}

fn value_of(
    var: &EnvVar,
    pod: &Pod,
    container: &Container,
    referenced: &Referenced,
    facts: &Facts,
    env: &[(String, String)],
) -> Result<Option<String>, String> {
    let Some(from) = &var.value_from else {
        return Ok(Some(expand(var.value.as_deref().unwrap_or(""), env)));
    };
    if let Some(at) = &from.config_map_key_ref {
        let data = find(&referenced.config_maps, "configmap", &at.name, at.optional)?;
        return key_of(data, "configmap", &at.name, &at.key, at.optional);
    }
    if let Some(at) = &from.secret_key_ref {
        let data = find(&referenced.secrets, "secret", &at.name, at.optional)?;
        return key_of(data, "secret", &at.name, &at.key, at.optional);
    }
    if let Some(at) = &from.field_ref {
        return field(pod, &at.field_path, facts).map(Some).ok_or_else(|| {
            format!(
                "env {}: fieldPath {:?} is not served; use metadata.* or status.podIP",
                var.name, at.field_path
            )
        });
    }
    if let Some(at) = &from.resource_field_ref {
        return resource(container, &at.resource)
            .map(Some)
            .ok_or_else(|| format!("env {}: resource {:?} is not set or not served", var.name, at.resource));
    }
    Err(format!("env {}: valueFrom names no source that is served", var.name))
}

fn field(pod: &Pod, path: &str, facts: &Facts) -> Option<String> {
    let meta = &pod.metadata;
    let in_map = |map: &Option<std::collections::BTreeMap<String, String>>, rest: &str| {
        let key = rest.strip_prefix("['")?.strip_suffix("']")?;
        Some(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default())
    };
    if let Some(rest) = path.strip_prefix("metadata.labels") {
        return in_map(&meta.labels, rest);
    }
    if let Some(rest) = path.strip_prefix("metadata.annotations") {
        return in_map(&meta.annotations, rest);
    }
    let spec = pod.spec.as_ref();
    Some(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => {
            spec.and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".to_owned())
        }
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" | "status.podIPs" => facts.pod_ip.clone(),
        _ => return None,
    })
}

/// CPU in whole cores, the rest in units, both rounded up (Kubernetes' divisor 1).
fn resource(container: &Container, name: &str) -> Option<String> {
    let (list, resource) = name.split_once('.')?;
    let resources = container.resources.as_ref()?;
    let list = match list {
        "limits" => resources.limits.as_ref()?,
        "requests" => resources.requests.as_ref()?,
        _ => return None,
    };
    schemas::quantity::units(&list.get(resource)?.0).map(|n| n.to_string())
}

/// Replaces `$(NAME)`.
pub fn expand(text: &str, env: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let after = from.get(1..).unwrap_or("");
        if let Some(tail) = after.strip_prefix('$') {
            out.push('$');
            rest = tail;
            // `$$(NAME)`: what follows is text, for it has no `$` of its own any more.
            continue;
        }
        let name = after.strip_prefix('(').and_then(|t| t.split_once(')'));
        let value = name.and_then(|(name, tail)| {
            env.iter().find(|(have, _)| have == name).map(|(_, value)| (value, tail))
        });
        match (value, name) {
            (Some((value, tail)), _) => {
                out.push_str(value);
                rest = tail;
            }
            (None, _) => {
                out.push('$');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_expand_as_kubernetes_has_it() {
        let env = vec![("A".to_owned(), "1".to_owned())];
        for (text, want) in [
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$$(A)", "$(A)"),
            ("$(B)", "$(B)"),
            ("$A $", "$A $"),
            ("$$$(A)", "$1"),
            ("$(A", "$(A"),
            ("$$", "$"),
        ] {
            assert_eq!(expand(text, &env), want, "{text}");
        }
    }

    fn resolve_env(container: serde_json::Value) -> Result<Vec<(String, String)>, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "uid": "u", "labels": {"l": "v"}}, "spec": {"containers": []}
        }))
        .unwrap();
        let mut referenced = Referenced::default();
        referenced
            .config_maps
            .insert("cm".into(), [("k".into(), "v".into()), ("A".into(), "cm".into())].into());
        referenced.secrets.insert("s".into(), [("k".into(), "s3cret".into())].into());
        let container: Container = serde_json::from_value(container).unwrap();
        resolve(&pod, &container, &referenced, &Facts { pod_ip: "10.0.0.2".into(), ..Facts::default() })
    }

    #[test]
    fn sources_are_resolved_in_order() {
        let env = resolve_env(json!({"name": "c",
        "envFrom": [{"configMapRef": {"name": "cm"}}, {"secretRef": {"name": "none", "optional": true}}],
        "env": [
            {"name": "A", "value": "mine"},
            {"name": "B", "value": "$(A)-$(k)"},
            {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
            {"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['l']"}}},
            {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "none", "optional": true}}}
        ]}))
        .unwrap();
        let want =
            [("A", "mine"), ("k", "v"), ("B", "mine-v"), ("S", "s3cret"), ("L", "v"), ("IP", "10.0.0.2")];
        assert_eq!(env, want.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }

    #[test]
    fn what_is_missing_is_named() {
        let one =
            |from| resolve_env(json!({"name": "c", "env": [{"name": "X", "valueFrom": from}]})).unwrap_err();
        assert_eq!(one(json!({"configMapKeyRef": {"name": "no", "key": "k"}})), "configmap \"no\" not found");
        assert!(one(json!({"secretKeyRef": {"name": "s", "key": "z"}})).contains("key z in secret \"s\""));
        assert!(one(json!({"fieldRef": {"fieldPath": "spec.x"}})).contains("spec.x"));
    }
}
