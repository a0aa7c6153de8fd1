#!/usr/bin/env bash
# Runs the tests of the daemon, the hub, the link and the CLI against the oldest versions that we promise (Ubuntu 24.04's), in an environment
# of its own outside the repository.   packaging/oldest.sh [PYTEST ARGUMENTS]
# Two are newer than there: pyzmq 24.0.1 and msgpack 1.0.3 do not build for Python 3.12 from their own sources (the distribution patches
# them), so these are the oldest with wheels. The booted tests run on Debian's own msgpack 1.0.3.
set -euo pipefail
cd "$(dirname "$0")/.."
oldest=(pyzmq==25.1.1 msgpack==1.0.6 structlog==24.1.0 cryptography==41.0.7 numpy==1.26.4 psutil==5.9.8)
venv=${XDG_CACHE_HOME:-$HOME/.cache}/zk0-oldest
uv=.venv/bin/uv
[ -x "$uv" ] || packaging/setup.sh core
[ -x "$venv/bin/python" ] || "$(readlink -f .venv/bin/python)" -m venv --without-pip "$venv"
"$uv" pip install --quiet --python "$venv/bin/python" "${oldest[@]}" pytest pytest-timeout hypothesis
export OMP_NUM_THREADS=1 PYTHONPATH=$PWD
units=(arbiter blobs control ctl_commands ctl_debug ctl_doctor ctl_environment ctl_status daemon_config daemon_datasets daemon_store
    hub_aggregate hub_config hub_rounds hub_store imports invitation link_gate link_identity link_messages link_transfer notify)
lives=(link_enroll link_foreign link_node_hub)
units=("${units[@]/#/tests/unit/test_}") lives=("${lives[@]/#/tests/integration/test_}")
exec "$venv/bin/python" -m pytest "${units[@]/%/.py}" "${lives[@]/%/.py}" --deselect tests/unit/test_hub_config.py::test_chart_of_any_length "$@"
