// Package api is the contract between the controller and those who operate it: the wire
// types, the problems (RFC 9457), what the server needs of the controller (backend.go), and
// the client. Package rest serves it.
//
// The client finds its server by itself (Find) and returns a Problem as error. Its tests are
// beside the server that it talks to, in package rest.
package api
