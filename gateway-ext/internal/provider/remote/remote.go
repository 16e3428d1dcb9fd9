// Package remote lets a gateway use a [provider.Provider] that runs on another
// machine. It is both ends of that line: a [Server] stands before the provider
// on the node, a [Client] is the provider that the gateway sees, and holds to
// the same contract.
//
// The gateway calls the node, never the other way round. It holds one stream
// open, on which the node first tells all that it runs and then each step, and a
// beat each second when there is nothing else to tell: that is also how the
// gateway knows that the node is there. When the stream breaks, what the node
// runs goes on; the next stream begins with all of it again, and the gateway
// takes it back as it is.
//
// A replica that drains is stopped when the gateway has said that nothing of
// what it gave to it is in flight any more. A node that has no gateway doesn't
// wait for one.
//
// Requests reach the replicas, which listen on loopback, through a [Tunnel] for
// each connection. Who may call is decided below this package, by TLS: a Server
// must be reachable by the node's gateway alone.
package remote

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/openfaas/faas-provider/types"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/faas"
)

// Bounds of what one side takes from the other.
const (
	maxWorkload = 16 << 20 // a declaration and its secrets, in bytes
	maxEvent    = 1 << 20  // one line of the stream
	maxBehind   = 8192     // events that a stream may be behind, at about 300 bytes
	maxTold     = 4096     // characters of an error
	maxRuns     = 30_000   // replicas and functions of one node
	maxID       = 256      // bytes of a replica's name

	// What a node may say: maxBurst bytes at once, and maxRate each second. Each
	// line counts as lineCost more, for the trouble it makes. A node with 10,000
	// functions says 6 MB when the gateway comes, and some KB a second.
	maxBurst = 16 << 20
	maxRate  = 1 << 20
	lineCost = 256
)

// Beat is how often a node says that it is there.
const Beat = time.Second

// event is a line of the stream. Exactly one field is set.
type event struct {
	Replica *faas.Replica `json:"replica,omitempty"` // a step of its life
	Status  *status       `json:"status,omitempty"`  // how far a function is
	Removed *faas.Name    `json:"removed,omitempty"` // a function is not on the node any more
	Synced  bool          `json:"synced,omitempty"`  // all that the node runs was told
	Beat    *Machine      `json:"beat,omitempty"`
}

// status is a function on the node, as [provider.Status] without its replicas,
// which are told one by one.
type status struct {
	Name     faas.Name            `json:"name"`
	Revision uint64               `json:"revision"`
	Wanted   int                  `json:"wanted"`
	Reason   string               `json:"reason,omitempty"`
	Usage    *types.FunctionUsage `json:"usage,omitempty"`
}

// Machine is what a node tells of itself with each beat.
type Machine struct {
	Version     string    `json:"version"`     // of the program
	Platforms   []string  `json:"platforms"`   // that it can run, its own first: "linux/arm64", "linux/arm/v7"
	Memory      int64     `json:"memory"`      // bytes that it has
	MemoryFree  int64     `json:"memoryFree"`  // bytes that could be used now
	CPU         int64     `json:"cpu"`         // thousandths of cores
	DiskFree    int64     `json:"diskFree"`    // bytes where images go
	Disk        int64     `json:"disk"`        // bytes that there are, used or not; 0 if that isn't known
	Time        time.Time `json:"time"`        // by its clock
	Constraints []string  `json:"constraints"` // what it can't hold functions to, in sentences

	// Images are those that it has, by [ImageKey], at most [MaxImages]. Between
	// the two ends nil is what was told last.
	Images []string `json:"images,omitzero"`
}

// bounded is as much of what a node tells of itself as is kept.
func (m Machine) bounded() Machine {
	m.Version = fmt.Sprintf("%.64s", m.Version)
	m.Platforms = m.Platforms[:min(len(m.Platforms), 16)]
	m.Constraints = m.Constraints[:min(len(m.Constraints), 16)]
	m.Images = m.Images[:min(len(m.Images), MaxImages)]
	return m
}

// MaxImages is how many of its images a node tells of.
const MaxImages = 512

// ImageKey is how a node tells of an image: by the beginning of its digest,
// which no other image has by chance.
func ImageKey(digest string) string {
	_, hex, _ := strings.Cut(digest, ":")
	return hex[:min(len(hex), 16)]
}

// ErrGarbled is that what a node says can't be read, or is more than a node has
// to say.
var ErrGarbled = errors.New("what it says can't be read")

// refuse answers with an error, whose kind is kept on the line.
func refuse(w http.ResponseWriter, err error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(faas.StatusOf(err))
	_, _ = io.WriteString(w, err.Error()) // the gateway is gone: nobody to tell
}

// refusal reads what refuse wrote.
func refusal(res *http.Response) error {
	text, err := io.ReadAll(io.LimitReader(res.Body, maxTold))
	if err != nil || len(text) == 0 {
		text = []byte(res.Status)
	}
	if kind := faas.KindOf(res.StatusCode); kind != nil {
		return faas.Errorf(kind, "%s", text)
	}
	return fmt.Errorf("%s", text)
}

// decode reads one JSON value of at most limit bytes.
func decode(r io.Reader, limit int64, v any) error {
	body := &io.LimitedReader{R: r, N: limit + 1}
	err := json.NewDecoder(body).Decode(v)
	if body.N <= 0 {
		return faas.Errorf(faas.ErrTooLarge, "more than %d bytes", limit)
	}
	if err != nil {
		return faas.Errorf(faas.ErrInvalid, "%w", err)
	}
	return nil
}
