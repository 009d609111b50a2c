package main

import "net"

// listen listens on a TCP address.
func listen(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }
