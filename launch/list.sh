#!/usr/bin/env bash
# Lists the TPUs and queued requests of a zone: what costs money there.
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

usage() {
  cat <<'EOF'
list.sh [flags]      lists TPUs and queued resources

  --zone ZONE        where; gcloud's configured zone by default
  --project PROJECT  whose; gcloud's configured project by default
  --dry-run          print the commands, run none
  --help             this
EOF
}

parse "$where_flags" "$@"
[ -z "$name" ] || usage_error "expected no name, found \"$name\""
tpus tpu-vm list
tpus queued-resources list
