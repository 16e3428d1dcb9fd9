package image_test

import (
	"bytes"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/seed-780dceda/thicket/gateway-ext/internal/image"
)

// TestNothing32: the program by which it is found out whether a machine runs
// programs for 32-bit ARM is one, and ends well where that can be tried.
func TestNothing32(t *testing.T) {
	program := image.Nothing32()
	f, err := elf.NewFile(bytes.NewReader(program))
	if err != nil {
		t.Fatal(err)
	}
	if f.Machine != elf.EM_ARM || f.Class != elf.ELFCLASS32 || f.Type != elf.ET_EXEC || len(f.Progs) != 1 {
		t.Errorf("it is %v", f.FileHeader)
	}
	p := f.Progs[0]
	if p.Filesz != uint64(len(program)) || f.Entry < p.Vaddr || f.Entry >= p.Vaddr+p.Memsz || p.Flags != elf.PF_R|elf.PF_X {
		t.Errorf("its segment is %v, and it begins at %#x", p.ProgHeader, f.Entry)
	}
	qemu, err := exec.LookPath("qemu-arm-static")
	if err != nil {
		t.Log("qemu-arm-static isn't there: it isn't run")
		return
	}
	at := filepath.Join(t.TempDir(), "nothing")
	if err := os.WriteFile(at, program, 0o700); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), qemu, at).CombinedOutput(); err != nil {
		t.Errorf("it ends with %v: %s", err, out)
	}
}

func TestHostPlatforms(t *testing.T) {
	all := image.HostPlatforms()
	if len(all) == 0 || !all[0].Equals(image.Accepted(image.HostPlatform())[0]) {
		t.Errorf("HostPlatforms() = %v, want the machine's own first", all)
	}
}
