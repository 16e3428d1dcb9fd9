package provider

import (
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestEnterRoot: where pivot_root is forbidden, as it is in containers, a tree is
// entered all the same, and there is no way out of it.
func TestEnterRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("mounting needs root")
	}
	for _, tt := range []struct {
		name  string
		pivot func(string, string) error
	}{
		{"pivot", unix.PivotRoot},
		{"move", func(string, string) error { return unix.EPERM }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			var found, above []os.DirEntry
			err := onThread(func() error {
				if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
					return err
				}
				if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
					return err
				}
				if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
					return err
				}
				if err := unix.Chdir(dir); err != nil {
					return err
				}
				if err := os.Mkdir("mine", 0o755); err != nil {
					return err
				}
				if err := enterRoot(tt.pivot); err != nil {
					return err
				}
				var err error
				if found, err = os.ReadDir("/"); err != nil {
					return err
				}
				above, err = os.ReadDir("../../..")
				return err
			})
			if err == unix.EPERM {
				t.Skip("this root may not mount")
			}
			if err != nil {
				t.Fatal(err)
			}
			for where, list := range map[string][]os.DirEntry{"/": found, "../../..": above} {
				if len(list) != 1 || list[0].Name() != "mine" {
					t.Errorf("in %s is %v, want what is in the tree", where, list)
				}
			}
		})
	}
}
