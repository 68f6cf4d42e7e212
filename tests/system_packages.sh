#!/bin/sh
# System packages that some tests need: a browser for the report. Installed only when root on a
# Debian-like system; without it those tests skip and say so.
set -eu
if command -v chromium >/dev/null 2>&1; then
    exit 0
fi
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium >/dev/null
else
    echo "chromium is not installed: the tests of the report in a browser will be skipped" >&2
fi
