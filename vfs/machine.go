package vfs

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// bootIDFile is where Linux publishes a random ID that changes at every boot.
const bootIDFile = "/proc/sys/kernel/random/boot_id"

// BootID returns the machine's boot ID. Two equal IDs mean that the kernel, and
// with it the page cache, has lived through whatever happened to the process.
func BootID() (string, error) {
	b, err := os.ReadFile(bootIDFile)
	if err != nil {
		return "", repackage("read boot ID", bootIDFile, err)
	}
	id := strings.TrimSpace(string(b))
	if id == "" {
		return "", fmt.Errorf("read boot ID %s: the file is empty", bootIDFile)
	}
	return id, nil
}

// Kind describes the type of a file system, as far as it matters for keeping a log on it.
type Kind struct {
	// Name is the usual short name ("ext4"), or the magic number in hexadecimal
	// for a type this table does not know.
	Name string
	// Magic is the type's number in statfs(2).
	Magic int64
	// Network is true if the bytes live on another machine. A page fault there
	// can hang or fail for reasons no local disk has.
	Network bool
	// FUSE is true if a user process serves the file system: it promises what
	// that process promises, and it may go away.
	FUSE bool
	// Volatile is true if nothing there survives a reboot.
	Volatile bool
}

// kinds is by magic number of statfs(2). ext2 and ext3 share ext4's.
var kinds = map[int64]Kind{
	0xef53:     {Name: "ext4"},
	0x58465342: {Name: "xfs"},
	0x9123683e: {Name: "btrfs"},
	0x2fc12fc1: {Name: "zfs"},
	0xca451a4e: {Name: "bcachefs"},
	0xf2f52010: {Name: "f2fs"},
	0x794c7630: {Name: "overlay"},
	0x4d44:     {Name: "vfat"},
	0x2011bab0: {Name: "exfat"},
	0x5346544e: {Name: "ntfs"},
	0x01021994: {Name: "tmpfs", Volatile: true},
	0x858458f6: {Name: "ramfs", Volatile: true},
	0x65735546: {Name: "fuse", FUSE: true},
	0x6969:     {Name: "nfs", Network: true},
	0xff534d42: {Name: "cifs", Network: true},
	0xfe534d42: {Name: "smb2", Network: true},
	0x517b:     {Name: "smb", Network: true},
	0x00c36400: {Name: "ceph", Network: true},
	0x5346414f: {Name: "afs", Network: true}, // OpenAFS
	0x6b414653: {Name: "afs", Network: true}, // of the kernel
	0x73757245: {Name: "coda", Network: true},
	0x01021997: {Name: "9p", Network: true},
	0x01161970: {Name: "gfs2", Network: true},
	0x7461636f: {Name: "ocfs2", Network: true},
	0x0bd00bd0: {Name: "lustre", Network: true},
	0x47504653: {Name: "gpfs", Network: true},
	0x786f4256: {Name: "vboxsf", Network: true},
	0xbacbacbc: {Name: "vmhgfs", Network: true},
}

// KindOf looks up the type of the file system that holds dir.
func KindOf(dir string) (Kind, error) {
	var st unix.Statfs_t
	if err := ignoringEINTR(func() error { return unix.Statfs(dir, &st) }); err != nil {
		return Kind{}, pathError("statfs", dir, err)
	}
	return kindOfMagic(int64(st.Type)), nil
}

func kindOfMagic(magic int64) Kind {
	magic &= 0xffffffff // the field is signed and narrower on some machines
	k, known := kinds[magic]
	if !known {
		k.Name = fmt.Sprintf("0x%x", magic)
	}
	k.Magic = magic
	return k
}
