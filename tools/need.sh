#!/bin/sh
# Says what a machine lacks for the tests, and installs what Debian can give when run as root.
set -eu
command -v go >/dev/null || { echo "Go is missing: install any Go from 1.21 on, https://go.dev/doc/install"; exit 1; }
want=""
python3 -c 'import venv, ensurepip' 2>/dev/null || want="$want python3-venv"
# The race detector is the one thing that needs a C compiler.
command -v cc >/dev/null || command -v gcc >/dev/null || want="$want gcc libc6-dev"
[ -z "$want" ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "installing$want (Debian packages, for the race detector and the Envoy suite)"
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $want >/dev/null
else
	echo "not installed:$want; the suites that need them will say so"
fi
