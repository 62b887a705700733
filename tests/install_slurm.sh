#!/usr/bin/env bash
# SLURM for test_slurm.py and a C compiler for test_failing_calls.py, from Debian's or Ubuntu's
# packages, where this may be done.
# Where it cannot be installed those tests are skipped, so this says why and never fails.
set -u
packages=(munge slurmctld slurmd slurm-client gcc libc6-dev)
PATH=$PATH:/usr/sbin:/sbin

lacking() { for c in munged slurmctld slurmd srun gcc; do command -v "$c" >/dev/null || return 0; done; return 1; }
leave() { echo "SLURM: $1; its tests will be skipped (packages: ${packages[*]})"; exit 0; }

lacking || { echo "SLURM: installed already"; exit 0; }
[ "$(id -u)" = 0 ] || leave "absent, and only root can install it"
command -v apt-get >/dev/null || leave "absent, and there is no apt-get"

# packages start their services unless this policy says no; the tests start their own
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
  trap 'rm -f $policy' EXIT
  printf '#!/bin/sh\nexit 101\n' >$policy && chmod +x $policy
fi
export DEBIAN_FRONTEND=noninteractive
install() { timeout 300 apt-get install -y -qq --no-install-recommends "${packages[@]}" >/dev/null 2>&1; }
install || { timeout 120 apt-get update -qq >/dev/null 2>&1; install; } || leave "apt-get could not install it"
if lacking; then leave "installed in part only"; fi
echo "SLURM: installed"
