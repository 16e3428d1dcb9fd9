//go:build !linux

package http1

import "net"

// seesUnsent says that unsent isn't known.
const seesUnsent = false

// unsent isn't known here, so a client counts as stalled when a single write
// takes too long.
func unsent(net.Conn) (n int, ok bool) { return 0, false }
