//go:build !linux

package doctor

import (
	"context"

	"golang.org/x/sys/unix"
)

// What only Linux tells is not known elsewhere.

func clock() Clock { return Clock{} }

func tasks() Room { return Room{} }

func groups() *Groups { return nil }

func listener(context.Context, string) string { return "" }

func (d *Disk) measure() {
	var st unix.Statfs_t
	if unix.Statfs(d.Path, &st) == nil {
		d.Bytes = Room{All: int64(st.Blocks) * int64(st.Bsize), Free: int64(st.Bavail) * int64(st.Bsize)}
		d.Files = Room{All: int64(st.Files), Free: int64(st.Ffree)}
	}
}
