#!/usr/bin/env bash
# What the other scripts ask of one worker. Runs there, on what install.sh put into ~/stepaudio:
#   src/ the code   venv/ the environment   install.log   run/pid, log, exit, stopped: the job
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'EOF'
worker.sh install                   makes the environment from the code that lies beside this
worker.sh start -- ARGUMENT…        runs `stepaudio ARGUMENT…` under the supervisor
worker.sh status                    running, done, failed CODE, stopped, or absent (killed, or never started)
worker.sh idle                      fails while a job runs
worker.sh stop                      ends the job and waits until it is gone

  --dry-run   print the commands, run none
  --help      this
EOF
}

takes_rest=yes
parse dry-run "$@"
src=${here%/*} home=${here%/*/*}
job=$home/run host=$(hostname)

alive() {   # a process of that number may be another one's after a reboot, so its name is looked at
  local pid
  pid=$(cat "$job/pid" 2>/dev/null) || return
  case $({ tr '\0' ' ' <"/proc/$pid/cmdline" || ps -o args= -p "$pid"; } 2>/dev/null) in
    *supervise.sh*) ;;
    *) return 1 ;;
  esac
}

install() {
  cd "$src" || return
  # The images for v4 to v6e have Python 3.10; uv brings a newer one without root.
  if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    PIP_BREAK_SYSTEM_PACKAGES=1 run python3 -m pip install --quiet --user uv || return
    run python3 -m uv python install 3.12 || return
    if [ -z "$dry_run" ]; then PYTHON=$(python3 -m uv python find --system 3.12) || return; export PYTHON; fi
  fi
  run sh tools/setup_venv.sh "$home/venv" tpu
}

status() {
  if alive; then echo running; return; fi
  if [ -e "$job/stopped" ]; then echo stopped; return; fi
  case $(cat "$job/exit" 2>/dev/null) in
    '' | 130 | 143) echo absent ;;
    0) echo "done" ;;
    *) echo "failed $(cat "$job/exit")" ;;
  esac
}

stop() {
  alive || return 0
  [ -n "$dry_run" ] || touch "$job/stopped"   # first: ended by SIGTERM without it means preempted
  run kill -s TERM "$(cat "$job/pid")"
  [ -z "$dry_run" ] || return 0
  while alive; do sleep 0.1; done
}

case $name in
  install)
    if [ -n "$dry_run" ]; then install; exit; fi
    install >"$home/install.log" 2>&1 ||
      { code=$?; tail -n 20 "$home/install.log" | sed "s/^/$host: /" >&2; exit "$code"; } ;;
  start)
    if alive; then die "$host: a job runs here already: launch/stop.sh ends it"; fi
    [ -x "$home/venv/bin/stepaudio" ] || die "$host: no $home/venv/bin/stepaudio: run launch/install.sh first"
    cd "$src"
    set -- bash "$here/supervise.sh" --exit-file="$job/exit" -- "$home/venv/bin/stepaudio" ${rest[@]+"${rest[@]}"}
    if [ -n "$dry_run" ]; then run "$@"; exit; fi
    mkdir -p "$job"
    rm -f "$job/exit" "$job/stopped"
    set -m   # a process group of its own: nothing sent to this connection's reaches it
    nohup "$@" >>"$job/log" 2>&1 </dev/null &
    echo "$!" >"$job/pid" ;;
  status) echo "stepaudio $host $(status)" ;;
  idle) if alive; then die "$host: a job runs here: launch/stop.sh ends it"; fi ;;
  stop) stop ;;
  *) usage_error "expected install, start, status, idle or stop, found \"$name\"" ;;
esac
