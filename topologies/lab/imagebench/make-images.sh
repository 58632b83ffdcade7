#!/usr/bin/env bash
# Makes the images of the benchmark in the directory $1, if they are not there:
#   v1.raw       1 GiB of ext4: a Debian root by debootstrap
#   v2.raw       v1 in place: its upgrades, some packages, a month of logs, what a system rewrites
#   v3.raw       v1's files on a new filesystem, in another order, 400 of them changed
#   s1..s3.raw   siblings: v1 with other packages
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C PATH="$PATH:/usr/sbin:/sbin"
dir=$1
mirror=${MIRROR:-http://deb.debian.org/debian}
mkdir -p "$dir"
cd "$dir"
say() { printf 'images: %s\n' "$*" >&2; }

mnt=$(mktemp -d)
cleanup() {
	for m in dev/null proc .; do mountpoint -q "$mnt/$m" && umount -l "$mnt/$m"; done
	rmdir "$mnt" 2>/dev/null || true
}
trap cleanup EXIT

new_filesystem() { # file
	rm -f "$1"
	truncate -s 1G "$1"
	mkfs.ext4 -q -m 0 -E lazy_itable_init=0 "$1"
}
with() { # file command...
	local file=$1
	shift
	mount -o loop "$file" "$mnt"
	"$@"
	sync -f "$mnt"
	umount "$mnt"
}
inside() { chroot "$mnt" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive LC_ALL=C "$@"; }
install() { inside apt-get -q -y -o Dpkg::Use-Pty=0 --no-install-recommends install "$@" >/dev/null; }

proxy() {
	for f in /etc/apt/apt.conf.d/*proxy*; do [ -e "$f" ] && cp "$f" "$mnt/etc/apt/apt.conf.d/"; done
	cp /etc/resolv.conf "$mnt/etc/resolv.conf"
	cp /etc/hosts "$mnt/etc/hosts"
	if [ -d /usr/local/share/ca-certificates ]; then cp -r /usr/local/share/ca-certificates "$mnt/usr/local/share/"; fi
}
root() {
	debootstrap --variant=minbase --include=ca-certificates,less,vim-tiny,python3-minimal,openssh-server,rsyslog,cron,iproute2,perl,python3,gcc,make bookworm "$mnt" "$mirror" >/dev/null
	rm -rf "$mnt"/lost+found
	rm -rf "$mnt"/var/cache/apt/archives/*.deb
	proxy
}
month() { # of logs, as a small server has them
	awk 'BEGIN {
		srand(7)
		split("sshd cron systemd kernel postfix/smtpd nginx app", who, " ")
		split("session opened for user root|Accepted publickey for admin from|connection closed by|GET /index.html HTTP/1.1 200|job finished in|disconnect from unknown", what, "|")
		for (i = 0; i < 220000; i++)
			printf "2026-10-%02d %02d:%02d:%02d host %s[%d]: %s 10.%d.%d.%d port %d\n", 1 + i / 7400, (i / 310) % 24, (i / 5) % 60, (i * 7) % 60,
				who[1 + int(rand() * 7)], 300 + int(rand() * 9000), what[1 + int(rand() * 6)], rand() * 255, rand() * 255, rand() * 255, 1024 + rand() * 60000
	}' >"$mnt/var/log/syslog"
	gzip -kc "$mnt/var/log/syslog" >"$mnt/var/log/syslog.1.gz"
}
grow() {
	proxy
	cat >"$mnt/etc/apt/sources.list" <<-END
		deb $mirror bookworm main
		deb $mirror bookworm-updates main
		deb ${mirror}-security bookworm-security main
	END
	inside apt-get -q update >/dev/null
	inside apt-get -q -y -o Dpkg::Use-Pty=0 dist-upgrade >/dev/null
	install git curl sqlite3 >/dev/null # new files, beside those that are replaced
	month
	rm -f "$mnt"/var/cache/apt/archives/*.deb
}
sibling() { # packages
	proxy
	inside apt-get -q update >/dev/null
	install "$@"
	rm -f "$mnt"/var/cache/apt/archives/*.deb
}
change_files() { # 400 of them, and no more
	find "$mnt/usr" -xdev -type f -size +8k | LC_ALL=C sort | awk 'NR % 23 == 0' | head -400 | while read -r f; do
		printf 'changed %s\n' "$f" >>"$f"
	done
}
shuffled() {
	local tree=$1
	(cd "$tree" && find . -xdev -mindepth 1 ! -path ./lost+found | LC_ALL=C sort -R --random-source=<(yes heliotrope)) >"$tree.list"
	tar -C "$tree" --no-recursion -cf - -T "$tree.list" | tar -C "$mnt" -xpf -
	rm "$tree.list"
}

if [ ! -s v1.raw ]; then
	say 'a Debian root'
	new_filesystem v1.part
	with v1.part root
	mv v1.part v1.raw
fi
if [ ! -s v2.raw ]; then
	say 'its upgrades and a month of logs, in place'
	cp --sparse=always v1.raw v2.part
	with v2.part grow
	mv v2.part v2.raw
fi
if [ ! -s v3.raw ]; then
	say 'its files on a new filesystem'
	tree=$(mktemp -d)
	mount -o loop,ro v1.raw "$tree"
	new_filesystem v3.part
	with v3.part shuffled "$tree"
	umount "$tree"
	rmdir "$tree"
	with v3.part change_files
	mv v3.part v3.raw
fi
i=0
for packages in 'nginx-light' 'redis-server' 'postgresql'; do
	i=$((i + 1))
	[ -s "s$i.raw" ] && continue
	say "a sibling with $packages"
	cp --sparse=always v1.raw "s$i.part"
	with "s$i.part" sibling $packages
	mv "s$i.part" "s$i.raw"
done
