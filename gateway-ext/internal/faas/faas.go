// Package faas holds the words of the platform as types: a function and its
// name, a replica and its state, an image unpacked on disk, and the kinds of
// error that callers tell apart. It validates what strangers declare and
// decides nothing else. It imports no other package of this module, so every
// other package may import it.
//
// The declaration itself is [types.FunctionDeployment] of faas-provider, the
// type that every OpenFaaS client sends: it is kept as it came, with the
// namespace filled in, and is never translated into a shape of our own.
package faas

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/openfaas/faas-provider/types"
)

// Function is one declared function: what the caller asked for, and what the
// platform adds to it. It is a value: who holds one must not change the maps
// and slices in it.
type Function struct {
	// The declaration as it was sent, with Namespace never empty.
	types.FunctionDeployment

	// Digest is the "sha256:…" that the tag in Image pointed to when the
	// function was deployed; empty until that has been looked up. Replicas
	// run this digest, wherever the tag points today.
	Digest string `json:"digest,omitempty"`

	// Platforms are those that the image is made for, as OCI writes them
	// ("linux/arm/v7"), known since Digest is. Empty is unknown.
	Platforms []string `json:"platforms,omitempty"`

	// Revision grows with each declaration of this name. Replicas of an older
	// revision are replaced by those of the newest.
	Revision uint64 `json:"revision"`

	// Replicas is how many replicas are wanted. 0 means asleep.
	Replicas int `json:"replicas"`

	CreatedAt time.Time `json:"createdAt"`
	UpdatedAt time.Time `json:"updatedAt"`
}

// Name returns the function's full name.
func (f *Function) Name() Name {
	return Name{Function: f.Service, Namespace: f.Namespace}
}

// Label returns the value of a label, or "".
func (f *Function) Label(key string) string {
	if f.Labels == nil {
		return ""
	}
	return (*f.Labels)[key]
}

// Annotation returns the value of an annotation, or "".
func (f *Function) Annotation(key string) string {
	if f.Annotations == nil {
		return ""
	}
	return (*f.Annotations)[key]
}

// State is where a replica is in its life. It only ever grows.
type State int

const (
	Starting State = iota // started, not yet answering its readiness check
	Ready                 // may receive requests
	Draining              // receives no new requests, finishes those in flight
	Gone                  // ended; its address may belong to somebody else
)

var stateNames = [...]string{"starting", "ready", "draining", "gone"}

// String returns the state's name in lower case.
func (s State) String() string {
	if s < 0 || int(s) >= len(stateNames) {
		return "unknown"
	}
	return stateNames[s]
}

// MarshalText implements [encoding.TextMarshaler].
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (s *State) UnmarshalText(text []byte) error {
	i := slices.Index(stateNames[:], string(text))
	if i < 0 {
		return Errorf(ErrInvalid, "%.20q is not the state of a replica: write one of %s", text, strings.Join(stateNames[:], ", "))
	}
	*s = State(i)
	return nil
}

// Replica is one running copy of a function.
type Replica struct {
	// ID names the replica for as long as it lives, and is never used again:
	// "weather-producer-x7k2p". It is what logs call the instance.
	ID       string `json:"id"`
	Function Name   `json:"function"`
	Revision uint64 `json:"revision"`
	Node     string `json:"node"`
	// Zone is what its node shares with others (a shelf, a switch, a room), so
	// that calls can stay within it; empty if nobody said.
	Zone string         `json:"zone,omitempty"`
	Addr netip.AddrPort `json:"addr"`
	// Path is what the paths of its requests begin with, and Host by what name
	// it is called, where more than this replica is behind the address: on a node
	// that is an OpenFaaS provider. Both are empty of one that has the address for
	// itself.
	Path  string    `json:"path,omitempty"`
	Host  string    `json:"host,omitempty"`
	State State     `json:"state"`
	Since time.Time `json:"since"` // when it entered State
	// Reason says why it is Gone, or why it is still Starting, in words for
	// the function's owner; empty if all is well.
	Reason string `json:"reason,omitempty"`
}

// Pin is what was found out about an image when its tag was looked up.
type Pin struct {
	Digest    string   // "sha256:…"
	Platforms []string // that it is made for; empty is unknown
}

// Image is an image that is on this machine's disk, unpacked and ready to run.
type Image struct {
	Ref        string // the repository and the digest: "host/name@sha256:…"
	Root       string // the folder with the image's files; read-only, shared by every replica
	Entrypoint []string
	Cmd        []string
	Env        []string // "KEY=value"
	WorkingDir string
	User       string // "uid[:gid]" or a name; for information: the provider decides who it runs as
}
