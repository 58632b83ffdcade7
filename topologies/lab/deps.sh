#!/usr/bin/env bash
# Installs what the demo and the tests need. Asks nothing; quick when nothing is missing.
# Everything comes from Debian's own archive. QEMU 10 and libvirt 11 come from
# bookworm-backports, because QEMU 7.2 under TCG corrupts a live-migrated guest
# (docs/dependencies.md has the measurement).
set -euo pipefail

cache=${HELIOTROPE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/heliotrope}
kernel_package=linux-image-cloud-amd64

say() { printf 'deps: %s\n' "$*"; }
die() {
	printf 'deps: %s\n' "$@" >&2
	exit 1
}

by_hand='Install by hand: Open vSwitch >= 3.1, BIRD 2, QEMU >= 8 (10 is tested) with qemu-utils, libvirt >= 9 (daemon and virsh), iproute2, ethtool, openssl; PostgreSQL, Redis, etcd, nginx, iperf3, nfdump, softflowd and curl for the tests of traffic; CBC and METIS for those of plans; rsync, casync, nbdkit, libnbd (nbdinfo, nbdcopy) and debootstrap for those of images; and unpack a Debian cloud kernel (package linux-image-cloud-amd64) so that '"$cache/guest"' holds vmlinuz and modules/.'

check_go() {
	command -v go >/dev/null || die 'no "go" in PATH: install Go 1.26 or newer from https://go.dev/dl/'
	local have
	have=$(GOTOOLCHAIN=local go env GOVERSION | sed 's/^go//')
	if [ "$(printf '%s\n1.26\n' "$have" | sort -V | head -n1)" != 1.26 ]; then
		die "Go $have is too old: install Go 1.26 or newer from https://go.dev/dl/"
	fi
}

missing_programs() {
	local p
	for p in ovs-vswitchd ovsdb-server ovs-vsctl ovs-ofctl bird birdc qemu-system-x86_64 qemu-img libvirtd virtlogd virsh ip ethtool openssl unshare nsenter; do
		PATH="$PATH:/usr/sbin:/sbin" command -v "$p" >/dev/null || echo "$p"
	done
}

qemu_too_old() {
	local v
	v=$(qemu-system-x86_64 --version 2>/dev/null | sed -n 's/.*version \([0-9]*\).*/\1/p' | head -n1)
	[ -z "$v" ] || [ "$v" -lt 8 ]
}

guest_kernel_missing() { [ ! -s "$cache/guest/vmlinuz" ] || [ ! -d "$cache/guest/modules" ]; }

# Another apt may be at work on a fresh machine (unattended upgrades): wait for it.
apt() { DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300 -o Dpkg::Options::=--force-confold "$@"; }

enable_backports() {
	apt-cache policy | grep -q bookworm-backports && return
	say 'enabling bookworm-backports (QEMU 10, libvirt 11)'
	cat >/etc/apt/sources.list.d/heliotrope-backports.sources <<-END
		Types: deb
		URIs: http://deb.debian.org/debian
		Suites: bookworm-backports
		Components: main
		Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
	END
}

# The lab starts its own daemons in its own namespaces; the packages must not start
# system-wide ones on a machine that did not run them before.
without_services() {
	local policy=/usr/sbin/policy-rc.d made=
	if [ ! -e "$policy" ]; then
		printf '#!/bin/sh\nexit 101\n' >"$policy"
		chmod 755 "$policy"
		made=1
	fi
	local rc=0
	"$@" || rc=$?
	[ -z "$made" ] || rm -f "$policy"
	return $rc
}

# What traffic, plans and images are tested and measured with, by its packages: a collector that
# is not ours, real applications, a solver that proves optima, a partitioner of graphs, others'
# copies and block devices.
missing_apps() {
	local has='command -v' PATH="$PATH:/usr/sbin:/sbin"
	ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || echo postgresql
	$has redis-server >/dev/null || echo redis-server
	$has etcd >/dev/null || echo etcd-server
	$has etcdctl >/dev/null || echo etcd-client
	$has nginx >/dev/null || echo nginx-light
	$has iperf3 >/dev/null || echo iperf3
	$has nfcapd >/dev/null || echo nfdump
	$has softflowd >/dev/null || echo softflowd
	$has curl >/dev/null || echo curl
	$has cbc >/dev/null || echo coinor-cbc
	$has gpmetis >/dev/null || echo metis
	$has rsync >/dev/null || echo rsync
	$has casync >/dev/null || echo casync
	$has nbdkit >/dev/null || echo nbdkit
	$has nbdinfo >/dev/null || echo libnbd-bin
	$has debootstrap >/dev/null || echo debootstrap
}

# A machine that did not serve these before does not do so after its next boot either.
install_apps() {
	say "installing what tests and benchmarks of traffic, plans and images run: $*"
	without_services apt install --no-install-recommends "$@"
	command -v systemctl >/dev/null || return 0
	local package
	for package in "$@"; do
		case $package in
		postgresql | redis-server | nfdump | softflowd) ;;
		etcd-server | nginx-light) package=${package%-*} ;;
		*) continue ;;
		esac
		systemctl --quiet disable "$package.service" 2>/dev/null || true
	done
}

install_packages() {
	enable_backports
	apt update
	say 'installing Open vSwitch, BIRD, tools'
	without_services apt install --no-install-recommends openvswitch-switch bird2 iproute2 ethtool openssl util-linux tcpdump kmod curl iputils-ping
	say 'installing QEMU and libvirt from bookworm-backports'
	without_services apt install --no-install-recommends -t bookworm-backports qemu-system-x86 qemu-utils libvirt-daemon-system libvirt-daemon-driver-qemu libvirt-clients
}

# The guest's kernel is only unpacked, never installed: this machine boots as before.
fetch_guest_kernel() {
	say "unpacking a cloud kernel for the guests into $cache/guest"
	local tmp image
	tmp=$(mktemp -d)
	trap "rm -rf '$tmp'" EXIT
	image=$(apt-cache depends "$kernel_package" | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -n1)
	[ -n "$image" ] || die "the archive does not say which kernel $kernel_package is; $by_hand"
	chmod 755 "$tmp" # apt's download user must be able to write here
	(cd "$tmp" && apt download "$image" >/dev/null && dpkg -x ./*.deb root)
	mkdir -p "$cache/guest"
	local modules
	modules=$(find "$tmp/root" -type d -path '*/lib/modules/*' -prune | head -n1)
	rm -rf "$cache/guest/modules"
	mkdir "$cache/guest/modules"
	local m
	for m in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci failover net_failover virtio_net virtio_blk; do
		find "$modules" -name "$m.ko*" -exec cp {} "$cache/guest/modules/" \;
	done
	local f
	for f in "$cache"/guest/modules/*.xz; do [ -e "$f" ] && xz -d "$f"; done
	cp "$tmp"/root/boot/vmlinuz-* "$cache/guest/vmlinuz.new"
	mv "$cache/guest/vmlinuz.new" "$cache/guest/vmlinuz"
}

main() {
	check_go
	local missing apps
	missing=$(missing_programs | tr '\n' ' ')
	apps=$(missing_apps | tr '\n' ' ')
	if [ -n "$missing$apps" ] || qemu_too_old || guest_kernel_missing; then
		. /etc/os-release
		[ "${ID:-}" = debian ] && [ "${VERSION_ID:-}" = 12 ] ||
			die "this is ${PRETTY_NAME:-an unknown system}, and only Debian 12 is installed automatically. Missing: ${missing:-a newer QEMU, the guest kernel or the packages }$apps." "$by_hand"
		[ "$(id -u)" = 0 ] ||
			die "not root, and missing: ${missing:-a newer QEMU, the guest kernel or the packages }$apps. Run 'sudo make deps' once." "$by_hand"
		[ -z "$missing" ] && ! qemu_too_old || install_packages
		if [ -n "$apps" ]; then
			apt update
			install_apps $apps
		fi
		if guest_kernel_missing; then
			apt-cache show "$kernel_package" >/dev/null 2>&1 || apt update
			fetch_guest_kernel
		fi
	fi
}
main "$@"
