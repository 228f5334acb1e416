#!/usr/bin/env bash
# Brings Debian packages whose programs tests start: a package and its program have one name.
#
#   deploy/services.sh redis-server nginx
#
# Nothing happens where they are there already. As root, or where sudo asks for no
# password, what is missing is installed; otherwise one line says what to install. The
# tests start these programs themselves, so the services of the packages stay off.
set -euo pipefail

# Where Debian keeps nginx, which is on no ordinary user's PATH.
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin"
POLICY=/usr/sbin/policy-rc.d

say() { printf 'headrace: %s\n' "$*" >&2; }

missing() {
  local name
  for name in "$@"; do
    command -v "$name" >/dev/null || printf '%s\n' "$name"
  done
}

refuse() {
  say "this needs $*; Debian, Ubuntu: sudo apt-get install $*"
  exit 1
}

as_root() {
  if [[ "$(id -u)" == 0 ]]; then
    "$@"
  else
    sudo -n "$@"
  fi
}

may_install() {
  command -v apt-get >/dev/null && as_root true 2>/dev/null
}

apt() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=120 "$@" >&2
}

# While this file is there a package does not start its service.
keep_services_off() {
  [[ ! -e "$POLICY" ]] || return 0
  trap 'as_root rm -f "$POLICY"' EXIT
  printf '#!/bin/sh\nexit 101\n' | as_root install -m 755 /dev/stdin "$POLICY"
}

# Nor at the next boot.
disable_services() {
  [[ -d /run/systemd/system ]] || return 0
  as_root systemctl disable --quiet --now "$@" || say "could not disable the services $*"
}

mapfile -t wanted < <(missing "$@")
((${#wanted[@]} > 0)) || exit 0
may_install || refuse "${wanted[@]}"
say "installing ${wanted[*]} with apt-get, services off."
keep_services_off
apt update || say "the lists of packages could not be renewed; going on with those that are here."
apt install --no-install-recommends -y "${wanted[@]}" || refuse "${wanted[@]}"
disable_services "${wanted[@]}"
mapfile -t wanted < <(missing "$@")
((${#wanted[@]} == 0)) || refuse "${wanted[@]}"
