package state_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/state"
)

// childDir names the variable that makes this test binary the process to kill.
const childDir = "STATE_TEST_CHILD_DIR"

// padding makes the store compact its files several times while it is killed.
var padding = strings.Repeat("x", 64<<10)

// child writes without end, and prints each key that was acknowledged.
func child(dir string) error {
	ctx := context.Background()
	s, err := state.Open(ctx, state.Config{Dir: dir, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	b, err := s.Bucket(ctx, "b")
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		key := fmt.Sprintf("k.%d.%d", os.Getpid(), i)
		if err := b.Put(ctx, key, []byte(key+padding)); err != nil {
			return err
		}
		fmt.Println(key)
		if i%3 != 0 { // and goes back on most
			if err := b.Delete(ctx, key); err != nil {
				return err
			}
			fmt.Println("-" + key)
		}
	}
}

func TestAcknowledgedSurvivesKill(t *testing.T) {
	dir := t.TempDir()
	want := make(map[string]string)
	for round := range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		cmd.Stderr = t.Output()
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Killed after a random number of acknowledgements and a random while,
		// so that no step of a write is spared.
		killAt, written := 1+rand.N(100), 0
		lines := bufio.NewScanner(out)
		last := ""
		note := func() {
			key := lines.Text()
			last = key
			if key[0] == '-' {
				delete(want, key[1:])
			} else {
				want[key] = key
			}
		}
		for written < killAt && lines.Scan() {
			note()
			written++
		}
		time.AfterFunc(rand.N(3*time.Millisecond), func() { cmd.Process.Kill() })
		for lines.Scan() { // acknowledged before the end all the same
			note()
			written++
		}
		io.Copy(io.Discard, out)
		cmd.Wait()
		if written < killAt {
			t.Fatalf("round %d: the child ended by itself after %d keys", round, written)
		}

		s := open(t, state.Config{Dir: dir})
		got := all(t, bucket(t, s, "b"))
		// What was under way when it was killed may have been done or not: one
		// key more, or the last one gone already.
		for key := range want {
			if got[key] != key+padding && key != last {
				t.Errorf("round %d: acknowledged %s is lost", round, key)
			}
		}
		extra := 0
		for key := range got {
			if _, ok := want[key]; !ok {
				extra++
			}
		}
		if extra > 1 {
			t.Errorf("round %d: %d keys are there that were deleted, or never acknowledged", round, extra)
		}
		clear(want)
		for key := range got {
			want[key] = key
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		t.Logf("round %d: killed after %d acknowledgements, %d keys kept", round, written, len(got))
	}
}
