#!/usr/bin/env bash
# Runs a command and starts it again when it crashes. Runs on a worker, started by worker.sh.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'EOF'
supervise.sh [flags] -- COMMAND…      runs COMMAND until it ends well

Exit status 0 of COMMAND ends it; so does 2, a mistake in its arguments or config, which would only happen
again. Any other, or a signal, starts it again. SIGTERM and SIGINT are passed on and end it.

  --backoff SECONDS  pause before the first restart (default 5); doubled after each quick failure, at most 300
  --quick SECONDS    a run that failed sooner than this was quick (default 60)
  --max-quick N      give up after so many quick failures in a row (default 5)
  --grace SECONDS    what is passed a signal is killed after so long (default 120)
  --exit-file FILE   gets the exit status at the end
  --dry-run          print the command, run nothing
  --help             this
EOF
}

backoff=5 quick=60 max_quick=5 grace=120 exit_file=''
takes_rest=yes
parse "backoff= quick= max-quick= grace= exit-file= dry-run" "$@"
whole max-quick
[ ${#rest[@]} -gt 0 ] || usage_error "no command after --"
if [ -n "$dry_run" ]; then run "${rest[@]}"; exit; fi

signal='' child='' killer=''
tell() { printf '[supervise %s] %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$*"; }
note() { [ -z "$exit_file" ] || echo "$1" >"$exit_file"; }
end() { tell "$2"; exit "$1"; }
kill_group() { kill -s KILL -- "-$1" 2>/dev/null || true; }

launch() {   # launch COMMAND…: in a process group of its own, where SIGINT is not ignored as it is after a plain &
  set -m
  "$@" &
  child=$!
  set +m
}

pass_on() {   # pass_on SIGNAL: to the child, once; it is killed if it does not end by that
  signal=$1
  if [ -z "$child" ] || [ -n "$killer" ]; then return; fi
  local doomed=$child
  kill -s "$1" "$child" 2>/dev/null || true
  set -m
  { sleep "$grace"; kill_group "$doomed"; } &
  killer=$!
  set +m
}

await() {   # until the child is gone; its status in code. A signal cuts wait short, hence the loop.
  [ -z "$signal" ] || pass_on "$signal"   # it came while there was no child
  while :; do
    code=0
    wait "$child" 2>/dev/null || code=$?
    kill -0 "$child" 2>/dev/null || break
  done
  kill_group "$child"   # what it left behind would hold the TPU
  child=''
  [ -z "$killer" ] || kill_group "$killer"
  case $signal in
    TERM) end 143 "ended by SIGTERM" ;;
    INT) end 130 "ended by SIGINT" ;;
  esac
}

trap 'pass_on TERM' TERM
trap 'pass_on INT' INT
trap 'note $?' EXIT

failures=0 attempt=0
while :; do
  attempt=$((attempt + 1)) began=$SECONDS
  tell "run $attempt: $(quoted "${rest[@]}")"
  launch "${rest[@]}"
  await
  case $code in
    0) end 0 "done" ;;
    2) end 2 "exit status 2: a mistake in the command or its config, not tried again" ;;
  esac
  if [ $((SECONDS - began)) -lt "$quick" ]; then failures=$((failures + 1)); else failures=0; fi
  [ "$failures" -lt "$max_quick" ] || end "$code" "exit status $code; gave up after $failures quick failures"
  pause=$backoff
  for ((i = 1; i < failures && pause < 300; i++)); do pause=$((pause * 2)); done
  [ "$pause" -le 300 ] || pause=300
  tell "exit status $code; again in $pause s"
  launch sleep "$pause"
  await
done
