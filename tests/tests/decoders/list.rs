//! The one list: every source file that reads bytes or text from outside, and the tests that try it. A file that begins to
//! and has no row here is found by [`every_decoder_is_tried`].

use std::fs;
use std::path::{Path, PathBuf};

/// What a decoder is known by.
const MARKS: [&str; 14] = [
    "schemas::decode",
    "from_slice(",
    "from_slice::<",
    "from_str::<",
    "serde_json::from_str(",
    "toml::from_str",
    "load_from_str",
    "Archive::new",
    "GzDecoder",
    "fn parse",
    "::deserialize(",
    "fn read_token",
    "strip_prefix(b\"",
    "from_utf8(",
];

/// File, and the tests that try what it reads. `modules::...`: through the module's own `apply`.
const TRIED: &[(&str, &[&str])] = &[
    ("schemas/src/lib.rs", &["messages_of_desired_state", "messages_of_nodes", "quantities_and_times"]),
    ("schemas/src/loss.rs", &["what_the_ledger_reads"]),
    ("schemas/src/object.rs", &["objects"]),
    ("schemas/src/subject.rs", &["names_in_subjects"]),
    ("schemas/src/name.rs", &["names_in_subjects"]),
    ("schemas/src/quantity.rs", &["quantities_and_times"]),
    ("bus/src/identity/jwt.rs", &["credentials_and_tokens"]),
    ("bus/src/durable.rs", &["what_sync_keeps_and_sends"]),
    ("bus/src/stream.rs", &["messages_of_sessions_and_commands"]),
    ("bus/src/audit.rs", &["messages_of_nodes"]),
    ("bus/src/link.rs", &["answers_of_the_server_are_read_whatever_they_are"]),
    ("bus/src/proxy.rs", &["addresses_of_hubs_and_proxies"]),
    ("bus/src/server/way.rs", &["addresses_of_hubs_and_proxies"]),
    ("bus/src/server/tcp.rs", &["the_kernels_answers_are_read_whatever_they_are"]),
    ("bus/src/server/unlinked.rs", &["only_a_link_counts"]),
    ("modules/api/src/patch.rs", &["patches"]),
    ("modules/api/src/validate.rs", &["bodies_in_json"]),
    ("modules/api/src/protobuf.rs", &["bodies_in_protobuf"]),
    ("modules/api/src/route.rs", &["paths_queries_and_selectors"]),
    ("modules/api/src/selector.rs", &["paths_queries_and_selectors"]),
    ("modules/api/src/handlers/accept.rs", &["headers"]),
    ("modules/api/src/handlers/mod.rs", &["bodies_in_json"]),
    ("modules/api/src/handlers/read.rs", &["a_continue_token_is_read_whatever_it_is"]),
    ("modules/containers/src/input.rs", &["the_nodes_modules"]),
    ("modules/containers/src/state.rs", &["the_nodes_modules"]),
    ("modules/containers/src/state/rewound.rs", &["the_nodes_modules"]),
    ("modules/containers/src/runtime/import.rs", &["an_archive_is_read_whatever_it_is"]),
    ("modules/containers/src/runtime/logs.rs", &["a_log_is_read_whatever_it_is"]),
    ("modules/containers/src/runtime/log_reader.rs", &["a_log_is_read_whatever_it_is"]),
    ("modules/containers/src/runtime/user.rs", &["users_are_read_whatever_the_image_holds"]),
    ("modules/credentials/src/lib.rs", &["the_nodes_modules"]),
    ("modules/topicmap/src/lib.rs", &["the_nodes_modules"]),
    ("modules/identity/src/decide.rs", &["the_hubs_modules"]),
    ("modules/identity/src/edge.rs", &["the_nodes_modules"]),
    ("modules/nodes/src/lib.rs", &["the_hubs_modules"]),
    ("modules/router/src/hub/mod.rs", &["the_hubs_modules"]),
    ("modules/router/src/edge/mod.rs", &["the_nodes_modules"]),
    ("schemas/src/expression.rs", &["expressions_and_what_they_are_given"]),
    ("modules/ledger/src/lib.rs", &["the_hubs_modules", "what_the_ledger_reads"]),
    ("modules/ledger/src/book.rs", &["the_hubs_modules"]),
    ("modules/events/src/lib.rs", &["the_hubs_modules"]),
    ("modules/placement/src/state.rs", &["the_hubs_modules"]),
    ("modules/sync/src/downlink/mod.rs", &["what_waits_for_a_node", "the_nodes_modules"]),
    ("modules/sync/src/downlink/hub.rs", &["the_hubs_modules"]),
    ("modules/sync/src/edge/messages.rs", &["the_nodes_modules"]),
    ("modules/sync/src/edge/heartbeat.rs", &["the_nodes_modules"]),
    ("modules/sync/src/edge/downward.rs", &["the_nodes_modules"]),
    ("modules/sync/src/edge/mod.rs", &["the_nodes_modules"]),
    ("modules/sync/src/up.rs", &["what_sync_keeps_and_sends", "the_nodes_modules"]),
    ("cloud-hub/src/backup/archive.rs", &["an_archive_is_read_whatever_it_is", "manifests_of_backups"]),
    ("edge-runtime/src/join.rs", &["a_token_and_the_hubs_answer_are_read_whatever_they_are"]),
    ("edge-runtime/src/config.rs", &["a_token_and_the_hubs_answer_are_read_whatever_they_are"]),
    ("cli/src/decode.rs", &["whatever_is_said_can_be_shown"]),
    ("cli/src/tail/format.rs", &["whatever_is_said_can_be_shown"]),
    ("cli/src/tail/fields.rs", &["whatever_is_typed_as_fields_is_read"]),
    ("cli/src/expression.rs", &["whatever_is_typed_is_an_answer"]),
    ("cli/src/when.rs", &["whatever_is_typed_as_a_time_is_read"]),
    ("cli/src/acked.rs", &["whatever_answers_is_a_streams_word_or_not"]),
    ("cli/src/bench.rs", &["whatever_is_heard_has_a_time_or_none"]),
    ("bus/src/tool/clients.rs", &["whatever_the_server_says_is_read"]),
    ("cli/src/duration.rs", &["whatever_is_typed_is_read"]),
    ("cli/src/check/target.rs", &["whatever_is_typed_is_read"]),
    ("cli/src/check/network.rs", &["whatever_is_typed_is_read"]),
    ("cli/src/check/ports.rs", &["the_kernels_table_is_read_whatever_it_holds"]),
    ("cli/src/check/door.rs", &["whatever_the_other_end_says_is_read"]),
    ("cli/src/check/certificate.rs", &["whatever_is_sent_as_a_certificate_is_read"]),
    ("bus/src/server/denials.rs", &["whatever_a_server_logs_is_read"]),
    ("bus/src/acknowledgement.rs", &["whatever_answers_is_read"]),
    ("modules/door/src/login.rs", &["what_comes_to_the_door_is_read_whatever_it_is"]),
    ("modules/door/src/route.rs", &["what_comes_to_the_door_is_read_whatever_it_is"]),
    ("modules/door/src/ring.rs", &["what_comes_to_the_door_is_read_whatever_it_is"]),
    ("modules/door/src/frame.rs", &["what_comes_to_the_door_is_read_whatever_it_is"]),
    ("cli/src/kubeconfig.rs", &["a_kubeconfig_is_read_whatever_it_is"]),
];

/// Files that only read what another decoder checked, or what this machine's own programs and root's files say, each
/// with plain serde into a bounded shape.
const NOT_TRIED: &[(&str, &str)] = &[
    ("bus/src/identity/membership.rs", "the node's own file, root's"),
    ("bus/src/identity/deferral.rs", "the node's own file, root's"),
    ("bus/src/identity/keys.rs", "the hub's own file, and its own server's answer"),
    ("bus/src/identity/authority.rs", "the hub's own file, root's"),
    ("bus/src/identity/tls.rs", "the hub's own file, root's"),
    ("bus/src/server/child.rs", "our own record, root's"),
    ("bus/src/server/hold.rs", "our own record, root's"),
    ("bus/src/server/process.rs", "our own server's answer, as JSON"),
    ("bus/src/server/users.rs", "our own record, root's"),
    ("bus/src/server/leaf.rs", "our own server's answer, as JSON"),
    ("modules/containers/src/runtime/exec.rs", "containerd's answer, as JSON"),
    ("modules/containers/src/runtime/image.rs", "the shapes that import.rs is tried with"),
    (
        "modules/containers/src/runtime/sandbox.rs",
        "our own record, and the answers of CNI's programs, as JSON",
    ),
    ("modules/containers/src/credential.rs", "`Reply<Issued>`: credentials_and_tokens"),
    ("modules/containers/src/session.rs", "a terminal's size, as JSON"),
    ("modules/api/src/handlers/exec.rs", "bytes are passed on; what comes back is JSON for a status"),
    ("modules/api/src/handlers/write.rs", "text of our own making"),
    (
        "modules/api/src/handlers/delete.rs",
        "DeleteOptions: JSON into a shape, protobuf through bodies_in_protobuf",
    ),
    ("modules/api/src/handlers/edgewire.rs", "JSON, handed on to identity: the_hubs_modules"),
    ("modules/api/src/rim.rs", "`Reply<Value>` of a module of the hub"),
    (
        "modules/router/src/edge/service_bus.rs",
        "JSON of bounded size, and `Reply<Delivered>`: messages_of_rules",
    ),
    ("modules/router/src/hub/worker.rs", "is it JSON? bounded, and thrown away"),
    ("bus/src/command.rs", "`Reply` of a module on a node: messages_of_rules"),
    ("modules/sync/src/hub.rs", "Lineage: messages_of_desired_state"),
    ("schemas/src/topic.rs", "words of an object that the API has read as JSON"),
    ("cloud-hub/src/config.rs", "the operator's file, as TOML"),
    ("cli/src/creds.rs", "`Reply` of a module on a node: credentials_and_tokens"),
    ("cli/src/diverged.rs", "Diverged: messages_of_desired_state"),
    ("cli/src/ask.rs", "`Reply` of a module of the hub: what_the_ledger_reads, messages_of_desired_state"),
    ("cli/src/place.rs", "the operator's file, as JSON"),
    ("cli/src/check/programs.rs", "what this machine's programs say of their version"),
    ("cli/src/check/kernel.rs", "the kernel's configuration, bounded before it is unpacked"),
    ("cli/src/api.rs", "the hub's answer, as JSON, from a hub whose certificate was checked"),
    ("cli/src/modules.rs", "ModuleReport: messages_of_nodes"),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn sources(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
            found.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn every_decoder_is_tried() {
    let mut found = Vec::new();
    for room in [
        "schemas/src",
        "bus/src",
        "modules",
        "cloud-hub/src",
        "edge-runtime/src",
        "cli/src",
        "tests/tests/decoders",
    ] {
        sources(&root().join(room), &mut found);
    }
    let all: String = found.iter().map(|(_, text)| text.as_str()).collect();
    let mut complaints = Vec::new();
    for (file, text) in found.iter().filter(|(file, _)| file.contains("/src/")) {
        // `Vec::extend_from_slice` reads nothing.
        let plain = text.split("#[cfg(test)]").next().unwrap_or_default().replace("extend_from_slice(", "");
        let reads = MARKS.iter().find(|mark| plain.contains(*mark));
        let listed = TRIED.iter().any(|(row, _)| row == file) || NOT_TRIED.iter().any(|(row, _)| row == file);
        match reads {
            Some(mark) if !listed => {
                complaints.push(format!("{file}: reads something ({mark}) and has no row in TRIED"))
            }
            None if NOT_TRIED.iter().any(|(row, _)| row == file) => {
                complaints.push(format!("{file}: reads nothing any more"))
            }
            _ => {}
        }
    }
    for (file, tests) in TRIED {
        if !found.iter().any(|(name, _)| name == file) {
            complaints.push(format!("{file}: there is no such file"));
        }
        for test in tests.iter().filter(|test| !all.contains(&format!("fn {test}()"))) {
            complaints.push(format!("{file}: there is no test {test}"));
        }
    }
    assert!(complaints.is_empty(), "{} complaints\n{}", complaints.len(), complaints.join("\n"));
}
