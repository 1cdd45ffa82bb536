#!/bin/sh
# Measures a concord binary against nginx: one service, one route, access log off.
#
#   test/bench/run.sh [path of concord [flags of the bench program]]
#
# The same script, called as "run.sh gateway BINARY PORT UPSTREAM", is the gateway that is measured: it starts a node in a
# prefix of its own, configures it through the Admin API, and waits.
set -eu

if [ "${1:-}" = gateway ]; then
  bin=$2 port=$3 up=$4
  dir=$(mktemp -d)
  trap 'kill "$node" 2>/dev/null; wait "$node"; rm -rf "$dir"; exit 0' TERM INT
  admin=$((port + 1))
  CONCORD_PREFIX=$dir/prefix CONCORD_PROXY_LISTEN=127.0.0.1:$port CONCORD_ADMIN_LISTEN=127.0.0.1:$admin CONCORD_ADMIN_GUI_LISTEN=off \
    CONCORD_STATUS_LISTEN=off CONCORD_CLUSTER_LISTEN=127.0.0.1:$((port + 2)) CONCORD_GOSSIP_LISTEN=127.0.0.1:$((port + 3)) \
    CONCORD_PROXY_ACCESS_LOG=off CONCORD_ADMIN_ACCESS_LOG=off CONCORD_LOG_LEVEL=warn "$bin" run &
  node=$!
  for _ in $(seq 100); do
    curl -fs -o /dev/null "http://127.0.0.1:$admin/status" && break
    sleep 0.1
  done
  curl -fsS -o /dev/null "http://127.0.0.1:$admin/services" -d name=bench -d "url=http://$up"
  curl -fsS -o /dev/null "http://127.0.0.1:$admin/services/bench/routes" -d 'paths[]=/get' -d strip_path=false
  wait "$node"
  exit
fi

here=$(cd "$(dirname "$0")" && pwd)
bin=${1:-$here/../../bin/concord}
bin=$(cd "$(dirname "$bin")" && pwd)/$(basename "$bin")
[ $# -eq 0 ] || shift
port=${PORT:-21810}
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
(cd "$here" && go build -o "$tmp/bench" .)
"$tmp/bench" -t "concord|http://127.0.0.1:$port/get|$here/run.sh gateway $bin $port {UP}" "$@"
