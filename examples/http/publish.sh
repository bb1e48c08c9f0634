#!/bin/sh
# Stores each line of its input on the node, from where it is carried to the hub, exactly once, whatever dies meanwhile:
#   publish.sh up.demo.temp < readings
# A line is sent again, under the same ID, until the node has it on its disk. Needs curl; BUS_HTTP_URL is set by Edgewire.
set -eu
run=$(tr -dc a-z0-9 </dev/urandom | head -c 16) # an ID that nobody guesses
n=0
while IFS= read -r line; do
    n=$((n + 1))
    while :; do
        status=$(printf %s "$line" | curl --silent --max-time 10 --output /dev/null --write-out '%{http_code}' \
            --header "Nats-Msg-Id: $run-$n" --header 'Content-Type: text/plain' --data-binary @- \
            "$BUS_HTTP_URL/v1/pub/$1") || status=000
        case $status in
            200) break ;;
            000 | 408 | 429 | 5??) sleep 1 ;; # not there, too much at once, or unknown: again
            *) echo "publish.sh: $1 is refused with status $status" >&2 && exit 1 ;;
        esac
    done
done
