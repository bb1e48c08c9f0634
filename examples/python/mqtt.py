"""Hears what is said on app/<namespace>/hello by MQTT, says one thing there itself, and ends when it has heard it."""

import os
from urllib.parse import urlparse

import paho.mqtt.client as mqtt

at, topic = urlparse(os.environ["MQTT_URL"]), f"app/{os.environ['POD_NAMESPACE']}/hello"
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
client.username_pw_set(at.username, at.password)
client.on_connect = lambda *_: client.subscribe(topic, qos=1)
client.on_subscribe = lambda *_: client.publish(topic, "hello by MQTT", qos=1)
client.on_message = lambda _client, _data, m: (print(m.topic, m.payload.decode(), flush=True), client.disconnect())
client.connect(at.hostname, at.port)
client.loop_forever()
