// Function is what all contestants of the benchmark stand in front of: it
// answers every request with the same kilobyte, for as little CPU time as it
// can, so that what is measured is what stands between it and the client.
//
// It understands just the requests that well-behaved proxies send: HTTP/1.1,
// kept alive, with a Content-Length or without a body. To anything else it
// closes the connection, which the benchmark counts as an error.
package main

import (
	"bufio"
	"bytes"
	"fmt"
	"log"
	"net"
	"os"
	"runtime"
	"strconv"
	"strings"
)

func main() {
	// One core does for all there is to do, and a second would look for work
	// that it doesn't find.
	runtime.GOMAXPROCS(1)
	// OpenFaaS's variable, and Thicket's way to name a port.
	l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", os.Getenv("port")))
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("listening on", l.Addr())
	for {
		conn, err := l.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go serve(conn) // for as long as the other side wants
	}
}

// answer is what everybody gets.
var answer = []byte("HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: 1024\r\n\r\n" + strings.Repeat("0123456789abcde\n", 64))

// serve answers the requests of one connection.
func serve(conn net.Conn) {
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 8<<10)
	for {
		length, ok := request(r)
		if !ok {
			return
		}
		if _, err := r.Discard(length); err != nil {
			return
		}
		if _, err := conn.Write(answer); err != nil {
			return
		}
	}
}

// request reads a request's head and returns the length of its body.
func request(r *bufio.Reader) (length int, ok bool) {
	for {
		line, err := r.ReadSlice('\n')
		if err != nil {
			return 0, false
		}
		if len(line) <= 2 {
			return length, true
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte("content-length")):
			if length, err = strconv.Atoi(string(bytes.TrimSpace(value))); err != nil || length < 0 {
				return 0, false
			}
		case bytes.EqualFold(name, []byte("transfer-encoding")):
			return 0, false
		}
	}
}
