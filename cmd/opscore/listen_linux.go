package main

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// holder names the process that listens where we want to, by its id and the name of its program: its arguments may hold secrets.
func holder(want netip.AddrPort) string {
	for _, table := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		doc, err := os.ReadFile(table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(doc)) {
			if s, ok := parseSocket(line); ok && s.excludes(want) {
				return s.holder()
			}
		}
	}
	return "a process that cannot be seen"
}

// socket is one that listens.
type socket struct {
	at    netip.AddrPort
	user  string
	inode string
}

// parseSocket reads a line of /proc/net/tcp: number, local address, remote address, state and, further on, user and inode.
func parseSocket(line string) (socket, bool) {
	const listening = "0A"
	f := strings.Fields(line)
	if len(f) < 10 || f[3] != listening {
		return socket{}, false
	}
	addr, port, _ := strings.Cut(f[1], ":")
	words, err := hex.DecodeString(addr)
	if err != nil || len(words)%4 != 0 {
		return socket{}, false
	}
	for i := 0; i < len(words); i += 4 { // each word is in the order of this machine
		binary.BigEndian.PutUint32(words[i:], binary.NativeEndian.Uint32(words[i:]))
	}
	ip, ok := netip.AddrFromSlice(words)
	n, err := strconv.ParseUint(port, 16, 16)
	return socket{netip.AddrPortFrom(ip.Unmap(), uint16(n)), f[7], f[9]}, ok && err == nil
}

// excludes reports whether nobody else can listen at an address.
func (s socket) excludes(want netip.AddrPort) bool {
	return s.at.Port() == want.Port() && (s.at.Addr() == want.Addr().Unmap() || s.at.Addr().IsUnspecified() || want.Addr().Unmap().IsUnspecified())
}

func (s socket) holder() string {
	links, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		panic(err) // the pattern is right
	}
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && to == "socket:["+s.inode+"]" {
			pid := strings.Split(link, "/")[2]
			name, _ := os.ReadFile(filepath.Join("/proc", pid, "comm")) // gone meanwhile: the id is what is left
			return fmt.Sprintf("process %s (%s)", pid, strings.TrimSpace(string(name)))
		}
	}
	return fmt.Sprintf("a process of user %s that cannot be seen from here", s.user)
}
