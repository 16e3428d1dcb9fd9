package provider

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"sync"
)

// owners gives each function a user id of its own, the same after a restart, so
// that what one function owns never belongs to another.
type owners struct {
	path  string
	first int
	count int

	mu   sync.Mutex // guards below
	uids map[string]int
	next int // where to look for a free one
}

// openOwners reads which function has which id. If that can't be read, the ids
// are given anew and the error says so: nothing on disk belongs to them.
func openOwners(path string, first, count int) (*owners, error) {
	o := &owners{path: path, first: first, count: count, uids: make(map[string]int)}
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return o, nil
	}
	if err == nil {
		err = o.parse(b)
	}
	return o, err
}

// parse takes over what is sound: an id of the range, and no id twice.
func (o *owners) parse(b []byte) error {
	var uids map[string]int
	if err := json.Unmarshal(b, &uids); err != nil {
		return fmt.Errorf("read %s: %w", o.path, err)
	}
	taken := make(map[int]bool, len(uids))
	for name, uid := range uids {
		if uid < o.first || uid >= o.first+o.count || taken[uid] {
			continue
		}
		taken[uid] = true
		o.uids[name] = uid
	}
	return nil
}

// uid returns the function's user id.
func (o *owners) uid(name string) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if uid, ok := o.uids[name]; ok {
		return uid, nil
	}
	if len(o.uids) >= o.count {
		return 0, fmt.Errorf("all %d user ids for functions from %d are taken", o.count, o.first)
	}
	taken := make(map[int]bool, len(o.uids))
	for _, uid := range o.uids {
		taken[uid] = true
	}
	for taken[o.first+o.next] {
		o.next = (o.next + 1) % o.count
	}
	uid := o.first + o.next
	o.uids[name] = uid
	return uid, o.save()
}

// free gives the ids of functions that are gone to others.
func (o *owners) free(name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.uids[name]; !ok {
		return nil
	}
	delete(o.uids, name)
	return o.save()
}

func (o *owners) save() error {
	b, err := json.Marshal(o.uids)
	if err != nil {
		return err
	}
	tmp := o.path + ".new"
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, o.path)
}
