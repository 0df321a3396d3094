#!/bin/sh
# Submits a small job to a running service, waits for it, downloads its checkpoint and checks it. Exit code 0: the installation works.
#   deploy/smoke.sh http://127.0.0.1:8470        with SYNCBN_TOKEN in the environment, or the home of the controller on this machine
set -eu
SYNCBN_URL="${1:?usage: deploy/smoke.sh URL [WORKERS]}"
export SYNCBN_URL
workers="${2:-2}"
directory="$(mktemp -d)"
trap 'rm -rf "$directory"' EXIT INT TERM

cat > "$directory/smoke.yaml" <<SPEC
name: smoke
model: {name: resnet18, args: {stem: small, width: 16}}
data: {name: digits}
batch_size: 256
steps: 4
resources: {workers: $workers}
timeout_s: 600
labels: {purpose: smoke}
SPEC

job="$(syncbn submit --json "$directory/smoke.yaml" | python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])')"
echo "submitted $job"
syncbn wait "$job"
syncbn checkpoints download "$job" latest --output "$directory/checkpoint"
find "$directory/checkpoint" -name model.safetensors -size +1M | grep -q . || { echo "the checkpoint has no model" >&2; exit 1; }
echo "the service at $SYNCBN_URL trains, and its checkpoint is whole"
