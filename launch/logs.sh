#!/usr/bin/env bash
# Shows a job's log as it grows.
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

usage() {
  cat <<'EOF'
logs.sh NAME [flags]      follows the log of one worker, or of all; ctrl-C ends only the looking

  --worker N|all     which worker (default 0); all: of all slices, each line with its host before it
  --slice N          the worker is in this slice (default 0)
  --lines N          how many lines of the past (default 100)
  --no-follow        only those lines
EOF
  tpu_help
}

worker=0 slice=0 lines=100 no_follow=''
parse "$tpu_flags worker= slice= lines= no-follow" "$@"
target
whole lines
case $worker in all) ;; *[!0-9]*) usage_error "--worker: expected a number or all, found \"$worker\"" ;; esac
case $slice in *[!0-9]*) usage_error "--slice: expected a number, found \"$slice\"" ;; esac
[ "$slice" -lt "$count" ] || usage_error "--slice $slice: $name has the slices 0 to $((count - 1)); say --slices"

follow=-F
[ -z "$no_follow" ] || follow=''
show="tail -n $lines ${follow:+$follow }stepaudio/run/log"
hint="The job goes on; launch/stop.sh $address ends it."
if [ "$worker" = all ]; then
  each_node ssh_to all "$show 2>&1 | sed -u \"s/^/\$(hostname): /\""
elif [ "$count" -eq 1 ]; then
  ssh_to "$worker" "$show" "$name"
else
  ssh_to "$worker" "$show" "$name-$slice"
fi
