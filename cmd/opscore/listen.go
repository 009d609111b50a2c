package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// listen listens on a port of this host alone: who connects need not prove who he is. Without a host that is 127.0.0.1.
func listen(addr string) (net.Listener, error) {
	addr, err := loopback(addr)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr) //nolint:noctx // nothing to resolve, nothing to wait for
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("listen on %s: the port is in use by %s: %w", addr, holder(netip.MustParseAddrPort(addr)), syscall.EADDRINUSE)
	}
	return l, err
}

// loopback returns the address to listen on. A name other than localhost could turn out to be any address.
func loopback(addr string) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", usagef("listen %q: HOST:PORT is needed, such as 127.0.0.1:9191", addr)
	}
	if host == "" || host == "localhost" {
		host = "127.0.0.1"
	}
	parsed, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
	if err != nil {
		return "", usagef("listen %q: a loopback address and a port from 0 to 65535 are needed, such as 127.0.0.1:9191", addr)
	}
	if !parsed.Addr().Unmap().IsLoopback() {
		return "", usagef("listen %q: only loopback addresses are accepted, because whoever connects need not log in; for example 127.0.0.1:%d", addr, parsed.Port())
	}
	return parsed.String(), nil
}
