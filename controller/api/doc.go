// Package api is the contract between the controller and those who operate it: the wire
// types, the HTTP server and the client.
//
// The server is REST under /v1 with OpenAPI 3.1 at /openapi.json. It holds no state of its
// own: everything it answers comes from a handful of small interfaces (backend.go) that
// the controller implements. What belongs to the wire stays here:
//
//   - every error, those of the router included, is a Problem (RFC 9457) with a stable
//     type, a pointer to the wrong field and a hint how to mend it;
//   - an Idempotency-Key gives the same answer and one effect, also across a crash: the
//     identity of what is created is derived from the key;
//   - a topology has an ETag, and If-Match guards against two engineers at once;
//   - events are a stream whose ids are store revisions, so that Last-Event-ID resumes
//     without a gap and without a double;
//   - a caller is root on the unix socket, or the bearer of the token. Only /healthz,
//     /readyz and /version answer a stranger.
//
// The client finds its server by itself (Find) and returns a Problem as error.
package api
