#!/usr/bin/env bash
# Puts the code at one commit on every worker and installs it there.
# shellcheck source-path=SCRIPTDIR source=tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

usage() {
  cat <<'EOF'
install.sh NAME [flags]      copies this repository's commit to all workers and installs it

  --commit SHA       which commit (default HEAD, and then nothing may be uncommitted)
  --allow-dirty      send HEAD although there are uncommitted changes, without them
  --pull URL         the workers clone URL instead; needs --commit, as its full SHA
EOF
  tpu_help
}

commit='' allow_dirty='' pull=''
parse "$tpu_flags commit= allow-dirty pull=" "$@"
target

# A running job would go on with half of the old code and half of the new.
idle='if [ -e stepaudio/src/launch/worker.sh ]; then bash stepaudio/src/launch/worker.sh idle; fi'
fresh="set -e; cd; $idle; mkdir -p stepaudio; rm -rf stepaudio/src"
setup='bash stepaudio/src/launch/worker.sh install'

if [ -n "$pull" ]; then
  need commit
  code="$fresh; GIT_TERMINAL_PROMPT=0 git clone --quiet $(quoted "$pull") stepaudio/src"
  code="$code; git -C stepaudio/src checkout --quiet $(quoted "$commit"); $setup"
else
  find_commit
  archive=stepaudio-$name-$commit.tar.gz
  code="$fresh; mkdir stepaudio/src; tar -xzf $archive -C stepaudio/src; rm $archive; $setup"
  # Inside .git, and from there: no colon in the path for scp to trip over, nothing new for git status.
  cd "${here%/*}"
  folder=$(git rev-parse --git-dir)
  [ -n "$dry_run" ] || leftover=$folder/$archive
  run git archive --format=tar.gz --output="$folder/$archive" "$commit"
fi

hint="Some workers may be half installed: run this again before launch/run.sh."
send() {   # send NODE
  tpus tpu-vm scp "$folder/$archive" "$1:$archive" --worker=all
}
[ -n "$pull" ] || each_node send || die "copying the code to $name failed (see above); with several workers, scp" \
  "needs the key in the agent: ssh-add ~/.ssh/google_compute_engine"
[ -n "$dry_run" ] || say "installing ${commit:0:12} on all workers of $name; a first time takes some minutes"
on_workers "the installation" "$code" || die "not everything is installed: mend what is said above and run this again"
[ -n "$dry_run" ] || say "installed; next: launch/run.sh $address --config … --workdir gs://…"
