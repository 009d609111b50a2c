package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// listen listens on a TCP address. That somebody else does is an error that names him, as far as he can be seen.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if op, ok := errors.AsType[*net.OpError](err); ok && errors.Is(err, syscall.EADDRINUSE) {
		if at, ok := op.Addr.(*net.TCPAddr); ok {
			return nil, fmt.Errorf("listen on %s: the port is in use by %s: %w", at, holder(at.AddrPort()), syscall.EADDRINUSE)
		}
	}
	return l, err
}
