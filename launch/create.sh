#!/usr/bin/env bash
# Asks for a TPU: now, or as a queued resource; several slices are one queued resource.
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

usage() {
  cat <<'EOF'
create.sh NAME --type TYPE [flags]      asks for a TPU, which costs money from then on

  --type TYPE        accelerator type: v4-8, v5litepod-16, v5p-128, v6e-64, …
  --version RUNTIME  runtime version; by default the one for JAX on that type
  --spot             cheaper, and taken away at any time: watch.sh brings it back
  --valid-until 6h   give up on a queued request after so long
EOF
  tpu_help
  echo
  echo "Exit status 75: no capacity in the zone just now."
}

type='' version='' spot='' valid_until=''
parse "$tpu_flags type= version= spot valid-until=" "$@"
target
need type
[ -z "$valid_until" ] || [ -n "$queued" ] || usage_error "--valid-until is for --queued"

case ${version:+given}$type in
  given*) ;;
  v2-* | v3-* | v4-*) version=tpu-ubuntu2204-base ;;
  v5litepod-*) version=v2-alpha-tpuv5-lite ;;
  v5p-*) version=v2-alpha-tpuv5 ;;
  v6e-*) version=v2-alpha-tpuv6e ;;
  tpu7x* | v7x*) usage_error "--type $type: TPU7x is to be had on GKE only; use gke.sh" ;;
  *) usage_error "--type $type: expected v4-8, v5litepod-16, v5p-128, v6e-64 or alike; another needs --version" ;;
esac

create() {
  local which=(--node-id="$name")
  if [ -z "$queued" ]; then
    tpus tpu-vm create "$name" --accelerator-type="$type" --version="$version" ${spot:+--spot}
    return
  fi
  [ "$count" -eq 1 ] || which=(--node-count="$count" --node-prefix="$name")
  tpus queued-resources create "$name" --accelerator-type="$type" --runtime-version="$version" "${which[@]}" \
    ${spot:+--spot} ${valid_until:+"--valid-until-duration=$valid_until"}
}

if [ -n "$dry_run" ]; then create; exit; fi
hint="$name may exist by now and cost money. See it: launch/wait.sh $address. Remove it: launch/delete.sh $address"
need_scratch
code=0
{ create 2>&1 >&3 | tee "$scratch/error" >&2; } 3>&1 || code=$?
if [ "$code" -eq 0 ]; then
  say "asked for $name; next: launch/wait.sh $address"
elif grep -qiE 'no more capacity|insufficient.*capacity|not enough (resources|capacity)|stockout' "$scratch/error"; then
  say "no $type to be had in this zone now: --queued waits for one, or try another --zone or a smaller --type"
  exit 75
elif grep -qiE 'quota|RESOURCE_EXHAUSTED' "$scratch/error"; then
  die "refused for lack of quota for $type${spot:+ spot} here: ask for \"TPU\" quota of the Cloud TPU API under" \
    "IAM & Admin > Quotas in the console, or try another --zone, a smaller --type, or --spot, whose quota is separate"
else
  die "gcloud could not create $name (its reason is above); anything left over: launch/delete.sh $address"
fi
