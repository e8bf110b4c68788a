#!/usr/bin/env bash
# Runs a training run as a JobSet on the TPU node pools of a GKE cluster, which kubectl points at.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'EOF'
gke.sh NAME --chip CHIP --topology AxBxC --image IMAGE --config FILE --workdir gs://… [flags] [-- OVERRIDE…]

  --chip CHIP            v4, v5e, v5p, v6e or tpu7x
  --topology AxB[xC]     of one slice, as its node pool has it: 4x4x4, or 4x8 on v5e and v6e
  --slices N             so many slices (default 1), each a node pool
  --image IMAGE          with this package installed: `stepaudio` must be on its PATH
  --config FILE          as it is called in the image, from its working directory
  --workdir FOLDER       gs://…, which the pods can reach
  --chips-per-host N     by default 4, or all where a slice has fewer
  --max-restarts N       of the whole set (default 100)
  --namespace NAMESPACE  default: default
  --account ACCOUNT      Kubernetes service account (default: default)
  --dry-run              print the manifest, apply nothing
  --help                 this

Look: kubectl get jobset NAME. Log: kubectl logs -f job/NAME-slice-0. End: kubectl delete jobset NAME
EOF
}

chip='' topology='' image='' config='' workdir='' chips_per_host='' max_restarts=100 namespace=default account=default
slices=1
takes_rest=yes
parse "chip= topology= slices= image= config= workdir= chips-per-host= max-restarts= namespace= account= dry-run" "$@"
check_name 40   # pods are called NAME-slice-0-0-xxxxx
need chip topology image config workdir
whole slices max-restarts

case $chip in
  v4) accelerator=tpu-v4-podslice axes=3 example=2x2x4 ;;
  v5e) accelerator=tpu-v5-lite-podslice axes=2 example=4x8 ;;
  v5p) accelerator=tpu-v5p-slice axes=3 example=2x2x4 ;;
  v6e) accelerator=tpu-v6e-slice axes=2 example=4x8 ;;
  tpu7x) accelerator=tpu7x axes=3 example=2x2x4 ;;
  *) usage_error "--chip: expected v4, v5e, v5p, v6e or tpu7x, found \"$chip\"" ;;
esac
pattern='^[1-9][0-9]*(x[1-9][0-9]*)+$' crosses=${topology//[0-9]/}
{ [[ $topology =~ $pattern ]] && [ ${#crosses} -eq $((axes - 1)) ]; } ||
  usage_error "--topology: $chip has $axes axes, expected $example or alike, found \"$topology\""
chips=$((${topology//x/*}))
[ -n "$chips_per_host" ] || chips_per_host=$((chips < 4 ? chips : 4))
whole chips-per-host
[ $((chips % chips_per_host)) -eq 0 ] ||
  usage_error "--chips-per-host $chips_per_host: does not divide the $chips chips of $topology"
plain='^[A-Za-z0-9][-A-Za-z0-9._/:@]*$'
for value in "$image" "$namespace" "$account"; do
  [[ $value =~ $plain ]] || usage_error "\"$value\": expected letters, digits and -._/:@ only"
done

shopt -u patsub_replacement 2>/dev/null || true   # since bash 5.2 an & in a replacement would be what was matched
json() {   # json WORD…: a list of strings for YAML; Kubernetes reads $$ as a dollar sign
  local word list=''
  for word in "$@"; do
    case $word in *[[:cntrl:]]*) usage_error "$(quoted "$word"): a line break or another control character" ;; esac
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    word=${word//\$/\$\$}
    list="$list, \"$word\""
  done
  printf '[%s]' "${list#, }"
}

fill() { manifest=${manifest//@$1@/$2}; }
manifest=$(cat "$here/gke/jobset.yaml")
arguments=$(json train --config="$config" --workdir="$workdir" ${rest[@]+"${rest[@]}"})
fill NAME "$name"
fill NAMESPACE "$namespace"
fill RESTARTS "$max_restarts"
fill SLICES "$slices"
fill HOSTS $((chips / chips_per_host))
fill ACCOUNT "$account"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$topology"
fill IMAGE "$image"
fill CHIPS "$chips_per_host"
fill ARGUMENTS "$arguments"   # last: what the user wrote is not searched for names

if [ -n "$dry_run" ]; then
  printf '# kubectl apply -f -\n%s\n' "$manifest"
  exit
fi
hint="It may be running by now. See it: kubectl get jobset $name. End it: kubectl delete jobset $name"
printf '%s\n' "$manifest" | kubectl apply -f -
say "log: kubectl logs -f job/$name-slice-0 -n $namespace; end: kubectl delete jobset $name -n $namespace"
