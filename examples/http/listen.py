"""Shows what is said on a subject, one JSON object a line: listen.py 'app.demo.>'

When the connection breaks it comes back and asks for what was said meanwhile. Needs nothing but Python; BUS_HTTP_URL is set
by Edgewire.
"""

import base64, os, sys, time, urllib.parse, urllib.request

url = urllib.parse.urlsplit(os.environ["BUS_HTTP_URL"])
login = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
headers = {"Authorization": "Basic " + login}
while True:
    try:
        where = f"http://{url.hostname}:{url.port}/v1/sub/{urllib.parse.quote(sys.argv[1])}"
        request = urllib.request.Request(where, headers=headers)
        for line in urllib.request.urlopen(request, timeout=60):
            field, _, value = line.decode().rstrip("\n").partition(": ")
            if field == "id":
                headers["Last-Event-ID"] = value
            elif field == "data":
                print(value, flush=True)
    except OSError as error:
        print(f"listen.py: {error}; again in a second", file=sys.stderr)
    time.sleep(1)
