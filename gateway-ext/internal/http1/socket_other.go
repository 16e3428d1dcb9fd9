//go:build !unix

package http1

import "net"

// socket is for systems that let a descriptor be read and written by itself.
type socket struct{ net.Conn }

func newSocket(net.Conn) *socket { return nil }
