//go:build !linux

package http1

import "net"

// seesSending says that sending isn't known.
const seesSending = false

// sending isn't known here, so a client counts as stalled when a single write
// takes too long.
func sending(net.Conn) (unsent int, acked uint64, ok bool) { return 0, 0, false }
