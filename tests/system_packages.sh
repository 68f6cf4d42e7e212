#!/bin/sh
# System packages that some tests need: a browser for the report, Java for the official caption
# metrics, a Redis server. Installed only when root on a Debian-like system; without them those tests skip and say so.
set -eu
wanted=""
command -v chromium >/dev/null 2>&1 || wanted="chromium"
command -v java >/dev/null 2>&1 || wanted="$wanted default-jre-headless"
command -v redis-server >/dev/null 2>&1 || wanted="$wanted redis-server"
if [ -z "$wanted" ]; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq
    # shellcheck disable=SC2086 # a list of names
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $wanted >/dev/null
else
    echo "not installed: $wanted; the tests that need them will be skipped" >&2
fi
