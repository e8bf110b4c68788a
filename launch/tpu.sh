# shellcheck shell=bash
# Sourced by the scripts that speak to Cloud TPU: which TPU, how it is, and commands on its workers.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

where_flags='zone= project= dry-run'
# shellcheck disable=SC2034  # for the scripts, as address below
tpu_flags="$where_flags slices= queued"   # each script adds its own
zone='' project='' slices='' queued=''

tpu_help() {
  cat <<'EOF'
  --zone ZONE        where the TPU is; gcloud's configured zone by default
  --project PROJECT  whose it is; gcloud's configured project by default
  --slices N         it has N slices, the nodes NAME-0, NAME-1, …; more than one is always queued
  --queued           it is a queued resource
  --dry-run          print the commands, quoted for a shell, and run none
  --help             this
EOF
}

target() {   # after parse: the TPU that is meant
  check_name 50
  [ -z "$slices" ] || whole slices
  count=${slices:-1}
  [ "$count" -eq 1 ] || queued=yes
  pass zone= project= slices= queued
  # shellcheck disable=SC2034
  address=$(quoted "$name" ${passed[@]+"${passed[@]}"})   # for the next command a message names
}

tpus() {   # tpus WORD…: gcloud compute tpus, in the zone and project given; it never asks
  run gcloud compute tpus "$@" ${zone:+"--zone=$zone"} ${project:+"--project=$project"} --quiet
}

describe() {   # describe [NODE]: the state of that node, or of the whole
  if [ -n "$queued" ] && [ $# -eq 0 ]; then tpus queued-resources describe "$name" '--format=value(state.state)'
  else tpus tpu-vm describe "${1:-$name}" '--format=value(state)'; fi
}

state() {   # state [NODE]: as describe, or ABSENT; fails where gcloud cannot tell. Call need_scratch before.
  if describe "$@" 2>"$scratch/error"; then return; fi
  if grep -qE 'NOT_FOUND|was not found' "$scratch/error"; then echo ABSENT; return; fi
  cat "$scratch/error" >&2
  return 1
}

nodes() {
  local slice
  if [ "$count" -eq 1 ]; then echo "$name"; return; fi
  for ((slice = 0; slice < count; slice++)); do echo "$name-$slice"; done
}

each_node() {   # each_node COMMAND…: with each node's name as last word, all at once; fails if one failed
  local node child code=0
  if [ "$count" -eq 1 ]; then "$@" "$name"; return; fi
  for node in $(nodes); do
    if [ -n "$dry_run" ]; then "$@" "$node"; continue; fi
    set -m   # a process group each, so that ctrl-C can end gcloud together with the ssh it started
    ("$@" "$node") </dev/null &
    set +m
    children="$children $!"
  done
  for child in $children; do wait "$child" || code=$?; done
  children=''
  return "$code"
}

ssh_to() { tpus tpu-vm ssh "$3" "--worker=$1" "--command=$2"; }   # ssh_to WORKER COMMAND NODE

# on_workers DOING COMMAND: on every worker of every node; says where it failed and how that ended.
# What the workers print is in $scratch/NODE.
on_workers() {
  need_scratch
  each_node on_workers_of "$@"
}

on_workers_of() {   # on_workers_of DOING COMMAND NODE
  local log=$scratch/$3 code=0 failed
  if [ -n "$dry_run" ]; then ssh_to all "$2" "$3"; return; fi
  (ssh_to all "$2" "$3") >"$log" 2>&1 || code=$?   # in a subshell, or what a trap says would go there too
  [ "$code" -ne 0 ] || return 0
  failed=$(sed -n 's/^##### Command execution on worker \([0-9]*\) failed.*/\1/p' "$log" | sort -nu | tr '\n' ' ')
  grep -v 'Attempting to connect to worker' "$log" | tail -n 60 >&2 || true
  say "$1 failed on $3, ${failed:+worker ${failed% }, }exit status $code; its last lines are above"
  return "$code"
}

# The commit to install. Uncommitted changes never travel: they are refused, unless a commit was named.
find_commit() {
  local wanted=${commit:-HEAD} repo=${here%/*}
  commit=$(git -C "$repo" rev-parse --quiet --verify "$wanted^{commit}") ||
    die "--commit $wanted: no such commit in $repo"
  if [ "$wanted" != HEAD ] || [ -z "$(git -C "$repo" status --porcelain)" ]; then return; fi
  [ -n "$allow_dirty" ] || die "$repo has uncommitted changes (git status): commit them, or send commit" \
    "${commit:0:12} without them with --allow-dirty"
  say "uncommitted changes are left out: sending commit ${commit:0:12}"
}
