package main

import (
	"context"
	"net"
)

// listen listens on a TCP address.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
}
