#!/bin/sh
# Sees to it that the server programs that the tests start are here: installs them on Debian, as root, and says elsewhere
# what to do. Costs nothing when they are. Creates and starts no server of the system's.
set -eu

for initdb in "$(command -v initdb || true)" /usr/lib/postgresql/*/bin/initdb; do
	if [ -x "$initdb" ]; then
		exit 0
	fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "PostgreSQL's server is missing. On Debian or Ubuntu run: sudo internal/nodes/install.sh" >&2
	echo "Elsewhere install it so that initdb is in PATH." >&2
	exit 1
fi
mkdir -p /etc/postgresql-common
if ! [ -e /etc/postgresql-common/createcluster.conf ]; then
	echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
	-o DPkg::Lock::Timeout=120 -o Dpkg::Options::=--force-confold postgresql
