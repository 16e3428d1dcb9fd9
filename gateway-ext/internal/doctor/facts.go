package doctor

import (
	"net/netip"
	"time"
)

// Facts are all that was found out. Parts that are nil were not looked at.
type Facts struct {
	// Here is the machine that the doctor runs on, where no gateway or node of
	// it was asked.
	Here *Machine `json:"here,omitempty"`

	Gateway *Gateway `json:"gateway,omitempty"` // that was asked
	Join    *Join    `json:"join,omitempty"`    // that is to be joined

	// Settings are mistakes in the program's settings, a sentence each.
	Settings []string `json:"settings,omitempty"`

	// Unasked is why a gateway that seems to be there wasn't asked.
	Unasked Unasked `json:"unasked,omitzero"`
}

// Unasked is why somebody wasn't asked, and what to do about that.
type Unasked struct {
	Says string `json:"says"`
	Do   string `json:"do"`
}

// Machine is what a machine finds out about itself.
type Machine struct {
	Name     string `json:"name"`
	Version  string `json:"version"` // of the program
	Platform string `json:"platform"`
	Root     bool   `json:"root"` // the program may do all

	Time   time.Time `json:"time"` // by its clock, when it had looked at all
	Clock  Clock     `json:"clock"`
	Disk   Disk      `json:"disk"`
	Memory Room      `json:"memory"`

	Files int64 `json:"files"` // that the program may have open; 0: not known
	Tasks Room  `json:"tasks"` // processes and threads; 0: not known, or no bound

	Groups *Groups `json:"groups,omitempty"` // of a machine that runs nothing yet
	// Missing is what a machine that runs functions can't hold them to.
	Missing []string `json:"missing,omitempty"`

	Ports   []Port  `json:"ports,omitempty"`
	Reaches []Reach `json:"reaches,omitempty"`
	Redis   *Redis  `json:"redis,omitempty"`
	// Password is what is wrong with the password of the API, if anything is.
	Password string `json:"password,omitempty"`
	// Expires is when the certificate of the API does, if it has one.
	Expires time.Time `json:"expires,omitzero"`
}

// Room is how much there is of something, and how much of that is free.
type Room struct {
	All  int64 `json:"all"`
	Free int64 `json:"free"`
}

// Clock is what the kernel says of a clock.
type Clock struct {
	Known        bool          `json:"known"`
	Synchronised bool          `json:"synchronised"`
	Error        time.Duration `json:"error"` // at most
}

// Disk is where a machine keeps its state and its images.
type Disk struct {
	Path     string        `json:"path"`           // of the folder, or of the one it would be made in
	Made     bool          `json:"made"`           // the folder is there
	Mode     uint32        `json:"mode"`           // its permissions
	Open     string        `json:"open,omitempty"` // something secret that others can read
	Bytes    Room          `json:"bytes"`          // for who isn't root
	Files    Room          `json:"files"`          // inodes; 0: as many as fit
	ReadOnly bool          `json:"readOnly,omitempty"`
	Error    string        `json:"error,omitempty"` // of writing a small file
	Sync     time.Duration `json:"sync"`            // how long that takes until it is on the disk
	System   string        `json:"system"`          // "ext4"
	Card     bool          `json:"card,omitempty"`  // it is an SD card
	InMemory bool          `json:"inMemory,omitempty"`
}

// Groups are the control groups of a machine.
type Groups struct {
	Version     int      `json:"version"` // 2, 1, or 0 for none
	Controllers []string `json:"controllers"`
}

// Port is an address that the program listens on, or would.
type Port struct {
	What    string `json:"what"`    // "the API, calls and images"
	Setting string `json:"setting"` // that says which
	Addr    string `json:"addr"`
	Error   string `json:"error,omitempty"` // "taken", or why it can't be listened on
	By      string `json:"by,omitempty"`    // who has taken it, if that can be found out
}

// Reach is a try to reach something on the network.
type Reach struct {
	What    string        `json:"what"`              // "the gateway's registry"
	Setting string        `json:"setting,omitempty"` // that names it
	Addr    string        `json:"addr"`              // without user and password
	Name    string        `json:"name,omitempty"`    // of the host, if its address wasn't found
	Error   string        `json:"error,omitempty"`
	Took    time.Duration `json:"took"`
}

// Redis is what a Redis says of itself.
type Redis struct {
	Version string `json:"version"`
	Memory  int64  `json:"memory"` // that it may have; 0: no bound
	Policy  string `json:"policy"` // for when that is full
}

// Gateway is what a gateway says of itself and its fleet.
type Gateway struct {
	URL     string        `json:"url"`     // where it was asked
	Ahead   time.Duration `json:"ahead"`   // of the clock of who asked
	Asker   string        `json:"asker"`   // the version of who asked
	Within  time.Duration `json:"within"`  // how wrong Ahead may be
	Version string        `json:"version"` // of the gateway
	Time    time.Time     `json:"time"`
	Joining string        `json:"joining"` // where machines join; empty: nowhere

	Nodes     []Node     `json:"nodes"`
	Functions []Function `json:"functions"`
}

// Node is a machine of the fleet.
type Node struct {
	Name      string        `json:"name"`
	Local     bool          `json:"local,omitempty"` // it is the gateway's
	State     string        `json:"state"`
	Reason    string        `json:"reason,omitempty"`
	Cordoned  bool          `json:"cordoned,omitempty"`
	Version   string        `json:"version"`
	Platforms []string      `json:"platforms"` // that it can run; empty: any
	Ahead     time.Duration `json:"ahead"`     // of the gateway's clock
	Machine   *Machine      `json:"machine,omitempty"`
	// Unexamined is why there is no Machine.
	Unexamined string `json:"unexamined,omitempty"`
}

// Function is one that is deployed.
type Function struct {
	Name      string   `json:"name"`
	Platforms []string `json:"platforms"` // that its image is for; empty: not known
	Wanted    int      `json:"wanted"`
	Ready     int      `json:"ready"`
	Reason    string   `json:"reason,omitempty"` // why not all are ready
}

// Join is what a machine that would be a node finds out about its gateway.
type Join struct {
	URL   string `json:"url"`
	Error string `json:"error,omitempty"` // why it can't be joined there
	Do    string `json:"do,omitempty"`    // what to do about that

	Node   string        `json:"node,omitempty"` // that the machine is already
	Ahead  time.Duration `json:"ahead"`          // of this machine's clock
	Within time.Duration `json:"within"`         // how wrong Ahead may be
	// Seen is the address that the gateway sees this machine at, and Addresses
	// are those that it would announce, the likeliest first.
	Seen      netip.Addr   `json:"seen,omitzero"`
	Addresses []netip.Addr `json:"addresses"`
	// Fixed says that a person has named the address (--advertise).
	Fixed bool `json:"fixed,omitempty"`

	Functions Reach `json:"functions"` // where functions and images are asked for
}
