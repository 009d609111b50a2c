//go:build !linux

package main

import "net/netip"

// holder names the process that listens on a port, where it can.
func holder(netip.AddrPort) string { return "another process; see lsof -i" }
