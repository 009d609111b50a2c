#!/bin/sh
# Sees to it that the server programs that the tests start are here, and pytest: installs them on Debian, as root, and says
# elsewhere what to do. Costs nothing when they are. Creates and starts no server of the system's.
set -eu

missing=
have() { # have PACKAGE PROGRAM...: one of the programs is enough
	package=$1
	shift
	for program; do
		if [ -n "$program" ] && [ -x "$program" ]; then
			return
		fi
	done
	missing="$missing $package"
}
have postgresql "$(command -v initdb || true)" /usr/lib/postgresql/*/bin/initdb
have pgbouncer "$(command -v pgbouncer || true)" /usr/sbin/pgbouncer
have rabbitmq-server "$(command -v rabbitmq-server || true)" /usr/lib/rabbitmq/bin/rabbitmq-server
pytest=
for python in /usr/bin/python3 python3; do # the tests try the same: the first one in PATH may be a version manager's
	if "$python" -c 'import pytest' 2>/dev/null; then
		pytest=$(command -v "$python")
		break
	fi
done
have python3-pytest "$pytest"
missing=${missing# }
if [ -z "$missing" ]; then
	exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
	echo "missing: $missing. On Debian or Ubuntu run: sudo internal/nodes/install.sh" >&2
	echo "Elsewhere install PostgreSQL's server, pgbouncer and RabbitMQ so that initdb, pgbouncer and rabbitmq-server are in PATH," >&2
	echo "and pytest so that python3 can import it." >&2
	exit 1
fi
mkdir -p /etc/postgresql-common
if ! [ -e /etc/postgresql-common/createcluster.conf ]; then
	echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.conf
fi
if ! [ -e /usr/sbin/policy-rc.d ]; then # it decides which services a package may start
	trap 'rm -f /usr/sbin/policy-rc.d' EXIT
	printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
	chmod +x /usr/sbin/policy-rc.d
fi
epmd=$(command -v epmd || true) # comes with Erlang
apt-get update -q
# shellcheck disable=SC2086 # one word per package
DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends \
	-o DPkg::Lock::Timeout=120 -o Dpkg::Options::=--force-confold $missing
case $missing in # nor at the next boot
*pgbouncer*) update-rc.d pgbouncer disable ;;
esac
case $missing in
*rabbitmq-server*)
	update-rc.d rabbitmq-server disable
	if [ -z "$epmd" ]; then
		rm -f /etc/systemd/system/*.wants/epmd.service /etc/systemd/system/*.wants/epmd.socket
	fi
	;;
esac
