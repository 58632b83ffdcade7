#!/bin/sh
# Says which replica of an etcd cluster leads it, and has another lead: the program that
# 'heliotrope leader follow' asks for. REPLICAS is a list of NAME=ADDRESS:PORT, NAME as in
# the topology.
set -eu
endpoints=$(printf '%s\n' $REPLICAS | cut -d= -f2 | paste -sd, -)

# One line for each replica that answers: address, ID, version, size, whether it leads, …
status() { etcdctl --endpoints "$endpoints" endpoint status --write-out simple || true; }

case "$1" in
which)
	leads=$(status | awk -F', ' '$5 == "true" { print $1 }')
	for r in $REPLICAS; do
		if [ "${r#*=}" = "$leads" ]; then echo "${r%%=*}"; fi
	done
	;;
move)
	for r in $REPLICAS; do
		if [ "${r%%=*}" = "$2" ]; then address=${r#*=}; fi
	done
	etcdctl --endpoints "$endpoints" move-leader "$(status | awk -F', ' -v at="$address" '$1 == at { print $2 }')"
	;;
esac
