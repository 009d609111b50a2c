package sqlite

import (
	"errors"
	"syscall"
	"testing"
)

func TestNetworkFileSystemsAreKnownByTheirNumber(t *testing.T) {
	for magic, want := range map[uint32]string{
		0x6969: "NFS", 0xFF534D42: "SMB", 0xFE534D42: "SMB", 0x01021997: "9P", 0x00C36400: "Ceph",
		0xEF53: "", 0x01021994: "", 0x58465342: "", 0x9123683E: "", // ext4, tmpfs, xfs, btrfs
	} {
		if got := networkFSName(magic); got != want {
			t.Errorf("%#x is %q, want %q", magic, got, want)
		}
	}
	if name, err := networkFS(t.TempDir()); err != nil || name != "" {
		t.Errorf("the test's own directory is on %q, %v", name, err)
	}
	if _, err := networkFS("/does/not/exist"); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a missing directory: %v", err)
	}
}
