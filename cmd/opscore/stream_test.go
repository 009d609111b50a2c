package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestAPipeIsFullWhenAWriteWouldWait(t *testing.T) {
	t.Parallel()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	if pipeFull(w) {
		t.Error("an empty pipe is full")
	}
	room := 0
	for block := make([]byte, 4096); !pipeFull(w); room++ {
		if _, err := w.Write(block); err != nil {
			t.Fatal(err)
		}
	}
	if room == 0 {
		t.Error("a pipe without room for anything")
	}
	if _, err := r.Read(make([]byte, 4096)); err != nil || pipeFull(w) {
		t.Errorf("a pipe that was read from is full, %v", err)
	}
	if err := r.Close(); err != nil || pipeFull(w) {
		t.Errorf("a pipe whose reader is gone is full, %v", err)
	}
	file, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil || pipeFull(file) || pipeFull(nil) {
		t.Errorf("what is no pipe is full, %v", err)
	}
}
