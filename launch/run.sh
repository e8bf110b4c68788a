#!/usr/bin/env bash
# Starts a training run on every worker, each under a supervisor that outlives this connection.
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

usage() {
  cat <<'EOF'
run.sh NAME --config FILE --workdir FOLDER [flags] [-- OVERRIDE…]

Runs `stepaudio train --config=FILE --workdir=FOLDER OVERRIDE…` on all workers, restarted when it crashes.

  --config FILE      as it is called in the repository: configs/…py
  --workdir FOLDER   gs://…, which every worker can reach
EOF
  tpu_help
}

config='' workdir=''
takes_rest=yes
parse "$tpu_flags config= workdir=" "$@"
target
need config workdir

command=$(quoted train --config="$config" --workdir="$workdir" ${rest[@]+"${rest[@]}"})
hint="It may run on some workers: launch/stop.sh $address stops it there."
on_workers "the start" "bash stepaudio/src/launch/worker.sh start -- $command" ||
  die "not started everywhere. Nothing installed: launch/install.sh $address. Started on some: launch/stop.sh $address"
[ -n "$dry_run" ] || say "started; its log: launch/logs.sh $address"
