package opscore

import (
	"os"
	"slices"
	"testing"
)

func TestAnotherProcessIsDescribedAsItDescribesItself(t *testing.T) {
	t.Parallel()
	want := self()
	got, err := ProcessOf(os.Getpid())
	if err != nil || !got.Same(want) || got.Group != want.Group || !slices.Equal(got.Args, want.Args) || got.Dir != want.Dir || got.Stdout != want.Stdout ||
		!got.Started.Equal(want.Started) || got.Space == "" || !slices.Equal(got.Parents, want.Parents) {
		t.Errorf("process = %+v, %v\nwant %+v", got, err, want)
	}
	if _, err := ProcessOf(1 << 30); err == nil {
		t.Error("there is a process with an id that cannot be one")
	}
}
