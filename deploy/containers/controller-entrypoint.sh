#!/bin/sh
# Joins the Ray cluster with no CPUs of its own, then becomes the controller. Neither outlives the other: the container ends with both.
set -eu
: "${SYNCBN_RAY_ADDRESS:?set it to host:port of the Ray head}"
ray start --address="$SYNCBN_RAY_ADDRESS" --num-cpus=0 --num-gpus=0 --object-store-memory=100000000 --disable-usage-stats
# A controller that other machines reach wants its token before it listens. It is in the home's volume, not in the log.
[ -e "${SYNCBN_HOME}/token" ] || syncbn tokens init > /dev/null
exec syncbn serve "$@"
