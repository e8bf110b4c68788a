#!/usr/bin/env bash
# Deletes a TPU, which ends its costs.
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

usage() {
  cat <<'EOF'
delete.sh NAME [flags]      deletes the TPU and all that lies on its machines, after asking

  --yes              do not ask
EOF
  tpu_help
}

yes=''
parse "$tpu_flags yes" "$@"
target

if [ -z "$dry_run" ] && [ -z "$yes" ]; then
  printf 'This deletes %s and what is on its machines. Type its name to go on: ' "$address" >&2
  read -r answer || answer=''
  [ "$answer" = "$name" ] || die "\"$answer\" is not \"$name\": nothing deleted"
fi
hint="$name may still be there and cost money: run this again."
if [ -n "$queued" ]; then
  tpus queued-resources delete "$name" --force   # with its nodes
else
  tpus tpu-vm delete "$name"
fi
