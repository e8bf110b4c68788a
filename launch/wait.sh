#!/usr/bin/env bash
# Waits until a TPU is there.
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

usage() {
  cat <<'EOF'
wait.sh NAME [flags]      waits until the TPU is READY, or the queued resource ACTIVE

  --every SECONDS    between two looks (default 30)
  --timeout SECONDS  give up after so long (default 86400, a day)
EOF
  tpu_help
}

every=30 timeout=86400
parse "$tpu_flags every= timeout=" "$@"
target
whole timeout

if [ -n "$dry_run" ]; then describe; exit; fi
hint="$name is not stopped by this. See it: launch/wait.sh $address. Remove it: launch/delete.sh $address"
need_scratch
before='' failures=0
while :; do
  # shellcheck disable=SC2119  # of the whole, not of one node
  if now=$(state); then
    failures=0
  else
    failures=$((failures + 1)) now=$before
    [ "$failures" -lt 5 ] || die "gcloud failed to say how $name is, $failures times in a row (its reason is above)"
  fi
  [ "$now" = "$before" ] || say "$name is $now"
  before=$now
  case $now in
    READY | ACTIVE) exit ;;
    ABSENT) die "there is no $name here: check --zone, --project and --queued, or make it with launch/create.sh" ;;
    FAILED | SUSPENDING | SUSPENDED | PREEMPTED | TERMINATED | STOPPING | STOPPED | DELETING | HIDING | HIDDEN)
      die "$name is $now and will not be ready: remove it with launch/delete.sh $address, then create it again" ;;
  esac
  [ "$SECONDS" -lt "$timeout" ] || die "$name is still ${now:-unknown} after $timeout s; it goes on waiting:" \
    "look again with launch/wait.sh $address, or remove it with launch/delete.sh $address"
  sleep "$every"
done
