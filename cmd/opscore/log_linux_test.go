package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestAFullDiskCostsLinesUntilThereIsRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		path := filepath.Join(dir, "log")
		if err := os.Symlink("/dev/full", path); err != nil {
			t.Fatal(err)
		}
		f, err := openLogFile(path)
		if err != nil {
			t.Fatal(err)
		}
		w := newLineWriter(f, "text")
		say(w, 0, 10)
		synctest.Wait()
		if w.dropped() != 10 {
			t.Errorf("dropped %d lines on a full disk, want 10", w.dropped())
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		time.Sleep(lookAgain)
		say(w, 10, 11)
		w.close()
		doc, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(doc), "lines=10 since_the_start=10 error=") || !strings.Contains(string(doc), "no space left on device") {
			t.Errorf("the log does not say how many lines are missing, and why: %v\n%s", err, doc)
		}
		if got := fmt.Sprint(numbers(t, string(doc))); got != "[-1 10]" {
			t.Errorf("the log has %s, want a report and line 10", got)
		}
	})
}
