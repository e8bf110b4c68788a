#!/bin/sh
# Makes a virtual environment with this project in it (editable), or brings an old one up to date.
#
#   tools/setup_venv.sh VENV [EXTRAS]        e.g.  tools/setup_venv.sh .venv dev
#
#   PYTHON   the interpreter to build with; by default the newest suitable one on the PATH
#   FIRST    a requirement to install before the project; may carry pip options of its own
#
# VENV/.setup records what was installed, so a second call returns at once, a changed pyproject.toml
# installs again, and a set-up that was interrupted is thrown away and started over.
# POSIX sh and nothing beyond what a bare Debian or macOS has.
set -eu

min=11 max=14        # Python 3.11 … 3.14: the versions the JAX releases in pyproject.toml have wheels for
preferred="python3.13 python3.12 python3.11 python3.14 python3"   # 3.14 last: least tried

cd "$(dirname "$0")/.."
venv=${1:?usage: tools/setup_venv.sh VENV [EXTRAS]}
extras=${2:-}
first=${FIRST:-}
case $venv in /*) path=$venv ;; *) path=$(pwd)/$venv ;; esac
record=$venv/.setup

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Prints "3.12 full" or, where venv or ensurepip was split away as Debian does, "3.12 bare".
probe() {
  "$1" -c 'import sys
try:
    import ensurepip, venv
    kind = "full"
except ImportError:
    kind = "bare"
print("%d.%d %s" % (sys.version_info[0], sys.version_info[1], kind))' 2>/dev/null
}

suitable() {   # suitable "3.12 full"
  case $1 in 3.*) ;; *) return 1 ;; esac
  minor=${1#3.}
  minor=${minor%% *}
  [ "$minor" -ge $min ] && [ "$minor" -le $max ]
}

choose_python() {   # sets py and kind
  if [ -n "${PYTHON:-}" ]; then
    found=$(probe "$PYTHON") || die "PYTHON=$PYTHON does not run"
    suitable "$found" || die "PYTHON=$PYTHON is Python ${found%% *}; this project needs Python 3.$min to 3.$max"
    py=$PYTHON kind=${found#* }
    return
  fi
  py='' seen=''
  for candidate in $preferred; do
    found=$(probe "$candidate") || continue
    seen="$seen $candidate=${found%% *}"
    suitable "$found" || continue
    case $found in
      *full) py=$candidate kind=full; return ;;
      *) if [ -z "$py" ]; then py=$candidate kind=bare; fi ;;
    esac
  done
  [ -n "$py" ] || die "needs Python 3.$min to 3.$max, found${seen:- none}: install one" \
    "(\"sudo apt-get install python3 python3-venv\", \"brew install python@3.12\") or name it with PYTHON=/path/to/python3"
}

write_record() {   # installing|ready; moved into place whole, so it is never half written
  printf '%s\n' "$1" "$maker" "$$" "$path" "$sum" "$extras" "$first" > "$record.new"
  mv -f "$record.new" "$record"
}

read_record() {
  state='' maker=other old_pid='' old_path='' old_sum='' old_extras='' old_first=''
  [ -f "$record" ] || return 0
  {
    read -r state && read -r maker && read -r old_pid && read -r old_path &&
      read -r old_sum && read -r old_extras && read -r old_first
  } < "$record" || state=installing
}

covered() {   # is every extra wanted among those installed?
  for extra in $(printf '%s' "$extras" | tr ',' ' '); do
    case ",$old_extras," in *",$extra,"*) ;; *) return 1 ;; esac
  done
}

remove_venv() {   # never a folder that is not a virtual environment
  if [ -f "$record" ] || [ -f "$venv/pyvenv.cfg" ] || [ -z "$(ls -A "$venv")" ]; then
    rm -rf "$venv"
  else
    die "$venv exists and is not a virtual environment; name another with VENV="
  fi
}

seed_pip() {   # puts pip into $venv from whatever this machine has; $py is its interpreter
  "$venv/bin/python" -m ensurepip >/dev/null 2>&1 && return
  for pip in "$py -m pip" pip3 pip; do
    $pip --python "$venv/bin/python" install --quiet pip >/dev/null 2>&1 && return   # pip >= 22.3
  done
  return 1
}

make_venv() {
  choose_python
  machine=$("$py" -c 'import platform as p; print(p.system(), p.machine(), p.python_version())')
  case $machine in "Darwin x86_64 "*) die "JAX is no longer packaged for Intel Macs, nor for Intel builds of Python" ;; esac
  say "Making $venv with $py (${machine##* })"
  maker=setup
  mkdir -p "$venv"
  write_record installing
  if [ "$kind" = full ] && "$py" -m venv "$venv"; then return; fi
  say "$py has no complete venv module (Debian packs it apart); trying pip, then virtualenv"
  if "$py" -m venv --without-pip "$venv" >/dev/null 2>&1 && seed_pip; then return; fi
  for tool in "$py -m virtualenv" virtualenv; do
    $tool --quiet --python "$py" "$venv" >/dev/null 2>&1 && return
  done
  version=$("$py" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  rm -rf "$venv"
  if command -v apt-get >/dev/null 2>&1; then
    die "Python $version lacks venv; install it and repeat:  sudo apt-get install python$version-venv"
  fi
  die "$py lacks venv and ensurepip; install them for Python $version, or name another with PYTHON="
}

sum=$(cat pyproject.toml tools/setup_venv.sh | cksum)
read_record

at_work() {   # is the process that wrote the record still at it? (a bare container has no ps)
  [ "$state" = installing ] && [ "$old_pid" != $$ ] &&
    { cat "/proc/$old_pid/cmdline" || ps -p "$old_pid" -o args=; } 2>/dev/null | tr '\0' ' ' | grep -q setup_venv
}

# Another set-up at work on the same folder is waited for, not torn down.
waited=0
while at_work; do
  [ $waited -gt 0 ] || say "Waiting for another set-up of $venv (process $old_pid)"
  waited=$((waited + 1))
  [ $waited -le 900 ] || die "process $old_pid is still setting up $venv after 15 minutes"
  sleep 1
  read_record
done

wanted_version=''
if [ -n "${PYTHON:-}" ]; then
  choose_python
  wanted_version=$(probe "$py")
fi
version=''
if [ -x "$venv/bin/python" ]; then
  if [ "$state" = ready ] && [ -z "$wanted_version" ] && [ "$old_path" = "$path" ] &&
    [ "$old_sum" = "$sum" ] && [ "$old_first" = "$first" ] && covered; then
    exit 0
  fi
  version=$(probe "$venv/bin/python") || version=''
fi

if [ -e "$venv" ]; then
  reason=''
  if [ -z "$version" ]; then reason="its Python does not run"
  elif ! suitable "$version"; then reason="it is Python ${version%% *}, this project needs 3.$min to 3.$max"
  elif [ "$maker" = setup ] && [ "$state" = installing ]; then reason="its set-up was interrupted"
  elif [ "$maker" = setup ] && [ "$old_path" != "$path" ]; then reason="it was moved from $old_path"
  elif [ -n "$wanted_version" ] && [ "${version%% *}" != "${wanted_version%% *}" ]; then
    reason="it is Python ${version%% *}, not ${wanted_version%% *}"
  fi
  if [ -n "$reason" ]; then
    # One that someone made by hand and that still runs may hold what they want to keep.
    [ "$maker" = setup ] || [ -z "$version" ] || die "$venv: $reason; remove it, or name another with VENV="
    say "Making $venv anew: $reason"
    remove_venv
    state='' old_extras=''
  elif [ "$state" = ready ] && [ "$old_sum" = "$sum" ] && [ "$old_first" = "$first" ] && covered; then
    exit 0
  fi
fi

if [ ! -e "$venv" ]; then
  make_venv
elif ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  if [ -z "$wanted_version" ]; then choose_python; fi
  seed_pip || die "$venv has no pip and none could be put there; remove it and repeat"
fi

# What an earlier call installed stays installed: `make demo` after `make test` keeps the test tools.
if [ -n "$old_extras" ]; then
  if covered; then extras=$old_extras; else extras="$old_extras,$extras"; fi
fi
write_record installing
quiet=''
[ -t 1 ] || quiet=--quiet
pip_install() {
  # shellcheck disable=SC2086  # $quiet and $first are lists of words
  "$venv/bin/python" -m pip install --disable-pip-version-check $quiet "$@" || die "installing into $venv failed" \
    "(the lines above say why); the same command starts over"
}
say "Installing stepaudio-jax${extras:+[$extras]} into $venv; the first time takes a minute or two"
if [ -n "$first" ]; then
  # shellcheck disable=SC2086
  pip_install $first
fi
pip_install --editable ".${extras:+[$extras]}"
write_record ready
