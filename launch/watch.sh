#!/usr/bin/env bash
# Brings a run to its end from here: creates the TPU, waits, installs, runs, and does it again after preemption.
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

usage() {
  cat <<'EOF'
watch.sh NAME --type TYPE --config FILE --workdir gs://… [flags] [-- OVERRIDE…]

create.sh, wait.sh, install.sh, run.sh; then it looks every minute until the run is done. A preempted TPU is
deleted and made again, a worker that lost its job is started again. It can be ended and started again at
any time; it goes on from where things are. At the end the TPU is left, and costs: delete.sh.

  --type --version --spot --valid-until     as create.sh has them
  --commit --allow-dirty --pull             as install.sh has them; every time the same commit
  --config --workdir                        as run.sh has them
  --every SECONDS                           between two looks (default 60)
EOF
  tpu_help
}

# shellcheck disable=SC2034  # pass reads them
type='' version='' spot='' valid_until='' commit='' allow_dirty='' pull='' config='' workdir='' every=60
create_flags='type= version= spot valid-until=' install_flags='commit= pull='
takes_rest=yes
parse "$tpu_flags $create_flags $install_flags allow-dirty config= workdir= every=" "$@"
target
need type config workdir
if [ -n "$pull" ]; then need commit; else find_commit; fi   # HEAD will have moved by the next preemption

step() {   # step SCRIPT "FLAG= …" WORD…: one of the scripts beside this, with those of our flags
  local script=$1
  # shellcheck disable=SC2086  # a list of flags
  pass $tpu_flags $2
  shift 2
  "$here/$script" "$name" ${passed[@]+"${passed[@]}"} "$@"
}

create() {
  local code=0
  step create.sh "$create_flags" || code=$?
  [ "$code" -ne 0 ] || return 0
  # Once it could be made, a refusal will pass: the quota of what was preempted comes back with some delay.
  [ "$code" -eq 75 ] || [ -n "$made" ] || exit "$code"
  say "asking again in $every s"
  sleep "$every"
}

again() {
  say "$name was preempted: making it again"
  step delete.sh '' --yes || { sleep "$every"; return 0; }
  seen=''
}

start() {   # stop first: where some workers lost the job, the others' cannot go on without it
  { [ -n "$dry_run" ] || step stop.sh ''; } && step install.sh "$install_flags" &&
    step run.sh "config= workdir=" -- ${rest[@]+"${rest[@]}"}
}

still() {   # is it as it was, or did something fail because it is being taken away?
  sleep "$every"
  [ "$(state)" = "$now" ]
}

# shellcheck disable=SC2016  # the worker's hostname
look() {   # into workers, one line for each: stepaudio HOST running|done|failed CODE|stopped|absent
  local node
  on_workers "the look" 'bash stepaudio/src/launch/worker.sh status || echo "stepaudio $(hostname) absent"' || return
  workers=''
  for node in $(nodes); do workers=$workers$(grep '^stepaudio ' "$scratch/$node")$'\n' || return; done
}

taken() {   # is a slice gone, though the queued resource still counts as active?
  local node
  for node in $(nodes); do
    case $(state "$node") in PREEMPTED | TERMINATED) return ;; esac
  done
  return 1
}

costs="$name still costs: launch/delete.sh $address"
begin() { if start; then started=yes; elif still; then die "not started (see above); $costs"; fi; }

tend() {   # the TPU is there: start the run, or see how it is
  if ! look; then
    if taken; then again; else sleep "$every"; fi
    return
  fi
  case $workers in
    *' absent'*) begin; return ;;
    *' running'*) [ -n "$started" ] || say "a run is there already: watching it"; started=yes ;;
  esac
  if [ -z "$started" ]; then begin; return; fi   # what ended there was an earlier one
  case $workers in
    *' failed '*) ! still || die "the run failed (launch/logs.sh $address); $costs"$'\n'"$workers" ;;
    *' stopped'*) die "stop.sh stopped the run; $costs" ;;
    *' running'*) sleep "$every" ;;
    *) say "done; $costs"; exit ;;
  esac
}

made='' seen='' started=''
if [ -n "$dry_run" ]; then create; step wait.sh every=; start; exit; fi
hint="What runs goes on and costs money. Watch again: the same command. End it: launch/delete.sh $address"
need_scratch
while :; do
  now=$(state) || now=UNKNOWN   # the network may be away for a while; the run goes on without us
  case $now in ABSENT | UNKNOWN) ;; *) made=yes seen=yes ;; esac
  case $now in
    ABSENT) [ -z "$seen" ] || die "$name is gone: someone deleted it, so it is not made again"; create ;;
    PREEMPTED | TERMINATED | SUSPENDED) again ;;
    FAILED | STOPPED | HIDDEN) die "$name is $now: look at it, then launch/delete.sh $address" ;;
    READY | ACTIVE) tend ;;
    UNKNOWN | SUSPENDING | STOPPING | DELETING) sleep "$every" ;;
    *) step wait.sh every= || sleep "$every" ;;
  esac
done
