// Package rest is the controller's HTTP server: REST under /v1, as package api says it,
// with OpenAPI 3.1 at /openapi.json.
//
// It holds no state of its own: everything it answers comes from api.Backend, which the
// controller implements. What belongs to the wire stays here:
//
//   - every error, those of the router included, is a Problem with a stable type, a pointer
//     to the wrong field and a hint how to mend it;
//   - an Idempotency-Key gives the same answer and one effect, also across a crash: the
//     identity of what is created is derived from the key;
//   - a topology has an ETag, and If-Match guards against two engineers at once;
//   - events are a stream whose ids are store revisions, so that Last-Event-ID resumes
//     without a gap and without a double;
//   - a caller is root on the unix socket, or the bearer of the token. Only /healthz,
//     /readyz and /version answer a stranger.
package rest
