#!/usr/bin/env bash
# Makes a Docker image with Python, pip and CA certificates from this machine's own Debian packages: no image
# registry is needed. Takes seconds; needs root, a Docker engine, and Debian or Ubuntu with python3-venv.
# usage: base-image.sh [TAG]      (default cloudft-base:local; nothing is done when the tag is there)
set -euo pipefail
tag=${1:-cloudft-base:local}
here=$(cd "$(dirname "$0")" && pwd)
if docker image inspect "$tag" >/dev/null 2>&1; then echo "$tag is there already"; exit 0; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# The system's Python, by its path: another one that comes first on PATH belongs to no Debian package.
/usr/bin/python3 "$here/host_rootfs.py" "$work/rootfs.tar" apt python3 python3-venv ca-certificates
docker import "$work/rootfs.tar" cloudft-rootfs:local >/dev/null
# This machine may trust certificates of its own (a company's proxy); builds and containers here need them too.
mkdir "$work/ca"
cp -r /usr/local/share/ca-certificates/. "$work/ca/" 2>/dev/null || true
cat >"$work/Dockerfile" <<'D'
FROM cloudft-rootfs:local
COPY ca/ /usr/local/share/ca-certificates/
RUN update-ca-certificates && python3 -m venv /opt/python && ln -sf python3 /opt/python/bin/python \
 && printf '[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n' > /etc/pip.conf
ENV PATH=/opt/python/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8
D
DOCKER_BUILDKIT=0 docker build -t "$tag" "$work" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; exit 1; }
docker rmi cloudft-rootfs:local >/dev/null 2>&1 || true
echo "$tag made"
