#!/bin/sh
# Joins the Ray cluster with no CPUs of its own, then becomes the controller. Neither outlives the other: the container ends with both.
set -eu
: "${SYNCBN_RAY_ADDRESS:?set it to host:port of the Ray head}"
# libpq takes no password from a file that others may read, as secrets are that an engine mounts.
if [ -n "${PGPASSFILE:-}" ]; then
    install -m 0600 "$PGPASSFILE" "$SYNCBN_HOME/.pgpass"
    export PGPASSFILE="$SYNCBN_HOME/.pgpass"
fi
ray start --address="$SYNCBN_RAY_ADDRESS" --num-cpus=0 --num-gpus=0 --object-store-memory=100000000 --disable-usage-stats
# A controller that other machines reach wants its token before it listens. It is in the home's volume, not in the log.
[ -e "${SYNCBN_HOME}/token" ] || syncbn tokens init > /dev/null
exec syncbn serve "$@"
