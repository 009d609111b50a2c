package main

import (
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/opscore/opscore"
	"github.com/opscore/opscore/sqlite"
)

func TestWhoeverWaitsAsksLessAndLessOftenWhyATaskDoesNotStart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "opscore.db")
	synctest.Test(t, func(t *testing.T) {
		store, err := sqlite.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = store.Close() }()
		client := &opscore.Client{Store: store}
		subs, err := client.Submit(t.Context(), opscore.NewRequest("act", nil))
		if err != nil {
			t.Fatal(err)
		}
		s := &session{app: &app{stderr: t.Output()}, conf: &config{}, place: sqliteFile(path), client: client, store: store}
		late := s.lateTeller(progressBar{})
		defer late.done()
		var pauses []time.Duration
		for before := late.since; len(pauses) < 8; time.Sleep(100 * time.Millisecond) {
			late.tell(t.Context(), opscore.Task{ID: subs[0].ID, State: opscore.Pending})
			if late.since != before { // it has an answer
				pauses, before = append(pauses, late.since.Sub(before).Round(time.Second)), late.since
			}
		}
		want := []time.Duration{2e9, 4e9, 8e9, 16e9, 32e9, 60e9, 60e9, 60e9}
		if !slices.Equal(pauses, want) {
			t.Errorf("it asked after %v, want %v", pauses, want)
		}
		late.tell(t.Context(), opscore.Task{ID: subs[0].ID, State: opscore.Running})
		if late.pause != startsWithin {
			t.Errorf("once the task has started it asks after %s", late.pause)
		}
	})
}
