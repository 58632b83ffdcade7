// Package proof holds no code, only tests of the whole system in one lab: real daemons,
// two clouds, a client on the internet that sends a VM 100 probes a second and has a TCP
// connection open to it. Each test does to the system what the world would, and then asks
// everybody: the client, the guest, both hypervisors, the switches, the routers, the API.
//
//	move_test.go     a move there and back, and what must be left of it: nothing
//	return_test.go   aborted moves, and a WAN that is cut in the middle of one
//	crash_test.go    kill -9 of controller, agents and QEMU in the middle of a move
//	daemons_test.go  kill -9 of every daemon in idle
//	damage_test.go   ports and flows that somebody changed by hand
//	request_test.go  requests that come twice, late or wrong
//
// Every test begins with a calm lab (lab_test.go), which the one before must have left. At
// no instant may two QEMUs run a VM's vCPUs: witness_test.go looks at both all the time.
//
// The tests need root and carry the build tag lab; make test runs them.
package proof
