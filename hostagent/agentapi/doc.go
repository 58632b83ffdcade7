// Package agentapi is the contract between the controller and the agent of a host, and
// the connections that carry it.
//
// The agent dials; a host behind NAT needs no open port. There is one TLS 1.3 connection
// per purpose, and ALPN names the purpose:
//
//	heliotrope-rpc/1       the agent serves HTTP/2 (Handler), the controller is its client (Agent)
//	heliotrope-ovsdb/1     joined to the host's OVSDB socket
//	heliotrope-openflow/1  joined to the management socket of the host's br-int
//	heliotrope-join/1      one request: a token or a certificate for a (new) certificate
//
// Each Heliotrope has its own CA. A certificate's single URI SAN says who its owner is,
// heliotrope://host/ID or heliotrope://controller; nothing else in it is believed, and
// both ends of every connection check it. A host's key never leaves the host.
//
// A new host has a Token. It says the hash of the CA's certificate, so the host knows the
// controller before it tells the secret; the controller keeps only the secret's hash.
package agentapi
