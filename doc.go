// Package heliotrope holds the nouns of Heliotrope, an SDN controller that moves running
// virtual machines between clouds without changing an address or breaking a connection.
//
// # How a packet crosses the system
//
// A client on the internet sends to a VM's public address. The site's router has a /32 for
// it, learned over BGP from the controller (package bgp), whose next hop is the public
// side of the host that runs the VM (Host.Public). There br-int, the host's Open vSwitch
// bridge, answers ARP for that next hop and runs the packet through the pipeline of package
// flows: classify says which network it belongs to, l3 rewrites the public address to the
// private one (one to one, without connection state), mobility says where the VM is, and
// output sends it into the VM's port, or through the VXLAN mesh (package ovsdb) to the host
// that has the VM. What a VM sends is held against the addresses it was given (guard); ARP
// and neighbour discovery are answered in the switch itself (package arpproxy), so nothing
// is ever flooded and nothing is learned: every flow is computed by flows.Compile from the
// topology and the placements, which are the store's (package controller/store).
//
// # How a move crosses the system
//
// POST /v1/migrations (package controller/rest) stores a migration.Move. The controller that
// leads drives it: migration.Move.Step says what comes next, the new value is stored, then
// the actions are done. The source's agent (package hostagent) describes the VM; the
// destination's starts a paused QEMU that waits for it; its port is plugged and its flows
// are there before the first byte arrives. Memory and disk travel from host to host through
// one TLS port (package migration/relay). When QEMU has stopped the vCPUs and everything is
// at the destination, one transaction changes the owner and raises the epoch. Now the
// source's switch forwards to the destination, the destination gets its permit and runs, and
// the packets that were caught in the stopped VM's queue are read from it and put into the
// destination's: none is lost and none is seen twice. The other switches and the routers
// follow at leisure, because the source forwards stragglers until they have.
//
// # How the code is laid out
//
// arch_test.go is the map: five rows of packages whose imports point down. Three shapes make
// up everything: a Loop observes an outside world and applies what differs from what is
// wanted (package internal/reconcile); a Machine is a value with a Step (package migration);
// a Plan is a value that can be printed, compared and refused. To read the code, go on with
// arch_test.go, controller.Run, flows/pipeline.go and package migration.
package heliotrope
