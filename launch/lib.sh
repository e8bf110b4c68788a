# shellcheck shell=bash
# Sourced by every script here: arguments, messages, --dry-run, ctrl-C.
# Nothing newer than bash 3.2, which macOS ships; there "${empty[@]}" is an error under set -u.
set -euo pipefail

me=${0##*/}
# shellcheck disable=SC2034  # for the scripts
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dry_run='' name='' takes_rest='' rest=() passed=()
scratch='' leftover='' children='' hint=''

say() { printf '%s: %s\n' "$me" "$*" >&2; }
die() { say "$@"; exit 1; }
usage_error() { say "$*; see $me --help"; exit 2; }

# parse "FLAG= SWITCH …" ARGUMENT…: a value into the variable named after each flag, the one word that is
# no flag into name, what follows -- into rest, in a script that takes_rest. The script defines usage().
parse() {
  local known=" $1 " word flag value
  shift
  while [ $# -gt 0 ]; do
    word=$1 value=yes
    shift
    case $word in
      --help | -h) usage; exit ;;
      --)
        [ -n "$takes_rest" ] || usage_error "nothing is expected after --"
        rest=("$@")
        return ;;
      -*)
        flag=${word#--} flag=${flag%%=*}
        case $known in
          *" $flag "*) [ "$word" = "--$flag" ] || usage_error "--$flag takes no value, found \"$word\"" ;;
          *" $flag= "*)
            if [ "$word" != "--$flag" ]; then value=${word#*=}
            else case ${1:-} in '' | --*) value='' ;; *) value=$1; shift ;; esac; fi
            [ -n "$value" ] || usage_error "--$flag needs a value" ;;
          *) usage_error "no such flag: \"$word\"; expected one of:${known// / --}help" ;;
        esac
        printf -v "${flag//-/_}" %s "$value" ;;
      *) [ -z "$name" ] || usage_error "expected one name, found \"$name\" and \"$word\""; name=$word ;;
    esac
  done
}

need() {   # need FLAG…: these must have been given
  local flag variable
  for flag in "$@"; do
    variable=${flag//-/_}
    [ -n "${!variable}" ] || usage_error "--$flag is missing"
  done
}

whole() {   # whole FLAG…: these must be whole numbers above 0
  local flag variable
  for flag in "$@"; do
    variable=${flag//-/_}
    case ${!variable} in
      '' | 0* | *[!0-9]*) usage_error "--$flag: expected a whole number above 0, found \"${!variable}\"" ;;
    esac
  done
}

check_name() {   # check_name MOST: what Google Cloud and Kubernetes both take as a name (RFC 1123, a letter first)
  local LC_ALL=C pattern='^[a-z]([-a-z0-9]*[a-z0-9])?$'
  [ -n "$name" ] || usage_error "NAME is missing"
  { [[ $name =~ $pattern ]] && [ ${#name} -le "$1" ]; } || usage_error "NAME \"$name\": expected at most $1" \
    "lower-case letters, digits and hyphens, a letter first and no hyphen last"
}

pass() {   # pass FLAG= SWITCH …: those that were given, into passed, for another script
  local flag variable
  passed=()
  for flag in "$@"; do
    variable=${flag%=} variable=${variable//-/_}
    [ -n "${!variable}" ] || continue
    case $flag in *=) passed+=("--$flag${!variable}") ;; *) passed+=("--$flag") ;; esac
  done
}

quoted() {   # the words as one line that a shell reads back as these words
  local line
  printf -v line ' %q' "$@"
  printf '%s' "${line# }"
}

run() {
  if [ -z "$dry_run" ]; then "$@"; else printf '%s\n' "$(quoted "$@")"; fi
}

need_scratch() { [ -n "$scratch" ] || scratch=$(mktemp -d "${TMPDIR:-/tmp}/stepaudio-launch.XXXXXX"); }

interrupted() {   # children lead process groups of their own, which ctrl-C in a terminal does not reach
  local child
  trap '' INT TERM
  for child in $children; do kill -s TERM -- "-$child" 2>/dev/null || true; done
  say "stopped.${hint:+ $hint}"
  exit "$1"
}
trap 'interrupted 130' INT
trap 'interrupted 143' TERM
trap '[ -z "$scratch" ] || rm -rf "$scratch"; [ -z "$leftover" ] || rm -f "$leftover"' EXIT
