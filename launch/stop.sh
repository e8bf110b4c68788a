#!/usr/bin/env bash
# Ends the job on every worker. The TPU stays.
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

usage() {
  cat <<'EOF'
stop.sh NAME [flags]      ends the job on all workers (SIGTERM, after two minutes SIGKILL) and waits for that

EOF
  tpu_help
}

parse "$tpu_flags" "$@"
target
hint="Some workers may go on; run this again."
# Where nothing was ever installed there is nothing to stop.
on_workers "the stop" "if [ -e stepaudio/src/launch/worker.sh ]; then bash stepaudio/src/launch/worker.sh stop; fi" ||
  die "not stopped everywhere: run this again"
[ -n "$dry_run" ] || say "stopped; $name still costs money until launch/delete.sh $address"
