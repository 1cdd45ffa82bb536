#!/usr/bin/env bash
# Packs the binaries of bin/ with what an installation needs. Equal inputs give equal bytes.
set -euo pipefail
cd "$(dirname "$0")/.."
version=${1:?usage: package.sh VERSION}
name=concord-$version-linux-$(go env GOARCH)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
install -D -m 755 -t "$stage/$name/bin" bin/concord bin/gwctl
install -D -m 644 -t "$stage/$name" LICENSE README.md
install -D -m 644 deploy/concord.conf.default "$stage/$name/etc/concord/concord.conf"
install -D -m 644 -t "$stage/$name/lib/systemd/system" deploy/concord.service
mkdir -p dist
tar -C "$stage" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@${SOURCE_DATE_EPOCH:-0}" -cf - "$name" | gzip -n9 >"dist/$name.tar.gz"
cd dist
sha256sum "$name.tar.gz" | tee "$name.tar.gz.sha256"
