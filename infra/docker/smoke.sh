#!/usr/bin/env bash
# The whole compose stack for real: up, one action end to end, an agent's view of the network, one node killed, audit, down.
#
#   infra/docker/smoke.sh [DIRECTORY]     an empty directory for keys and data; a temporary one by default
#
# REMIT_SMOKE_BUILD=no takes the images of an earlier run.
#
# Needs a Docker engine with compose and the base images of infra/compose.yaml (or infra/docker/standin.sh).
set -euo pipefail
cd "$(dirname "$0")/../.."
stack=${1:-$(mktemp -d)}
python=${PYTHON:-.venv/bin/python}
export DOCKER_BUILDKIT=1
compose() { docker compose -f infra/compose.yaml -f infra/docker/smoke.yaml --env-file "$stack/compose.env" --progress quiet "$@"; }
say() { printf '== %s (%s s)\n' "$1" "$SECONDS"; }
trap 'compose down -t 10 >/dev/null 2>&1 || true' EXIT

"$python" -m infra.compose "$stack" --issuer http://localhost:8400 --agent bookkeeper
# The bank's credential, as an operator would lay it down; whoever runs the containers must be able to read it.
printf smoke-bank-token-0001 >"$stack/share/executor/credentials/bank-token"
"$python" -m infra.compose "$stack" --issuer http://localhost:8400 >/dev/null
BOOKKEEPER_PUBLIC_KEY=$("$python" -c 'import sys; from pathlib import Path; from infra.local.key_ring import load_agent_public_key
print(load_agent_public_key(Path(sys.argv[1]), "bookkeeper"))' "$stack/keys")
export BOOKKEEPER_PUBLIC_KEY

build() { docker build -q ${DOCKER_BUILD_NETWORK:+--network "$DOCKER_BUILD_NETWORK"} "$@" . >/dev/null; }
if [ "${REMIT_SMOKE_BUILD:-yes}" = yes ]; then
    say "building"
    for image in intake policy approval tokens executor audit dashboard job cli; do
        build -f infra/Dockerfile --build-arg "SERVICE=$image" -t "remit-$image:dev"
    done
    build -f infra/docker/smoke.Dockerfile -t remit-smoke:dev
fi
docker image ls --format '{{.Repository}} {{.Size}}' | grep '^remit-' | sort

say "starting"
compose up --detach --no-build --wait
say "up"
remit=$(compose run --rm --no-deps person person | tee /dev/stderr | sed -n 's/.*"remit": "\([^"]*\)".*/\1/p')
compose run --rm --no-deps agent agent "$remit" first

say "what an agent can reach: every address and port of the stack is tried"
addresses=$(docker ps -q --filter label=com.docker.compose.project=remit | xargs docker inspect --format \
    '{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}' | tr ' ' '\n' | sort -u | grep .)
targets=$(for address in $addresses; do for port in 5432 6222 8080 8222 8400 8401; do echo "$address:$port"; done; done)
# shellcheck disable=SC2086  # one word an address
compose run --rm --no-deps agent probe $targets

say "one node killed"
docker kill remit-nats-2-1 >/dev/null
compose run --rm --no-deps agent agent "$remit" second
compose up --detach --no-build --wait nats-2

say "every stream three times"
docker exec remit-nats-1-1 wget -q -O - "http://127.0.0.1:8222/jsz?accounts=true&streams=true&config=true" |
    "$python" -c "import json, sys; print({s[\"name\"]: s[\"config\"][\"num_replicas\"] for a in json.load(sys.stdin)[\"account_details\"] for s in a[\"stream_detail\"]})"

say "evidence"
compose run --rm --no-deps auditor audit verify --nats --checkpoints /checkpoints
say "stopping"
compose stop -t 30
docker ps -a --filter label=com.docker.compose.project=remit --format '{{.Names}} {{.Status}}' | sort
say "done"
