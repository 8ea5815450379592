#!/usr/bin/env bash
# A Ceph object store of one node for the tests: a monitor, one OSD and the S3 gateway, on loopback and, where there
# is one, on the Docker bridge. All it writes lies in DIR; its ports are free ones.
# usage: ceph.sh up DIR      prints the line to export: CLOUDFT_TEST_CEPH=http://KEY:SECRET@127.0.0.1:PORT
#        ceph.sh down DIR    stops it and removes DIR
# needs: apt-get install --no-install-recommends ceph-mon ceph-osd radosgw ceph-common uuid-runtime
set -euo pipefail
action=${1:-}; dir=$(realpath -m "${2:?usage: ceph.sh up|down DIR}")
access=CLOUDFTTEST secret=cloudft-test-secret

fail() { printf 'ceph: %s\n' "$1" >&2; tail -n 15 "$dir"/log/*.out >&2 2>/dev/null || true; exit 1; }

# A process id in an old file may be somebody else's by now: only a process that was given our configuration is ours.
ours() { grep -qzx "CEPH_CONF=$dir/ceph.conf" "/proc/$1/environ" 2>/dev/null; }

down() {
    local name pid
    for name in rgw osd mon; do
        pid=$(cat "$dir/$name.pid" 2>/dev/null) || continue
        ours "$pid" || continue
        kill "$pid" 2>/dev/null || continue
        for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep .1; done
        kill -9 "$pid" 2>/dev/null || true
    done
    rm -rf "$dir"
}

free_ports() {
    python3 -c '
import socket
socks = [socket.socket() for _ in range(2)]
for s in socks: s.bind(("0.0.0.0", 0))
print(*(s.getsockname()[1] for s in socks))'
}

# launch NAME COMMAND…: in the background, detached from this shell's input, its id in DIR/NAME.pid
launch() {
    local name=$1; shift
    setsid "$@" >"$dir/log/$name.out" 2>&1 </dev/null &
    echo $! >"$dir/$name.pid"
}

# await WHAT COMMAND…: until the command succeeds, at most a minute
await() {
    local what=$1; shift
    for _ in $(seq 120); do
        if timeout 5 "$@" >/dev/null 2>&1; then return; fi
        sleep .5
    done
    fail "$what did not come up within a minute"
}

osd_is_up() { ceph osd stat | grep -q '1 up'; }

write_config() {
    local fsid=$1 mon_port=$2 endpoints="endpoint=127.0.0.1:$3" bridge
    bridge=$({ ip -4 -o addr show docker0 2>/dev/null || true; } | sed -n 's/.* inet \([0-9.]*\)\/.*/\1/p')
    [ -z "$bridge" ] || endpoints+=" endpoint=$bridge:$3"
    # One copy of everything on one disk is fine here, and so is a nearly full disk.
    cat >"$CEPH_CONF" <<C
[global]
fsid = $fsid
mon host = v2:127.0.0.1:$mon_port/0
mon initial members = a
keyring = $dir/keyring
auth allow insecure global id reclaim = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pgp num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon warn on pool no redundancy = false
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind ipv6 = false
pid file = $dir/run/\$name.pid
log file = $dir/log/\$name.log
admin socket = $dir/run/\$name.asok
run dir = $dir/run
[mon]
mon data = $dir/mon
mon cluster log file = $dir/log/cluster.log
mon data avail crit = 1
mon data avail warn = 2
[osd]
osd data = $dir/osd
osd objectstore = bluestore
bluestore block size = 8589934592
osd memory target = 939524096
osd max object name len = 256
osd max object namespace len = 64
osd class load list = *
osd class default list = *
[client.rgw]
rgw frontends = beast $endpoints
rgw data = $dir/rgw
rgw thread pool size = 32
rgw num rados handles = 1
debug rgw = 1
C
}

write_keys() {
    local ring=$dir/keyring
    {
        ceph-authtool --create-keyring "$ring" --gen-key -n mon. --cap mon 'allow *'
        ceph-authtool "$ring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
        ceph-authtool "$ring" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap mgr 'allow profile osd' --cap osd 'allow *'
        ceph-authtool "$ring" --gen-key -n client.rgw --cap mon 'allow rw' --cap osd 'allow rwx' --cap mgr 'allow rw'
    } >/dev/null
}

up() {
    local fsid osd mon_port s3_port
    [ ! -e "$dir/mon.pid" ] || down
    mkdir -p "$dir"/{mon,osd,rgw,run,log}
    export CEPH_CONF=$dir/ceph.conf
    fsid=$(uuidgen); osd=$(uuidgen)
    read -r mon_port s3_port <<<"$(free_ports)"
    write_config "$fsid" "$mon_port" "$s3_port"
    write_keys
    monmaptool --create --clobber --fsid "$fsid" --addv a "[v2:127.0.0.1:$mon_port]" "$dir/monmap" >/dev/null
    ceph-mon --mkfs -i a --monmap "$dir/monmap" --keyring "$dir/keyring"
    launch mon ceph-mon -i a -f
    await "the monitor" ceph -s
    ceph auth import -i "$dir/keyring" 2>/dev/null
    ceph osd new "$osd" 0 >/dev/null
    ceph-osd -i 0 --mkfs --osd-uuid "$osd" >"$dir/log/mkfs.out" 2>&1 || fail "the disk could not be made"
    launch osd ceph-osd -i 0 -f
    export -f osd_is_up
    await "the disk" bash -c osd_is_up
    launch rgw radosgw -n client.rgw -f
    await "the gateway" python3 -c "import socket; socket.create_connection(('127.0.0.1', $s3_port), 2)"
    radosgw-admin -n client.rgw user create --uid=test --display-name=test \
        --access-key="$access" --secret-key="$secret" >/dev/null 2>"$dir/log/user.out" || fail "the user could not be made"
    echo "CLOUDFT_TEST_CEPH=http://$access:$secret@127.0.0.1:$s3_port"
}

case $action in
    up) trap 'echo "ceph: it was not started" >&2; down' EXIT; up; trap - EXIT ;;
    down) down ;;
    *) echo "usage: ceph.sh up|down DIR" >&2; exit 2 ;;
esac
