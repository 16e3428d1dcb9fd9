// Package http1 speaks HTTP/1.1 (RFC 9112), as a server and as a client of one
// hop, at little more than what the system calls cost.
//
// It is strict. Of what two recipients might read in two ways, a request that
// one of them takes for two, nothing is accepted and nothing is sent: see
// [ProtocolError].
//
// [Server] has the face of [http.Server] and calls any [http.Handler]. It
// makes no goroutine, no timer, no context for a request, and uses the same
// memory for one after the other. [Transport] is the client: it carries requests
// to servers near by, and tells how far one came that has no answer.
package http1
