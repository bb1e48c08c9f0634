"""MQTT clients for the end-to-end tests: paho, steered by lines of JSON on standard input, told by lines on standard output.

Each line names a client ("c") and what it does ("do"). It stands for nothing but what paho does: the judge is in Rust.
"""

import json
import sys
import threading

import paho.mqtt.client as mqtt

clients = {}
lock = threading.Lock()


def tell(name, event, **more):
    with lock:
        print(json.dumps({"c": name, "event": event, **more}), flush=True)


def connect(name, order):
    five = order.get("v5", False)
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2,
        client_id=order.get("id", name),
        clean_session=None if five else order.get("clean", True),
        protocol=mqtt.MQTTv5 if five else mqtt.MQTTv311,
    )
    client.username_pw_set(order["user"], order["password"])
    client.reconnect_delay_set(1, 1)
    if "will" in order:
        topic, payload, qos, retain = order["will"]
        client.will_set(topic, payload, qos, retain)
    client.on_connect = lambda c, u, flags, rc, p: tell(
        name, "connected" if rc == 0 else "refused", why=str(rc), session=flags.session_present
    )
    client.on_disconnect = lambda c, u, flags, rc, p: tell(name, "disconnected", why=str(rc))
    client.on_subscribe = lambda c, u, mid, rcs, p: tell(name, "subscribed", granted=not any(rc.is_failure for rc in rcs))
    client.on_publish = lambda c, u, mid, rc, p: tell(name, "published", mid=mid)
    client.on_message = lambda c, u, m: tell(
        name, "heard", topic=m.topic, payload=m.payload.decode("utf-8", "replace"), qos=m.qos, retained=m.retain
    )
    clients[name] = client
    client.connect_async(order["host"], order["port"], keepalive=10)
    client.loop_start()


def obey(order):
    name, do = order["c"], order["do"]
    if do == "connect":
        return connect(name, order)
    client = clients[name]
    if do == "subscribe":
        client.subscribe(order["topic"], order.get("qos", 0))
    elif do == "publish":
        sent = client.publish(order["topic"], order["payload"], order.get("qos", 0), order.get("retain", False))
        tell(name, "publishing", mid=sent.mid, payload=order["payload"])
    elif do == "disconnect":
        client.disconnect()
        client.loop_stop()
    elif do == "drop":  # without a word, as a device that loses its power
        client.loop_stop()
        client._sock_close()


for line in sys.stdin:
    obey(json.loads(line))
