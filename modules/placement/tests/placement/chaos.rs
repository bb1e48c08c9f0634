//! Random programs: objects change, entries are told late, twice or out of order between keys, writes fail with and
//! without effect, the module restarts. In the end `desired` says exactly what the objects say.

use bus::module::{Effect, EntryValue, Expect, Input, Module, WriteError};
use serde_json::json;

use crate::world::{World, data, delivery, pod, status};

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

/// Applies an input over a store that loses answers and refuses writes.
fn shaky(world: &mut World, input: Input<bus::module::Never>, random: &mut Random) {
    let mut inputs = vec![input];
    while let Some(input) = inputs.pop() {
        for effect in world.module.apply(input, world.now) {
            let (bucket, key, value, expect, token) = match effect {
                Effect::Put { bucket, key, value, expect, token } => {
                    (bucket, key, EntryValue::Put(value), expect, token)
                }
                Effect::Remove { bucket, key, value, expect, token } => {
                    (bucket, key, EntryValue::Removed(value), expect, token)
                }
                Effect::Dead { reason, .. } => panic!("{reason}"),
                other => panic!("{other:?}"),
            };
            assert!(!matches!(expect, Expect::Any), "every write says what it expects");
            let outcome = match random.below(6) {
                0 => Err(WriteError::Failed("refused".into())),
                1 => {
                    let _ = world.write(&bucket, &key, value, expect);
                    Err(WriteError::Failed("answer lost".into()))
                }
                _ => world.write(&bucket, &key, value, expect),
            };
            inputs.push(Input::Wrote { token, outcome });
        }
    }
}

fn run(seed: u64) {
    let mut random = Random(seed);
    let mut world = World::new();
    let mut uids = 0;
    for _ in 0..120 {
        world.now = world.now.plus_ms(100);
        let name = format!("p{}", random.below(4));
        match random.below(12) {
            0..=2 => {
                uids += 1;
                let node = ["", "n1", "n2"][random.below(3) as usize];
                let spec = json!({"volumes": [{"configMap": {"name": format!("c{}", random.below(3))}}]});
                let mut pod = pod(&name, &uids.to_string(), node, spec);
                if let (Some(old), true) = (world.object("pods", &name), random.below(2) == 0) {
                    pod.set(&["metadata", "uid"], old.uid());
                    if !old.text(&["spec", "nodeName"]).is_empty() {
                        pod.set(&["spec", "nodeName"], old.text(&["spec", "nodeName"]));
                    }
                }
                let value = EntryValue::Put(pod.to_bytes());
                world.write("objects", &format!("=.pods.default.{name}"), value, Expect::Any).unwrap();
            }
            3 => {
                if let Some(pod) = world.object("pods", &name) {
                    let value = EntryValue::Removed(pod.to_bytes());
                    world.write("objects", &format!("=.pods.default.{name}"), value, Expect::Any).unwrap();
                }
            }
            4 => {
                let name = format!("c{}", random.below(3));
                let value = EntryValue::Put(
                    data("ConfigMap", &name, &name, &random.below(99).to_string()).to_bytes(),
                );
                world.write("objects", &format!("=.configmaps.default.{name}"), value, Expect::Any).unwrap();
            }
            5 => {
                if let Some(pod) =
                    world.object("pods", &name).filter(|pod| pod.text(&["spec", "nodeName"]) == "n1")
                {
                    let report = status(&name, pod.uid(), random.below(50), "Running");
                    shaky(&mut world, delivery(&report), &mut random);
                }
            }
            6 => shaky(&mut world, Input::Tick, &mut random),
            7 if random.below(4) == 0 => world.start(),
            _ => {
                for _ in 0..random.below(6) {
                    // Any of the untold ones, sometimes twice.
                    let count = world.untold.len() as u64;
                    if count == 0 {
                        break;
                    }
                    let at = random.below(count) as usize;
                    let entry = world.untold[at].clone();
                    if random.below(4) > 0 {
                        world.untold.remove(at);
                    }
                    shaky(&mut world, Input::Entry(entry), &mut random);
                }
            }
        }
    }
    for _ in 0..4 {
        world.settle();
        world.now = world.now.plus_ms(20_000);
        world.apply(Input::Tick);
    }
    world.settle();
    for node in ["n1", "n2"] {
        let mut want = Vec::new();
        for name in (0..4).map(|n| format!("p{n}")) {
            let Some(pod) = world.object("pods", &name) else { continue };
            if pod.text(&["spec", "nodeName"]) == node {
                want.push(format!("pods/{name}/{}", pod.uid()));
                let map = pod.get(&["spec", "volumes"]).unwrap()[0]["configMap"]["name"].as_str().unwrap();
                if world.object("configmaps", map).is_some() {
                    want.push(format!("configmaps/{map}/{map}"));
                }
            }
        }
        want.sort();
        want.dedup();
        let mut have = world.told(node);
        have.retain(|entry| !entry.starts_with('-'));
        assert_eq!(have, want, "seed {seed}, node {node}");
        for entry in have {
            let [plural, name, uid] = entry.split('/').collect::<Vec<_>>()[..] else { panic!() };
            let held = world.held(node, plural, name, uid).unwrap();
            let schemas::desired::Content::Object(told) = held.content else { panic!() };
            let object = world.object(plural, name).unwrap();
            assert_eq!(told, placement::relevant::relevant(&object), "seed {seed} {entry}");
        }
    }
}

#[test]
fn desired_ends_as_the_objects_say() {
    for seed in 0..300 {
        run(seed);
    }
}
