// Package hostagent is the agent of one host: the hands of the controller there, and what
// goes on when there is no controller.
//
// Run wires it. An agent holds no wish of its own. It runs a VM because an order with the
// newest term and epoch said so, and has that permit on disk before the vCPUs run; it
// takes its part of a move as far as it is ordered, and has each step on disk before it
// begins it. After a crash it reads what it had on disk, asks libvirt what is true, and
// answers from both:
//
//	source       begun          → failed; the VM was never touched
//	             copying        → rolled back, failed: the controller has not heard "released",
//	                              so it has not committed
//	             released       → still released: stopped until somebody who knows says otherwise
//	destination  prepared       → prepared if the incoming QEMU is still there, else failed
//	             activating     → active if it runs; goes on if QEMU is there; else it cannot
//	                              say whether the VM ran, and says that
//
// What libvirt does not tell is no reason to destroy anything, and domains that Heliotrope
// did not define are only reported.
//
// Open vSwitch forgets its flows when it is restarted, and the controller may be away. So
// the agent, through which the controller's connection to the switch runs, keeps a copy
// of what the controller last installed, and puts it back into a switch that has none.
package hostagent
