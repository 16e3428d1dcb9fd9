package provider

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// records is a folder with a file for each replica that runs, by which a gateway
// finds what its predecessor left behind when it was killed. It is about
// processes, which a power cut ends too: nothing is synced to the disk.
type records struct{ dir string }

// record is what is known of one replica. PID is 0 until it is started: then it
// is looked for by the mark in its environment.
type record struct {
	Replica string `json:"replica"`
	PID     int    `json:"pid,omitempty"`
	Started string `json:"started,omitempty"` // when, as the kernel counts; tells it from a later process with the same PID
	Boot    string `json:"boot,omitempty"`    // of which start of the machine

	// Groups are its control groups, in case the next gateway starts in another
	// one and doesn't come across them.
	Groups []string `json:"groups,omitempty"`
}

func newRecord(id string, p *process) record {
	return record{Replica: id, PID: p.pid, Started: processStart(p.pid), Boot: bootID(), Groups: p.group.folders()}
}

func (r records) prepare() error { return os.MkdirAll(r.dir, 0o700) }

func (r records) path(id string) string { return filepath.Join(r.dir, id+".json") }

func (r records) write(rec record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	tmp := filepath.Join(r.dir, "."+rec.Replica)
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, r.path(rec.Replica))
}

func (r records) remove(id string) error { return os.Remove(r.path(id)) }

// read returns all records. A file that can't be understood (a full disk cut it
// short) still names its replica.
func (r records) read() ([]record, error) {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return nil, err
	}
	var recs []record
	for _, e := range entries {
		id, ok := strings.CutSuffix(e.Name(), ".json")
		if !ok {
			continue
		}
		b, err := os.ReadFile(filepath.Join(r.dir, e.Name()))
		if err != nil {
			return nil, err
		}
		rec, err := parseRecord(b)
		if err != nil || rec.Replica != id {
			rec = record{Replica: id}
		}
		recs = append(recs, rec)
	}
	return recs, nil
}

func parseRecord(b []byte) (rec record, err error) {
	err = json.Unmarshal(b, &rec)
	if err == nil && rec.PID < 0 {
		err = fmt.Errorf("pid %d", rec.PID)
	}
	return rec, err
}

// leftoverWait is how long a killed leftover may take to be gone.
const leftoverWait = 5 * time.Second

// stopLeftovers kills the replicas that are on record and still run, and returns
// their names. Nobody can talk to them any more: their output has no reader, and
// the requests they had came from the gateway that is gone.
func (r records) stopLeftovers(m *machine) (stopped []string, err error) {
	recs, err := r.read()
	if err != nil {
		return nil, err
	}
	if len(recs) == 0 {
		return nil, m.removeLeft(nil)
	}
	var errs []error
	marked := make(map[string]bool, len(recs))
	var groups []string
	boot := bootID()
	for _, rec := range recs {
		marked[rec.Replica] = true
		if rec.Boot == boot {
			groups = append(groups, rec.Groups...)
		}
		if rec.PID == 0 || rec.Boot != boot || processStart(rec.PID) != rec.Started || rec.Started == "" {
			continue
		}
		stopped = append(stopped, rec.Replica)
		errs = append(errs, killLeftover(rec))
	}
	for _, id := range killMarked(marked) {
		if !slices.Contains(stopped, id) {
			stopped = append(stopped, id)
		}
	}
	errs = append(errs, m.removeLeft(groups))
	if err := errors.Join(errs...); err != nil {
		return stopped, err
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return stopped, err
	}
	for _, e := range entries {
		if err := os.Remove(filepath.Join(r.dir, e.Name())); err != nil {
			return stopped, err
		}
	}
	return stopped, nil
}

// killLeftover kills a process and its group, and waits until it is gone.
func killLeftover(rec record) error {
	// The record was compared with the process a moment ago; the handle stays
	// with that process whatever becomes of its number.
	proc, err := os.FindProcess(rec.PID)
	if err != nil {
		return nil // it ended by itself
	}
	defer proc.Release()
	if processStart(rec.PID) != rec.Started {
		return nil
	}
	killGroup(rec.PID)
	if err := proc.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("kill %s (process %d), which an earlier gateway left behind: %w", rec.Replica, rec.PID, err)
	}
	for deadline := time.Now().Add(leftoverWait); processStart(rec.PID) == rec.Started; {
		if time.Now().After(deadline) {
			return fmt.Errorf("%s (process %d), which an earlier gateway left behind, doesn't end", rec.Replica, rec.PID)
		}
		time.Sleep(5 * time.Millisecond) // it isn't our child: there is nothing to wait on
	}
	return nil
}
