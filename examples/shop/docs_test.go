package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestTheDocsShowTheseTests keeps docs/testing.md compiled: every piece of Go in it is a piece of this package.
func TestTheDocsShowTheseTests(t *testing.T) {
	t.Parallel()
	doc, err := os.ReadFile("../../docs/testing.md")
	if err != nil {
		t.Fatal(err)
	}
	code, err := os.ReadFile("shop_test.go")
	if err != nil {
		t.Fatal(err)
	}
	pieces := regexp.MustCompile("(?s)```go\n(.*?)```").FindAllStringSubmatch(string(doc), -1)
	if len(pieces) < 10 {
		t.Errorf("%d pieces of Go, want at least 10", len(pieces))
	}
	for _, p := range pieces {
		if !strings.Contains(string(code), p[1]) {
			t.Errorf("this is not in shop_test.go:\n%s", p[1])
		}
	}
}
