package main

import (
	"slices"
	"testing"

	"github.com/opscore/opscore"
)

func TestDoctorLeavesTheQueuesToSourcesThatStillReadThem(t *testing.T) {
	all := []opscore.Standing{{Queue: "a"}, {Queue: "b"}, {Queue: "c"}}
	names := func(some []opscore.Standing) (names []string) {
		for _, s := range some {
			names = append(names, s.Queue)
		}
		return names
	}
	for _, queue := range []string{"b", "new"} {
		if got := names(standingOf(all, queue)); !slices.Equal(got, []string{queue}) {
			t.Errorf("for queue %s it looks at %v", queue, got)
		}
	}
	if got := names(all); !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("the queues are %v now", got)
	}
}
