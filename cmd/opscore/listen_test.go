package main

import (
	"errors"
	"strings"
	"testing"
)

func TestOnlyLoopbackAddressesAreListenedOn(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		":0":                   "127.0.0.1:",
		"localhost:0":          "127.0.0.1:",
		"127.0.0.2:0":          "127.0.0.2:",
		"[::1]:0":              "[::1]:",
		"[::ffff:127.0.0.1]:0": "",
	} {
		l, err := listen(addr)
		if err != nil {
			t.Errorf("%s: %v", addr, err)
			continue
		}
		if !strings.HasPrefix(l.Addr().String(), want) {
			t.Errorf("%s listens on %s, want %s", addr, l.Addr(), want)
		}
		l.Close()
	}
	for addr, want := range map[string]string{
		"0.0.0.0:9191":        "only loopback addresses are accepted, because whoever connects need not log in; for example 127.0.0.1:9191",
		"[::]:9191":           "only loopback addresses",
		"10.0.0.1:9191":       "only loopback addresses",
		"[::ffff:10.0.0.1]:1": "only loopback addresses",
		"example.com:9191":    "a loopback address and a port",
		"127.0.0.1:65536":     "a loopback address and a port",
		"127.0.0.1:http":      "a loopback address and a port",
		"9191":                "HOST:PORT is needed",
		"":                    "HOST:PORT is needed",
	} {
		l, err := listen(addr)
		if err == nil {
			l.Close()
		}
		if !errors.As(err, new(usageError)) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want a mistake of the caller: %s", addr, err, want)
		}
	}
}
