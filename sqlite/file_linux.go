package sqlite

import "syscall"

// networkFS returns the name of the network file system that dir is on, or "".
func networkFS(dir string) (string, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return "", err
	}
	return networkFSName(uint32(st.Type)), nil
}

// networkFSName knows the magic numbers of linux/magic.h and of the file systems' own sources.
func networkFSName(magic uint32) string {
	switch magic {
	case 0x6969:
		return "NFS"
	case 0xFF534D42, 0xFE534D42, 0x517B:
		return "SMB"
	case 0x5346414F, 0x6B414653:
		return "AFS"
	case 0x00C36400:
		return "Ceph"
	case 0x01021997:
		return "9P"
	case 0x0BD00BD0:
		return "Lustre"
	case 0x01161970:
		return "GFS2"
	case 0x7461636F:
		return "OCFS2"
	}
	return ""
}
